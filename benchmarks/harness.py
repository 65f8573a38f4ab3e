"""What every speed benchmark shares: contenders in turn, medians, one table and one figure."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from crc_helpers import figures, runs

HERE = Path(__file__).parent
RECORD = HERE / "speed.json"
ROUNDS = 5


def race(contenders: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Let contenders do the same work in turn, so that a busy machine hurts all alike.

    Returns the seconds of every round; a first round, in which things warm up, is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(round(time.perf_counter() - start, 4))
    return seconds


def keep(claim: str, seconds: dict[str, list[float]], work: float, unit: str, bars: dict) -> None:
    """Record a race.

    work: how many `unit` a round does. bars: {"a / b": value} for ratios of a's rate to b's, where
    reaching the value or more is the aim.
    """
    race = {"unit": unit, "work": work, "seconds": seconds, "bars": bars}
    _record("claims", claim, race)
    print("\n".join(rows(claim, race)), flush=True)


def keep_figures(claim: str, measured: dict[str, tuple[float, float | None]]) -> None:
    """Record measured figures, each with the value it should stay under, or None."""
    _record("figures", claim, measured)
    print(claim, measured, flush=True)


def _record(kind: str, claim: str, entry: dict) -> None:
    """Keep an entry under this machine's name, and write table and figure anew."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    here = known.setdefault(runs.device_name(), {})
    here["versions"] = runs.versions()
    here.setdefault(kind, {})[claim] = entry
    runs.save_json(RECORD, known)
    write(known)


def ratio(seconds: dict[str, list[float]], pair: str) -> tuple[float, float, float]:
    """Median, lowest and highest, over rounds, of a's rate over b's, for "a / b"."""
    a, b = (np.array(seconds[name]) for name in pair.split(" / "))
    return float(np.median(b) / np.median(a)), float((b / a).min()), float((b / a).max())


def rows(claim: str, race: dict) -> list[str]:
    """Lines of the table: one a ratio."""
    lines = []
    rate = {k: race["work"] / np.median(v) for k, v in race["seconds"].items()}
    measured = ", ".join(f"{name} {value:.3g}" for name, value in rate.items())
    for pair, bar in race["bars"].items():
        value, low, high = ratio(race["seconds"], pair)
        told = "–" if bar is None else f"{bar} {'✓' if value >= bar else '✗'}"
        lines.append(
            f"| {claim} | {pair} | **{value:.2f}** ({low:.2f}–{high:.2f}) | {told} |"
            f" {measured} {race['unit']}/s |"
        )
    return lines


def write(known: dict) -> None:
    """Write SPEED.md and speed.png from all that is recorded."""
    text = [
        "# Speed, measured",
        "",
        "`make bench` makes this page. Each ratio is of medians of five rounds in which the"
        " contenders take turns (in brackets the lowest and highest of a round); ours over theirs,"
        " so more is better. *limit* is the same network fed with views that lie ready on the"
        " device: nothing but computing.",
        "",
        "![Ratios of speed, ours over each peer](speed.png)",
    ]
    for machine, here in known.items():
        versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items())
        precision = "Pre-training in bf16 where the machine's name says so, the rest in float32."
        text += ["", f"## {machine}", "", f"{versions}. {precision}", ""]
        if here.get("claims"):
            text += [
                "| work | ratio of rates | measured | aim | medians |",
                "|---|---|---|---|---|",
            ]
            text += [row for name, race in here["claims"].items() for row in rows(name, race)]
        if here.get("figures"):
            text += ["", "| figure | measured | aim |", "|---|---|---|"]
            for claim, measured in here["figures"].items():
                for name, (value, bar) in measured.items():
                    told = "–" if bar is None else f"≤ {bar} {'✓' if value <= bar else '✗'}"
                    text.append(f"| {claim}: {name} | **{value:.3g}** | {told} |")
    notes = HERE / "speed_notes.md"
    text += ["", notes.read_text(encoding="utf-8")] if notes.is_file() else []
    (HERE / "SPEED.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    draw(known)


def draw(known: dict) -> None:
    """One panel a machine: every ratio on a logarithmic scale, its aim as a tick."""
    machines = {name: here["claims"] for name, here in known.items() if here.get("claims")}
    if not machines:
        return
    figures.set_style()
    counts = [sum(len(race["bars"]) for race in claims.values()) for claims in machines.values()]
    height = 1.4 + 0.42 * sum(counts)
    look = {"squeeze": False, "height_ratios": counts, "layout": "constrained"}
    drawing, axes = plt.subplots(len(machines), 1, figsize=(9, height), **look)
    for ax, (machine, claims) in zip(axes[:, 0], machines.items(), strict=True):
        names = []
        for claim, race in claims.items():
            for pair, bar in race["bars"].items():
                y, (value, low, high) = len(names), ratio(race["seconds"], pair)
                ax.barh(y, value - 1, left=1, color="#0072B2" if value >= 1 else "#D55E00")
                ax.plot([low, high], [y, y], color="black", linewidth=1.2)
                if bar is not None:
                    ax.plot([bar, bar], [y - 0.4, y + 0.4], color="black", linewidth=2.5)
                names.append(f"{claim}: {pair}")
        ax.set(xscale="log", title=machine, xlabel="times as fast (thick tick: the aim)")
        ax.set_yticks(range(len(names)), names)
        ax.set_xticks([0.5, 1, 2, 3, 5, 10], ["0.5", "1", "2", "3", "5", "10"], minor=False)
        ax.xaxis.set_minor_formatter("")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.invert_yaxis()
    drawing.savefig(HERE / "speed.png", dpi=130)
    plt.close(drawing)
