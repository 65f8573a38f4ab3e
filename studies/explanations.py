"""What costs training in lesson 09: the maps of networks trained otherwise, or on ink."""

import numpy as np
import pandas as pd
from common import Study, Trainer, main, rows_of
from torch import Tensor

from crc_helpers.claims import Recipe, scores
from crc_helpers.explanations import all_maps, at_size, blank, blind_maps, rank_correlation, ssim
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import grad_cam, hits, mass_inside
from crc_helpers.runs import RunError
from crc_helpers.shortcuts import RETRAINED, ink_table, marked_part, tile_batch, train_network

ARMS = ("trained", *RETRAINED, "shuffled labels", "untrained")
MAPS = ("Grad-CAM", "HiResCAM", "LayerCAM", "Integrated Gradients", "occlusion")
COSTLY = 64  # test tiles of a row whose maps need many passes
SIDE = 112  # at which maps meet regions, pixels
COMPARED = 48  # at which maps meet maps


def plan(seeds: int) -> list[dict]:
    """Plan seven networks a seed, and twice as many seeds of the one that is trained on ink.

    Ink decides the answer on a dozen test tiles a seed, hence more of them.
    """
    return rows_of(seeds, arm=ARMS) + rows_of(2 * seeds, arm=["ink"])


def row(t: Trainer, arm: str) -> dict:
    """Scores of the maps of one network on the test tiles.

    Columns end in the name of a map. spearman, ssim: its agreement with the same map of the network
    "trained", both for the class which that one predicts; pair, pair_ssim: the agreement of that
    network's maps of two different tiles. blank: the share of Grad-CAM's maps that are zero. hit,
    mass: with the diagnostic region, for the class predicted; area: the region's share of a tile.
    The arm "ink" has others: see `ink_means`.
    """
    if len(t.tiles.class_names) != 2:
        raise RunError(f"explanations: of two classes, and there are {len(t.tiles.class_names)}")
    if arm == "ink":
        test = marked_part(t, t.parts.test)
        return ink_means(ink_table(t, train_network(t, "ink"), test))
    test = np.random.default_rng(t.seed).permutation(t.parts.test)
    first, network = train_network(t, "trained"), train_network(t, arm)
    result = t.score(lambda i: predict(network, t.tiles.images.pick(i), t.recipe.size, t.fabric))
    images = tile_batch(t.tiles, test, t.recipe.size).to(t.fabric.device)
    targets = grad_cam(first, images).targets.to(images.device)
    result |= agreement_scores(*(all_maps(n, images, targets, COSTLY) for n in (first, network)))
    if t.tiles.masks is None:
        return result
    maps = all_maps(network, images, grad_cam(network, images).targets, COSTLY)
    maps["another tile's map"] = maps["Grad-CAM"].roll(len(test) // 2, 0)
    maps |= blind_maps(images, maps["Grad-CAM"].shape[-1])
    step = t.tiles.masks.shape[-1] // SIDE
    return result | region_scores(maps, t.tiles.masks[test][:, ::step, ::step])


def agreement_scores(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return how far two networks' maps (N, h, w) of the same tiles agree, by method.

    As a landmark, how far the first one's maps of different tiles do: the mean of five pairings.
    """
    result = {"blank": float(blank(other["Grad-CAM"]).mean())}
    for name in one:
        a, b = (at_size(maps[name], COMPARED) for maps in (one, other))
        pairs = [rank_correlation(a, np.roll(a, k, axis=0)) for k in range(1, min(6, len(a)))]
        result[f"spearman {name}"] = float(np.nanmean(rank_correlation(a, b)))
        result[f"pair {name}"] = float(np.nanmean(pairs))
    a, b = (at_size(maps["Grad-CAM"], COMPARED) for maps in (one, other))
    for name, second in (("ssim", b), ("pair_ssim", np.roll(a, 1, axis=0))):
        result[f"{name} Grad-CAM"] = float(np.nanmean(ssim(a, second)))
    return result


def region_scores(maps: dict[str, Tensor], region: np.ndarray) -> dict[str, float]:
    """Return mean hit and mass of maps with regions (N, H, W), by name, and chance: the area.

    Tiles without a region are left out, and in each score maps that are zero. A method with fewer
    maps has those of the first tiles.
    """
    has = region.any(axis=(1, 2))
    result = {"area": float(region[has].mean())}
    for name, heat in maps.items():
        use = has[: len(heat)]
        pixels, inside = at_size(heat, region.shape[-1])[use], region[: len(heat)][use]
        for score, measure in (("hit", hits), ("mass", mass_inside)):
            result[f"{score} {name}"] = float(np.nanmean(measure(pixels, inside)))
    return result


def ink_means(table: pd.DataFrame) -> dict:
    """Return scores, counts of tiles and means of the columns of `shortcuts.ink_table`.

    flips: the share of dotted tiles that ink decided. A column's own name stands for its mean over
    these; after the word undecided, over the other dotted tiles; after free, over free ones.
    given away NAME: the share of dotted tiles predicted as class 1 whose hottest cell holds ink.
    """
    p, dotted = table["p"].to_numpy(), table["dotted"]
    result = scores(table["label"].to_numpy(), np.stack([1 - p, p], axis=1)) | {
        "tested": len(table),
        "accuracy_without_ink": float((table["said_without"] == table["label"]).mean()),
        "flips": float(table.loc[dotted, "decided"].mean()),
    }
    kinds = {"": table["decided"], "undecided ": dotted & ~table["decided"], "free ": table["free"]}
    named = [c for c in table if c.startswith(("hit", "mass", "chance", "other"))]
    for word, rows in kinds.items():
        result[f"{word or 'decided '}tiles"] = int(rows.sum())
        kept = [c for c in named if word == "free " or not c.startswith("other")]
        result |= {word + c: float(table.loc[rows, c].mean()) for c in kept}
    shown = table[dotted & (table["said"] == 1)]
    result["dotted said 1"] = len(shown)
    return result | {f"given away {m}": float(shown[f"hit {m}"].mean()) for m in MAPS}


STUDY = Study("explanations", plan, row, Recipe(n_tiles=600, steps=150))

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
