"""The material for teachers: glossary, questions and their answers, links."""

import re
from pathlib import Path

import decks
import nbformat
import pytest

from crc_helpers.course.settings import lesson_files
from crc_helpers.runs import ROOT

LESSONS = [file for file in lesson_files() if file.stem[:2] <= "06"]
PAGES = [*sorted((ROOT / "docs" / "teaching").glob("*.md")), ROOT / "docs" / "glossary.md"]
FOLDED = re.compile(r"<details><summary>[^<]+</summary>\n\n(.*?)\n\n</details>", re.S)
each_lesson = pytest.mark.parametrize("file", LESSONS, ids=lambda f: f.stem)
all_lessons = pytest.mark.parametrize("file", lesson_files(), ids=lambda f: f.stem)


def texts(file: Path) -> list[str]:
    """The markdown cells of a lesson."""
    cells = nbformat.read(file, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def questions(text: str) -> list[str]:
    """The numbered questions of a page, each with what follows it."""
    return re.split(r"^\*\*\d+\.\*\* ", text, flags=re.M)[1:]


def terms(file: Path) -> set[str]:
    """What a lesson sets in bold, three words at most, and no lead-in like 'What to see.'."""
    body = "\n".join(texts(file)[1:]).split("## What we have seen")[0]
    bold = re.findall(r"\*\*([^*\n]+)\*\*", FOLDED.sub("", body))
    return {b.lower() for b in bold if len(b.split()) <= 3 and not re.search(r"[.:?]", b)}


def headwords() -> set[str]:
    """The glossary's terms."""
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    return {word.lower() for word in re.findall(r"^- \*\*([^*]+)\*\* \(\d\d\): ", page, re.M)}


@each_lesson
def test_each_term_is_in_the_glossary(file):
    def known(term: str) -> bool:
        term = term.removeprefix("the ")
        return bool({term, term.removesuffix("s"), f"{term} curve"} & headwords())

    assert terms(file) and not [term for term in terms(file) if not known(term)]


@all_lessons
def test_each_lesson_has_five_questions_with_one_folded_answer(file):
    (quiz,) = [text for text in texts(file) if text.startswith("## Check yourself\n")]
    assert len(questions(quiz)) == 5
    for question in questions(quiz):
        assert re.findall(r"^- ([A-D])\. ", question, re.M) == list("ABCD")
        (answer,) = FOLDED.findall(question)
        assert re.match(r"\*\*[A-D]\.\*\* ", answer)
    assert f"../exercises/{file.name}" in texts(file)[-1]


@each_lesson
def test_predictions_have_folded_answers_and_the_rest_is_short(file):
    everything = "\n".join(texts(file))
    assert everything.count("<details>") == len(FOLDED.findall(everything))
    asking = [text for text in texts(file) if "**Predict first.**" in text]
    assert all(FOLDED.search(text.split("**Predict first.**")[1]) for text in asking)
    words = [w for w in FOLDED.sub("", everything).split() if re.search(r"[^\W_]", w)]
    assert len(words) <= 2000


def test_the_exam_has_a_key_for_each_question():
    exam, key = (ROOT / "docs" / "teaching" / name for name in ("exam.md", "exam_key.md"))
    asked, answered = (questions(page.read_text(encoding="utf-8")) for page in (exam, key))
    assert len(asked) == len(answered) == 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_are_short_and_their_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [x for x in re.findall(r"\]\(([^)#]+)[)#]", text) if not x.startswith("http")]
    assert not [link for link in links if not (page.parent / link).exists()]
    assert page.name == "glossary.md" or len(text.split()) <= 500


@all_lessons
def test_a_deck_holds_its_pictures_and_needs_no_network(file):
    source = decks.SOURCES / f"{file.stem[:2]}.md"
    named = decks.PICTURE.findall(source.read_text(encoding="utf-8"))
    page = decks.deck(source)  # a KeyError names a picture that the lesson doesn't hold
    assert 8 <= page.count("<section ") <= 14
    assert page.count('src="data:image/') == len(named) > 0
    assert not re.search(r'alt=""|(?:src|href)="http', page)
