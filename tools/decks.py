"""Make a deck of slides for each lesson from `docs/teaching/slides/NN.md`.

Run as `python tools/decks.py`. It writes `build/slides/NN.html`, which needs no network: arrow
keys turn the pages, and the browser prints them. `---` begins a slide. `[picture 01-047]` is the
picture of the lesson's cell with this id, `[picture 03-007.2]` its second.
"""

import base64
import io
import re
import string
from pathlib import Path

import mistune
import nbformat
from PIL import Image

from crc_helpers.course.settings import lesson_files
from crc_helpers.runs import ROOT

SOURCES, DECKS = ROOT / "docs" / "teaching" / "slides", ROOT / "build" / "slides"
PAGE = string.Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
PICTURE = re.compile(r"(?:\[picture (\S+)\]|!\[([^\]]+)\]\((\S+\.svg)\))\n*")
TALL, WIDE = 0.62, 0.5  # height over width: a picture beside its text, pictures below each other


def pictures(lesson: Path) -> dict[str, str]:
    """Each stored picture of a lesson as an <img> with its words, by cell id."""
    found = {}
    for cell in nbformat.read(lesson, as_version=4).cells:
        words = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        kinds = [(k, o.data[k]) for o in cell.get("outputs", []) for k in o.get("data", {})]
        shown = [image(k, text, words) for k, text in kinds if k in ("image/jpeg", "image/png")]
        for n, tag in enumerate(shown, start=1):
            found[cell.id if n == 1 else f"{cell.id}.{n}"] = tag
    return found


def image(kind: str, text: str, words: str) -> str:
    """An <img> that holds its picture, given in base64, and says its shape."""
    shape = WIDE
    if kind != "image/svg+xml":
        width, height = Image.open(io.BytesIO(base64.b64decode(text))).size
        shape = height / width
    words = words.replace('"', "&quot;")
    return f'<img data-shape="{shape:.2f}" alt="{words}" src="data:{kind};base64,{text}">'


def slide(source: str, number: int, known: dict[str, str]) -> str:
    """One slide as HTML: its title, its pictures, its text."""
    title, _, rest = source.strip().partition("\n")
    tags = []
    for name, words, diagram in PICTURE.findall(rest):
        if name:
            tags.append(known[name])
        else:
            text = base64.b64encode((SOURCES / diagram).read_bytes()).decode()
            tags.append(image("image/svg+xml", text, words))
    markdown = mistune.create_markdown(escape=False, plugins=["table"])
    shapes = [float(re.search(r'data-shape="([^"]+)"', tag).group(1)) for tag in tags]
    stacked = "stacked" if len(tags) > 1 and max(shapes) < WIDE else ""
    words = PICTURE.sub("", rest).strip().replace(" %", "\N{NO-BREAK SPACE}%")
    beside = words and (stacked or (len(tags) == 1 and shapes[0] > TALL))
    look = "beside" if beside else "" if tags else "plain"
    shown = f'<div class="pictures {stacked}">{"".join(tags)}</div>' if tags else ""
    text = f'<div class="text">{markdown(words)}</div>' if words else ""
    body = f'{markdown(title)}<div class="body">{shown}{text}</div>'
    return f'<section class="{look}" data-page="{number}">{body}</section>'


def deck(source: Path) -> str:
    """The deck of one lesson as an HTML page."""
    (lesson,) = [file for file in lesson_files() if file.stem[:2] == source.stem]
    parts, known = source.read_text(encoding="utf-8").split("\n---\n"), pictures(lesson)
    slides = [slide(part, n, known) for n, part in enumerate(parts, start=1)]
    title = parts[0].strip().splitlines()[0].lstrip("# ")
    return PAGE.substitute(title=title, slides="\n".join(slides))


if __name__ == "__main__":
    DECKS.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("[01]?.md")):
        (DECKS / f"{source.stem}.html").write_text(deck(source), encoding="utf-8")
        print(f"{DECKS.name}/{source.stem}.html")
