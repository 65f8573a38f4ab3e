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
import seaborn as sns
import torch
from paper_scale import DRAWS, PRETRAINED, SCALES, SHARES, Material, Scale, material
from torch.nn import functional as F

from crc_helpers import evaluation, figures, grad_cam, runs
from crc_helpers.explanations import centre_map, edge_map

Figures = dict[str, float]  # value, low and high: an estimate and its 95 % interval
NAMES = {
    "paper": "pre-trained and fine-tuned, Table 1 of the paper",
    "scratch_paper": "from scratch, the same fine-tuning",
    "tissue": "pre-trained and fine-tuned, this course's recipe",
    "scratch_tissue": "from scratch, the same fine-tuning",
    "tissue_10": "this course's recipe, a tenth of the labels",
    "scratch_10": "from scratch, a tenth of the labels",
    "probe_paper": "frozen encoder of the paper's recipe, linear probe",
    "probe_tissue": "frozen encoder of this course's recipe, linear probe",
}
RIVALS = {"paper": "scratch_paper", "tissue": "scratch_tissue", "tissue_10": "scratch_10"}
COLOURS = dict(zip(("paper", "tissue", "random", "scratch"), figures.PALETTE, strict=False))
MARKS = "<!-- paper scale: begin -->", "<!-- paper scale: end -->"


def over_slides(statistic: Callable[[np.ndarray], float], groups: np.ndarray) -> Figures:
    """Return a statistic of an index array over all tiles, with its bootstrap over slides."""
    low, high = evaluation.bootstrap_interval(statistic, len(groups), groups)
    return {"value": float(statistic(np.arange(len(groups)))), "low": low, "high": high}


