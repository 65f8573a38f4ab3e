"""Turn what `paper_scale.py` has left into tables and figures.

    python studies/paper_scale_report.py --out runs/paper_scale

Writes `studies/paper_scale.json` (every figure with its interval), `studies/paper_scale/log.csv`
(losses and seconds an epoch), the tables of `docs/results.md` between its two marks, and
`figures/paper_scale_*.{png,jpg}`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from paper_scale import DRAWS, PRETRAINED, SCALES, SHARES, Scale, material
from sklearn.metrics import confusion_matrix

from crc_helpers import evaluation, figures, grad_cam, runs, style
from crc_helpers.data import Tiles
from crc_helpers.explanations import centre_map, edge_map

Statistic = Callable[[np.ndarray], float]  # of the tiles at an index array
NAMES = {
    "paper": "pre-trained and fine-tuned, Table 1 of the paper",
    "scratch_paper": "from scratch, the paper's fine-tuning",
    "tissue": "pre-trained and fine-tuned, this course's recipe",
    "scratch_tissue": "from scratch, this course's fine-tuning",
    "tissue_10": "this course's recipe, a tenth of the labels",
    "scratch_10": "from scratch, a tenth of the labels",
    "probe_paper": "frozen encoder of the paper's recipe, linear probe",
    "probe_tissue": "frozen encoder of this course's recipe, linear probe",
    "probe_random": "random encoder, linear probe",
}
RIVALS = {"paper": "scratch_paper", "tissue": "scratch_tissue", "tissue_10": "scratch_10"}
MARKS = "<!-- paper scale: begin -->", "<!-- paper scale: end -->"
KINDS = ["trained", "random_weights", "edges", "centre", "another_tile", "chance"]


def over_slides(statistic: Statistic, groups: np.ndarray) -> dict[str, float]:
    """Return a statistic over all tiles, with its bootstrap over slides."""
    low, high = evaluation.bootstrap_interval(statistic, len(groups), groups)
    return {"value": float(statistic(np.arange(len(groups)))), "low": low, "high": high}


def auc(labels: np.ndarray, score: np.ndarray) -> Statistic:
    """Return the AUC of p(SSA) as a function of an index array."""
    two = np.stack([1 - score, score], axis=1)
    return lambda i: evaluation.macro_auc(labels[i], two[i])


def minus(one: Statistic, other: Statistic) -> Statistic:
    """Return the paired difference of two statistics of the same tiles."""
    return lambda i: one(i) - other(i)


def scores(probabilities: dict[str, np.ndarray], stuff: dict[str, Tiles], full: bool) -> dict:
    """Return accuracy, balanced accuracy and AUC on both test parts; full: and what is confused.

    Tiles of the paper's split are taken as independent, those of new slides by slide.
    """
    summary = {}
    for part, p in probabilities.items():
        labels, predicted = stuff[part].labels, p.argmax(axis=1)
        groups = stuff["fresh"].groups if part == "fresh" else None
        summary[part] = evaluation.summarise(labels, p, groups)
        if full:
            counts = confusion_matrix(labels, predicted, labels=(0, 1)).tolist()
            classes = evaluation.per_class(labels, predicted, stuff[part].class_names, groups)
            summary[part] |= {"confusion": counts, "per_class": classes.to_dict("index")}
    return summary


def probes(out: Path, fresh: Tiles, scale: Scale) -> dict:
    """Return `probe_auc` by epochs, its gain, and the AUC with few labels: each on new slides."""
    labels, groups, result, last = fresh.labels, fresh.groups, {}, scale.watched[-1]
    scratch = out / "tuned_scratch_10.npz"
    for arm in PRETRAINED:
        kept = np.load(out / f"probes_{arm}.npz")

        def score(epoch: int, share: float = 1.0, kept=kept) -> Statistic:
            """AUC, the mean over the draws of the labels."""
            draws = range(DRAWS if share < 1 else 1)
            each = [auc(labels, kept[f"{epoch}_{share}_{draw}_fresh"]) for draw in draws]
            return lambda i: float(np.mean([one(i) for one in each]))

        few = {}
        for share in SHARES:
            ours, random = score(last, share), score(0, share)
            few[str(share)] = {
                "frozen pre-trained": over_slides(ours, groups),
                "frozen random": over_slides(random, groups),
                "pre-trained - random": over_slides(minus(ours, random), groups),
            }
        if scratch.is_file():  # the same labels as its network's: the first draw
            one = auc(labels, kept[f"{last}_0.1_0_fresh"])
            theirs = auc(labels, np.load(scratch)["p_fresh"][:, 1])
            few["0.1"]["gain"] = over_slides(minus(one, theirs), groups)
        result[arm] = {
            "probe_auc": {str(e): over_slides(score(e), groups) for e in scale.watched},
            "probe_gain": over_slides(minus(score(last), score(0)), groups),
            "few_labels": few,
        }
    return result


def heat(kept: dict, blank: dict, fresh: Tiles, layer: str) -> dict:
    """Score an arm's maps, and the controls, on new SSA tiles that it calls SSA.

    hit: share of maps whose hottest pixel lies in the diagnostic region; mass: share of the heat
    inside. Maps that are zero everywhere are left out and counted.
    """
    use = (fresh.labels == 1) & (kept["p_fresh"].argmax(axis=1) == 1)
    use &= fresh.masks.any(axis=(1, 2))
    if not use.any():
        return {}
    region, groups, size = fresh.masks[use] > 0, fresh.groups[use], fresh.masks.shape[-1]
    raw, untrained = (f[f"{layer}_fresh"][use].astype(np.float32) for f in (kept, blank))
    grid = raw.shape[-1]
    shown = {"trained": raw, "random_weights": untrained}
    shown["another_tile"] = np.roll(raw, len(raw) // 2, axis=0)  # of another slide
    maps = {k: grad_cam.enlarge(torch.from_numpy(v), size) for k, v in shown.items()}
    images = torch.from_numpy(fresh.images[use]).float() / 255
    maps |= {"edges": edge_map(images, size / grid / 2), "centre": centre_map(len(region), size)}
    result: dict = {"grid": grid, "tiles": len(region)}
    for name, score in (("hit", grad_cam.hits), ("mass", grad_cam.mass_inside)):
        result[name] = {"chance": over_slides(lambda i: float(region[i].mean()), groups)}
        for kind, heats in maps.items():
            v = score(heats, region)
            result[name][kind] = over_slides(lambda i, v=v: float(np.nanmean(v[i])), groups)
    return result | {"zero": {k: int((m.max(axis=(1, 2)) == 0).sum()) for k, m in maps.items()}}


def measure(out: Path, stuff: dict[str, Tiles], scale: Scale) -> dict:
    """Return every figure with its interval."""
    fresh, labels = stuff["fresh"], stuff["fresh"].labels
    arms = {a: np.load(f) for a in NAMES if (f := out / f"tuned_{a}.npz").is_file()}
    blank = np.load(out / "tuned_random.npz")
    layers = sorted(n.removesuffix("_fresh") for n in blank.files if n.endswith("_fresh"))[:2]
    score = {arm: auc(labels, kept["p_fresh"][:, 1]) for arm, kept in arms.items()}
    pairs = [(a, b) for a, b in (*RIVALS.items(), ("tissue", "paper")) if {a, b} <= score.keys()]
    steps = [json.loads(line) for line in (out / "seconds.jsonl").read_text().splitlines()]
    frozen = {"probe_random": ("paper", 0)}
    frozen |= {f"probe_{arm}": (arm, scale.watched[-1]) for arm in PRETRAINED}

    def of_probe(arm: str, epoch: int) -> dict[str, np.ndarray]:
        kept = np.load(out / f"probes_{arm}.npz")
        ssa = {part: kept[f"{epoch}_1.0_0_{part}"] for part in ("test", "fresh")}
        return {part: np.stack([1 - p, p], axis=1) for part, p in ssa.items()}

    return {
        "device": steps[-1]["device"],
        "versions": {k: v for k, v in steps[-1].items() if k not in ("what", "seconds", "device")},
        "seconds": {step["what"]: step["seconds"] for step in steps},
        "classifiers": {
            arm: scores({part: kept[f"p_{part}"] for part in ("test", "fresh")}, stuff, full=True)
            for arm, kept in arms.items()
        },
        "frozen": {n: scores(of_probe(*which), stuff, full=False) for n, which in frozen.items()},
        "differences": {
            f"{a} - {b}": over_slides(minus(score[a], score[b]), fresh.groups) for a, b in pairs
        },
        "probes": probes(out, fresh, scale),
        "grad_cam": {
            arm: {layer: heat(kept, blank, fresh, layer) for layer in layers}
            for arm, kept in arms.items()
            if not arm.endswith("_10")
        },
    }


def as_text(interval: dict[str, float], digits: int = 3) -> str:
    """Write an estimate and its interval as a reader of a table wants it."""
    value, low, high = (f"{interval[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]".replace("0.", ".")


def of_class(scores_: dict[str, float], metric: str) -> str:
    """Write a score of a class, with its interval where it has one."""
    if metric == "f1":
        return f"{scores_['f1']:.3f}".replace("0.", ".")
    low, high = scores_[f"{metric}_low"], scores_[f"{metric}_high"]
    return as_text({"value": scores_[metric], "low": low, "high": high})


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write one table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(result: dict) -> str:
    """Write the tables of the page, in Markdown."""
    truth, predicted = evaluation.expand_counts(evaluation.PAPER_COUNTS)
    theirs = evaluation.per_class(truth, predicted, ("HP", "SSA")).to_dict("index")
    paper, probe = result["classifiers"]["paper"]["test"], result["probes"]
    epochs, n = list(probe["paper"]["probe_auc"]), np.sum(paper["confusion"])
    few = {arm: p["few_labels"] for arm, p in probe.items()}
    arms = (result["classifiers"] | result["frozen"]).items()
    maps = [(arm, s) for arm, grids in result["grad_cam"].items() for s in grids.values() if s]
    parts = [f"accuracy, {n} tiles, the paper's split", "accuracy, new slides", "AUC, new slides"]
    made = {
        ("class", "", "Jain & Lynn, MHIST", "the same recipe, drawn tissue"): [
            [c, metric, *(of_class(t[c], metric) for t in (theirs, paper["per_class"]))]
            for c in ("HP", "SSA")
            for metric in ("precision", "recall", "f1")
        ],
        ("network", *parts): [
            [
                NAMES[arm],
                as_text(s["test"]["accuracy"]),
                *(as_text(s["fresh"][m]) for m in ("accuracy", "auc")),
            ]
            for arm, s in arms
        ],
        ("AUC on new slides, paired difference", "value"): [
            [name.replace(" - ", " minus "), as_text(v)]
            for name, v in result["differences"].items()
        ],
        ("frozen probe, AUC after epochs", *epochs): [
            [f"{arm} recipe", *(as_text(p["probe_auc"][e]) for e in epochs)]
            for arm, p in probe.items()
        ],
        ("share of the labels", *(f"{arm}, frozen" for arm in probe), "random, frozen"): [
            [
                f"{float(share):.0%}",
                *(as_text(few[arm][share]["frozen pre-trained"]) for arm in few),
                as_text(few["paper"][share]["frozen random"]),
            ]
            for share in few["paper"]
        ],
        ("Grad-CAM of", "grid", "score", *(k.replace("_", " ") for k in KINDS)): [
            [
                NAMES[arm],
                f"{s['grid']} × {s['grid']}",
                name,
                *(as_text(s[name][k], 2) for k in KINDS),
            ]
            for arm, s in maps
            for name in ("hit", "mass")
        ],
    }
    return "\n\n".join(table(list(header), rows) for header, rows in made.items())


def draw_course(out: Path, result: dict) -> plt.Figure:
    """Draw what pre-training learns: the losses, and the frozen probe by epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for arm in PRETRAINED:
        log, look = pd.read_csv(out / f"pretraining_{arm}.csv"), {"color": style.RECIPES[arm]}
        axes[0].plot(log["epoch"], log["loss"], label=arm, **look)
        curve = pd.DataFrame(result["probes"][arm]["probe_auc"]).T
        ends = curve["value"] - curve["low"], curve["high"] - curve["value"]
        axes[1].errorbar(
            curve.index.astype(int), curve["value"], ends, marker="o", capsize=3, **look
        )
    axes[0].set(xlabel="epoch", ylabel="NT-Xent", title="Loss of pre-training")
    axes[1].set(xlabel="epochs of pre-training", ylabel="AUC on new slides")
    axes[1].set_title("Frozen linear probe")
    axes[0].legend(frameon=False)
    return figure


