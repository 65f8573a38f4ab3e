"""The documents: what they link to is there, and their commands exist."""

import re
import shlex

import pytest

from crc_helpers.course.cli import main
from crc_helpers.runs import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "figures", "tests/faults")
    for path in sorted((ROOT / folder).glob("*.md"))
}
TEXT = "\n".join(PAGES.values())
CODE = "\n".join(re.findall(r"```\n(.*?)```", TEXT, re.S) + re.findall(r"`([^`\n]+)`", TEXT))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_pictures_have_words(page):
    links = re.findall(r'(?:\]\(|src=")([^)"#:]+)[)"#]', PAGES[page])
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not re.findall(r"!\[\s*\]\(", PAGES[page])
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", PAGES[page]))


def test_make_targets_and_scripts_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"^make ([a-z-]+)", CODE, re.M)) <= targets
    scripts = re.findall(r"^python (\S+\.py)", CODE, re.M)
    assert not [script for script in scripts if not (ROOT / script).is_file()]


@pytest.mark.parametrize("line", sorted(set(re.findall(r"crc-course ([a-z][^\n&`]*)", CODE))))
def test_commands_and_their_options_exist(line, capsys):
    command, *words = shlex.split(line, comments=True)
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    known = capsys.readouterr().out
    assert ended.value.code == 0
    assert not [word for word in words if word.startswith("--") and word not in known]
