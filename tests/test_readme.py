"""The documents: what they link to is there, their commands exist, their results are the run's."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "figures", "tests/faults")
    for path in sorted((ROOT / folder).glob("*.md"))
}
TEXT = "\n".join(PAGES.values())
CODE = "\n".join(re.findall(r"```\n(.*?)```", TEXT, re.S) + re.findall(r"`([^`\n]+)`", TEXT))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r'(?:\]\(|src=")([^)"#:]+)[)"#]', PAGES[page])
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_alternative_text(page):
    assert not re.findall(r"!\[\s*\]\(", PAGES[page])
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", PAGES[page]))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z-]+)", CODE, re.M))))
def test_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("script", sorted(set(re.findall(r"^python (\S+\.py)", CODE, re.M))))
def test_scripts_exist(script):
    assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("line", sorted(set(re.findall(r"crc-course ([a-z][^\n&`]*)", CODE))))
def test_commands_and_their_options_exist(line, monkeypatch, capsys):
    command, *words = shlex.split(line, comments=True)
    monkeypatch.setattr(sys, "argv", ["crc-course", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("crc_helpers", run_name="__main__")
    known = capsys.readouterr().out
    assert ended.value.code == 0
    assert not [word for word in words if word.startswith("--") and word not in known]


def test_results_are_those_of_the_committed_run():
    metrics = json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))
    rows = {"pre-trained, fine-tuned": metrics, **metrics["baselines"]}
    for name, scores in rows.items():
        for m in (scores["balanced_accuracy"], scores["auc"]):
            interval = f" [{m['low']:.3f}, {m['high']:.3f}]" if m["high"] > m["low"] else ""
            assert f"| {m['value']:.3f}{interval} |" in PAGES["docs/results.md"], name
