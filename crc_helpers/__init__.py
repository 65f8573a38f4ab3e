"""The module behind the course: one room a lesson, and the plumbing they share.

Research and teaching only. Nothing here is for diagnosis.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("crc-helpers")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+checkout"