def auc(labels: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the function of an index array that `over_slides` takes: the AUC of p(SSA)."""
    two = np.stack([1 - score, score], axis=1)
    return lambda i: evaluation.macro_auc(labels[i], two[i])


def less(one: Callable, other: Callable) -> Callable[[np.ndarray], float]:
    """Return the difference of two such functions: paired, because both see the same tiles."""
    return lambda i: one(i) - other(i)


def classifiers(out: Path, stuff: Material) -> dict:
    """Return accuracy, balanced accuracy and AUC of each arm on both test parts, and its counts."""
    rows = {}
    for arm in present(out):
        kept, rows[arm] = np.load(out / f"tuned_{arm}.npz"), {}
        for part, groups in (("test", None), ("fresh", stuff.fresh.groups)):
            labels, p = stuff.labels(part), kept[f"p_{part}"]
            said = p.argmax(axis=1)
            counts = [[int(((labels == t) & (said == s)).sum()) for s in (0, 1)] for t in (0, 1)]
            per_class = evaluation.per_class(labels, said, stuff.tiles.class_names, groups)
            rows[arm][part] = evaluation.summarise(labels, p, groups) | {
                "confusion": counts, "per_class": per_class.to_dict("index")
            }  # fmt: skip
    return rows


def frozen(out: Path, stuff: Material, scale: Scale) -> dict:
    """Return what `classifiers` does for linear probes on frozen encoders, the random one too."""
    rows = {}
    for name, arm, epoch in (
        ("probe_random", "paper", 0),
        *((f"probe_{arm}", arm, scale.watched[-1]) for arm in PRETRAINED),
    ):
        kept, rows[name] = np.load(out / f"probes_{arm}.npz"), {}
        for part, groups in (("test", None), ("fresh", stuff.fresh.groups)):
            p = kept[f"{epoch}_1.0_0_{part}"]
            two = np.stack([1 - p, p], axis=1)
            rows[name][part] = evaluation.summarise(stuff.labels(part), two, groups)
    return rows


def differences(out: Path, stuff: Material) -> dict[str, Figures]:
    """Return AUC of each pre-trained arm minus that of its rival from scratch, on new slides."""
    labels, groups = stuff.fresh.labels, stuff.fresh.groups
    score = {arm: auc(labels, np.load(out / f"tuned_{arm}.npz")["p_fresh"][:, 1])
             for arm in present(out)}  # fmt: skip
    pairs = {f"{a} - {b}": (a, b) for a, b in (*RIVALS.items(), ("tissue", "paper"))}
    return {name: over_slides(less(score[a], score[b]), groups)
            for name, (a, b) in pairs.items() if a in score and b in score}  # fmt: skip


def probes(out: Path, stuff: Material, scale: Scale) -> dict:
    """Return `probe_auc` by epochs, its gain, and the AUC with few labels: each on new slides."""
    labels, groups, result = stuff.fresh.labels, stuff.fresh.groups, {}
    scratch = out / "tuned_scratch_10.npz"
    for arm in PRETRAINED:
        kept = np.load(out / f"probes_{arm}.npz")

        def score(epoch: int, share: float = 1.0, kept=kept) -> Callable[[np.ndarray], float]:
            """AUC, the mean over the draws of the labels."""
            draws = range(DRAWS if share < 1 else 1)
            each = [auc(labels, kept[f"{epoch}_{share}_{draw}_fresh"]) for draw in draws]
            return lambda i: float(np.mean([one(i) for one in each]))

        last = scale.watched[-1]
        few = {}
        for share in SHARES:
            ours, random = score(last, share), score(0, share)
            few[str(share)] = {
                "frozen pre-trained": over_slides(ours, groups),
                "frozen random": over_slides(random, groups),
                "pre-trained - random": over_slides(less(ours, random), groups),
            }
        if scratch.is_file():  # the same labels as its network's: the first draw
            one = auc(labels, kept[f"{last}_0.1_0_fresh"])
            theirs = auc(labels, np.load(scratch)["p_fresh"][:, 1])
            few["0.1"]["gain"] = over_slides(less(one, theirs), groups)
        result[arm] = {
            "probe_auc": {str(e): over_slides(score(e), groups) for e in scale.watched},
            "probe_gain": over_slides(less(score(last), score(0)), groups),
            "few_labels": few,
        }
    return result


def heat(out: Path, stuff: Material, arm: str, layer: str) -> dict:
    """Score an arm's maps, and the controls, on new SSA tiles that it calls SSA.

    hit: share of maps whose hottest pixel lies in the diagnostic region; mass: share of the heat
    inside. Maps that are zero everywhere are left out and counted.
    """
    kept, blank = np.load(out / f"tuned_{arm}.npz"), np.load(out / "tuned_random.npz")
    labels, masks = stuff.fresh.labels, stuff.fresh.masks[:] > 0
    use = (labels == 1) & (kept["p_fresh"].argmax(axis=1) == 1) & masks.any(axis=(1, 2))
    if not use.any():
        return {}
    region, groups, size = masks[use], stuff.fresh.groups[use], masks.shape[-1]
    raw = kept[f"{layer}_fresh"][use].astype(np.float32)

    def enlarged(maps: np.ndarray) -> np.ndarray:
        return grad_cam.enlarge(torch.from_numpy(maps.astype(np.float32)), size)

    images = torch.from_numpy(stuff.images("fresh")[use]).float() / 255
    maps = {
        "trained": enlarged(raw),
        "random_weights": enlarged(blank[f"{layer}_fresh"][use]),
        "edges": edge_map(images, size / raw.shape[-1] / 2),
        "centre": centre_map(len(region), size),
        "another_tile": enlarged(np.roll(raw, len(raw) // 2, axis=0)),  # of another slide
    }
    result: dict = {"grid": int(raw.shape[-1]), "tiles": len(region)}
    for name, score in (("hit", grad_cam.hits), ("mass", grad_cam.mass_inside)):
        result[name] = {"chance": over_slides(lambda i: float(region[i].mean()), groups)}
        for kind, heats in maps.items():
            v = score(heats, region)
            result[name][kind] = over_slides(lambda i, v=v: float(np.nanmean(v[i])), groups)
    zero = {kind: int((m.max(axis=(1, 2)) == 0).sum()) for kind, m in maps.items()}
    return result | {"zero": zero}


def present(out: Path) -> list[str]:
    """Return the arms that are there, in the order of the tables."""
    return [arm for arm in NAMES if (out / f"tuned_{arm}.npz").is_file()]


def layers_of(out: Path) -> list[str]:
    """Return the two layers explained, the earlier first."""
    names = np.load(out / "tuned_random.npz").files
    return sorted(name.removesuffix("_fresh") for name in names if name.endswith("_fresh"))[:2]


def told(figures_: Figures, digits: int = 3) -> str:
    """Write an estimate and its interval as a reader of a table wants it."""
    value, low, high = (f"{figures_[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]".replace("0.", ".")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write one table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_2(result: dict) -> str:
    """Write the paper's Table 2 beside that of its recipe on drawn tissue."""
    truth, said = evaluation.expand_counts(evaluation.PAPER_COUNTS)
    theirs = evaluation.per_class(truth, said, ("HP", "SSA")).to_dict("index")
    ours = result["classifiers"]["paper"]["test"]["per_class"]
    rows = []
    for name in ("HP", "SSA"):
        for metric in ("precision", "recall", "f1"):
            cells = [
                told({"value": t[name][metric], "low": t[name][f"{metric}_low"],
                      "high": t[name][f"{metric}_high"]}) if metric != "f1"
                else f"{t[name]['f1']:.3f}".replace("0.", ".")
                for t in (theirs, ours)
            ]  # fmt: skip
            rows.append([name, metric, *cells])
    return table(["class", "", "Jain & Lynn, MHIST", "the same recipe, drawn tissue"], rows)


def tables(result: dict) -> str:
    """Write the tables of the page, in Markdown."""
    arms = [
        [NAMES.get(arm, "random encoder, linear probe"), told(parts["test"]["accuracy"]),
         told(parts["fresh"]["accuracy"]), told(parts["fresh"]["auc"])]
        for arm, parts in (result["classifiers"] | result["frozen"]).items()
    ]  # fmt: skip
    pairs = [[name.replace(" - ", " minus "), told(v)] for name, v in result["differences"].items()]
    probe = {arm: result["probes"][arm] for arm in PRETRAINED}
    epochs = list(probe["paper"]["probe_auc"])
    curves = [
        [f"{arm} recipe", *(told(p["probe_auc"][e]) for e in epochs)] for arm, p in probe.items()
    ]
    few = [
        [f"{share:.0%}", *(told(p["few_labels"][str(share)]["frozen pre-trained"])
                           for p in probe.values()),
         told(probe["paper"]["few_labels"][str(share)]["frozen random"])]
        for share in SHARES
    ]  # fmt: skip
    kinds = ["trained", "random_weights", "edges", "centre", "another_tile", "chance"]
    maps = [
        [NAMES[arm], f"{scores['grid']} × {scores['grid']}", name,
         *(told(scores[name][k], 2) for k in kinds)]
        for arm, grids in result["grad_cam"].items()
        for scores in grids.values() if scores
        for name in ("hit", "mass")
    ]  # fmt: skip
    n = np.sum(result["classifiers"]["paper"]["test"]["confusion"])
    parts = [f"accuracy, {n} tiles, the paper's split", "accuracy, new slides", "AUC, new slides"]
    return "\n\n".join([
        table_2(result),
        table(["network", *parts], arms),
        table(["AUC on new slides, paired difference", "value"], pairs),
        table(["frozen probe, AUC after epochs", *epochs], curves),
        table(["share of the labels", *(f"{arm}, frozen" for arm in probe), "random, frozen"], few),
        table(["Grad-CAM of", "grid", "score", *(k.replace("_", " ") for k in kinds)], maps),
    ])  # fmt: skip


def draw_course(out: Path, result: dict) -> plt.Figure:
    """Draw what pre-training learns: the losses, and the frozen probe by epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for arm in PRETRAINED:
        log = pd.read_csv(out / f"pretraining_{arm}.csv")
        axes[0].plot(log["epoch"], log["loss"], color=COLOURS[arm], label=arm)
        curve = result["probes"][arm]["probe_auc"]
        x, y = [int(e) for e in curve], [curve[e]["value"] for e in curve]
        ends = [[v["value"] - v["low"], v["high"] - v["value"]] for v in curve.values()]
        style = {"marker": "o", "capsize": 3, "color": COLOURS[arm], "label": arm}
        axes[1].errorbar(x, y, np.array(ends).T, **style)
    axes[0].set(xlabel="epoch", ylabel="NT-Xent", title="Loss of pre-training")
    axes[1].set(xlabel="epochs of pre-training", ylabel="AUC on new slides",
                title="Frozen linear probe")  # fmt: skip
    for ax in axes:
        ax.legend(frameon=False)
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


def draw_explanations(out: Path, stuff: Material, arm: str, layer: str) -> plt.Figure:
    """Draw the paper's Figure 5: for SSA tiles of new slides, the raw cells and the boxes."""
    kept, labels = np.load(out / f"tuned_{arm}.npz"), stuff.fresh.labels
    said = kept["p_fresh"].argmax(axis=1)
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(np.flatnonzero((labels == 1) & (said == s)))[:2] for s in (1, 0)]
    index = np.concatenate(chosen)
    raw = torch.from_numpy(kept[f"{layer}_fresh"][index].astype(np.float32))
    size = stuff.fresh.images.shape[-1]
    smooth = grad_cam.enlarge(raw, size)
    titles = [(f"truth: SSA, p(SSA) = {kept['p_fresh'][k, 1]:.2f}", "right" if said[k] else "WRONG")
              for k in index]  # fmt: skip
    boxes = [grad_cam.boxes(one) for one in smooth]
    cells = F.interpolate(raw[:, None], size=(size, size), mode="nearest")[:, 0].numpy()
    images, masks = stuff.fresh.images[index], stuff.fresh.masks[index]
    return figures.explanations(images, cells, boxes, titles, masks)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs" / "paper_scale")
    parser.add_argument("--scale", choices=list(SCALES), default="paper")
    parser.add_argument("--into", type=Path, default=runs.ROOT, help="the checkout to write into")
    given = parser.parse_args()
    scale, out, into = SCALES[given.scale], given.out, given.into
    stuff = material(scale)
    steps = [json.loads(line) for line in (out / "seconds.jsonl").read_text().splitlines()]
    explained = [arm for arm in present(out) if not arm.endswith("_10")]
    result = {
        "device": steps[-1]["device"],
        "versions": {k: v for k, v in steps[-1].items() if k not in ("what", "seconds", "device")},
        "seconds": {step["what"]: step["seconds"] for step in steps},
        "classifiers": classifiers(out, stuff),
        "frozen": frozen(out, stuff, scale),
        "differences": differences(out, stuff),
        "probes": probes(out, stuff, scale),
        "grad_cam": {
            arm: {layer: heat(out, stuff, arm, layer) for layer in layers_of(out)}
            for arm in explained
        },
    }
    runs.save_json(into / "studies" / "paper_scale.json", result)
    logs = [pd.read_csv(f).assign(run=f.stem) for f in sorted(out.glob("*_*.csv"))]
    runs.save_table(
        into / "studies" / "paper_scale" / "log.csv", pd.concat(logs).to_dict("records")
    )
    page = into / "docs" / "results.md"
    before, _, after = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = after.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{tables(result)}\n{MARKS[1]}{after}", encoding="utf-8")
    figures.set_style()
    sns.set_context("notebook")
    drawn = into / "figures"
    figures.save(draw_course(out, result), drawn / "paper_scale_pretraining.png")
    figures.save(draw_confusion(result), drawn / "paper_scale_confusion.png")
    figure = draw_explanations(out, stuff, "paper", layers_of(out)[-1])
    figures.save(figure, drawn / "paper_scale_grad_cam.jpg")


if __name__ == "__main__":
    main()
