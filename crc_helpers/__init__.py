"""The module behind the course: one room a lesson, and the plumbing they share.

Research and teaching only. Nothing here is for diagnosis.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("crc-helpers")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+checkout"


def printable(message: str) -> str:
    """One line of bounded length: a file or a cell may hold what a terminal obeys, or anything."""
    line = " ".join(message.split())
    if len(line) > 1000:
        line = f"{line[:500]} … {line[-400:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
