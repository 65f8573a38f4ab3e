"""The README says what the committed run measured, and everything it points to is there."""

import json
import re

import pytest

from crc_helpers.runs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_results_are_those_of_the_committed_run():
    metrics = json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))
    rows = {"pre-trained, fine-tuned": metrics, **metrics["baselines"]}
    for scores in rows.values():
        m = scores["auc"]
        assert f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r'(?:\]\(|src=")([^)"#:]+)[)"]', README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists(), link


def test_every_picture_has_alternative_text():
    assert not re.findall(r"!\[\]\(", README)
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", README))


def test_the_warning_stands_before_the_commands():
    assert README.index("Not for diagnosis") < README.index("make course")


def test_five_figures_are_shown():
    for name in (
        "figure_1.png",
        "figure_2.jpg",
        "figure_3_method.svg",
        "figure_4.png",
        "figure_5.jpg",
    ):
        assert f"figures/{name}" in README and (ROOT / "figures" / name).is_file(), name