def draw_confusion(result: dict) -> plt.Figure:
    """Draw the paper's confusion matrix beside those of its recipe on drawn tissue."""
    ours = result["classifiers"]["paper"]
    mixed, fresh = (np.array(ours[part]["confusion"]) for part in ("test", "fresh"))
    counts = {
        "Jain & Lynn, MHIST,\n198 tiles": evaluation.PAPER_COUNTS,
        f"the same recipe, drawn tissue,\n{mixed.sum()} tiles": mixed,
        f"… and {fresh.sum()} tiles\nof new slides": fresh,
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    for ax, (title, table) in zip(axes, counts.items(), strict=True):
        figures.confusion(table, ("HP", "SSA"), title, ax)
    return figure


def draw_explanations(kept: dict, fresh: Tiles) -> plt.Figure:
    """Draw the paper's Figure 5: for SSA tiles of new slides, the raw cells and the boxes."""
    predicted, rng = kept["p_fresh"].argmax(axis=1), np.random.default_rng(0)
    by_prediction = [np.flatnonzero((fresh.labels == 1) & (predicted == s)) for s in (1, 0)]
    index = np.concatenate([rng.permutation(one)[:2] for one in by_prediction])
    layer = sorted(name for name in kept if name.endswith("_fresh") and name[0] != "p")[-1]
    raw, size = torch.from_numpy(kept[layer][index].astype(np.float32)), fresh.images.shape[-1]
    cells, smooth = (grad_cam.enlarge(raw, size, smooth=kind) for kind in (False, True))
    titles = [
        (f"truth: SSA, p(SSA) = {kept['p_fresh'][k, 1]:.2f}", "right" if predicted[k] else "WRONG")
        for k in index
    ]
    boxes = [grad_cam.boxes(one) for one in smooth]
    return figures.explanations(fresh.images[index], cells, boxes, titles, fresh.masks[index])


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs" / "paper_scale")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--into", type=Path, default=runs.ROOT, help="the checkout to write into")
    options = parser.parse_args()
    scale, out, into = SCALES[options.scale], options.out.expanduser(), options.into.expanduser()
    drawn = into / "figures"
    result = measure(out, material(scale), scale)
    runs.save_json(into / "studies" / "paper_scale.json", result)
    logs = pd.concat([pd.read_csv(f).assign(run=f.stem) for f in sorted(out.glob("*_*.csv"))])
    runs.save_table(into / "studies" / "paper_scale" / "log.csv", logs.to_dict("records"))
    page = into / "docs" / "results.md"
    before, _, after = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = after.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{tables(result)}\n{MARKS[1]}{after}", encoding="utf-8")
    figures.set_style()
    figures.save(draw_course(out, result), drawn / "paper_scale_pretraining.png")
    figures.save(draw_confusion(result), drawn / "paper_scale_confusion.png")
    figure = draw_explanations(np.load(out / "tuned_paper.npz"), material(scale)["fresh"])
    figures.save(figure, drawn / "paper_scale_grad_cam.jpg")
    plt.close("all")


if __name__ == "__main__":
    main()
