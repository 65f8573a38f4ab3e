"""What costs training in lesson 08: the maps of networks trained otherwise, or on ink."""

from collections.abc import Iterator

import numpy as np
from common import Study, main
from torch import Tensor

from crc_helpers.claims import Recipe, Trial
from crc_helpers.explanations import (
    AGAIN,
    all_maps,
    at_size,
    blank,
    blind_maps,
    ink_table,
    marked_part,
    rank_correlation,
    ssim,
    tile_batch,
    train_network,
)
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import grad_cam, hits, mass_inside
from crc_helpers.runs import RunError

ARMS = ("trained", *AGAIN, "shuffled labels", "untrained")
METHODS = ("Grad-CAM", "HiResCAM", "LayerCAM", "Integrated Gradients", "occlusion")
COSTLY = 64  # test tiles of a row whose maps need many passes
SIDE = 112  # at which maps meet regions, pixels
COMPARED = 48  # at which maps meet maps


def plan(seeds: int) -> Iterator[dict]:
    """Yield seven networks a seed, and twice as many seeds of the one that is trained on ink.

    Ink decides the answer on a dozen test tiles a seed, hence more of them.
    """
    yield from ({"seed": seed, "arm": arm} for seed in range(seeds) for arm in ARMS)
    yield from ({"seed": seed, "arm": "ink"} for seed in range(2 * seeds))


def row(t: Trial, arm: str) -> dict:
    """Measure the maps of one network on the test tiles.

    Columns end in the name of a map. spearman, ssim: agreement with that map of the network
    "trained", for the same classes; pair, pair_ssim: of two tiles' maps of that network. blank: the
    share of Grad-CAM's maps that are zero. hit, mass: with the diagnostic region; area, which is
    chance. "ink" has others: see `_ink_row`.
    """
    if len(t.tiles.class_names) != 2:
        raise RunError(f"explanations: there are {len(t.tiles.class_names)} classes, the trials are"
                       " about two")  # fmt: skip
    if arm == "ink":
        return _ink_row(t)
    test = np.random.default_rng(t.seed).permutation(t.parts.test)
    first, network = train_network(t, "trained"), train_network(t, arm)
    found = t.score(lambda i: predict(network, t.tiles.images.pick(i), t.recipe.size, t.fabric))
    images = tile_batch(t.tiles, test, t.recipe.size).to(t.fabric.device)
    targets = grad_cam(first, images).targets
    found |= agreement_scores(
        *(all_maps(n, images, targets.to(images.device), COSTLY) for n in (first, network))
    )
    if t.tiles.masks is None:
        return found
    maps = all_maps(network, images, grad_cam(network, images).targets, COSTLY)
    maps["another tile's map"] = maps["Grad-CAM"].roll(len(test) // 2, 0)
    maps |= blind_maps(images, maps["Grad-CAM"].shape[-1])
    step = t.tiles.masks.shape[-1] // SIDE
    return found | region_scores(maps, t.tiles.masks[test][:, ::step, ::step])


def agreement_scores(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return how far two networks' maps (N, h, w) of the same tiles agree, by method.

    As a landmark, how far the first one's maps of different tiles do: the mean of five pairings.
    """
    found = {"blank": float(blank(other["Grad-CAM"]).mean())}
    for name in one:
        a, b = (at_size(maps[name], COMPARED) for maps in (one, other))
        pairs = [rank_correlation(a, np.roll(a, k, axis=0)) for k in range(1, min(6, len(a)))]
        found |= {f"spearman {name}": float(np.nanmean(rank_correlation(a, b))),
                  f"pair {name}": float(np.nanmean(pairs))}  # fmt: skip
    a, b = (at_size(maps["Grad-CAM"], COMPARED) for maps in (one, other))
    for name, second in (("ssim", b), ("pair_ssim", np.roll(a, 1, axis=0))):
        found[f"{name} Grad-CAM"] = float(np.nanmean(ssim(a, second)))
    return found


def region_scores(maps: dict[str, Tensor], region: np.ndarray) -> dict[str, float]:
    """Return mean hit and mass of maps with regions (N, H, W), by name, and chance: the area.

    Tiles without a region are left out, and in each score maps that are zero. A method with fewer
    maps has those of the first tiles.
    """
    there, found = region.any(axis=(1, 2)), {"area": float(region[region.any(axis=(1, 2))].mean())}
    for name, heat in maps.items():
        use = there[: len(heat)]
        pixels, inside = at_size(heat, region.shape[-1])[use], region[: len(heat)][use]
        for score, measure in (("hit", hits), ("mass", mass_inside)):
            found[f"{score} {name}"] = float(np.nanmean(measure(pixels, inside)))
    return found


def _ink_row(t: Trial) -> dict:
    """Counts of tiles, accuracies, and means of `ink_table`: of decided tiles by the name alone,
    of the other dotted tiles and of free ones with that word before it. "given away": the share of
    the dotted tiles said to be of class 1 whose hottest cell holds the ink.
    """
    test = marked_part(t, t.parts.test)
    table = ink_table(t, train_network(t, "ink"), test)
    p = np.stack([1 - table["p"], table["p"]], axis=1)
    found = t.score(lambda _: p, test) | {"tested": len(test)}
    dotted = table["dotted"]
    found |= {"accuracy_without_ink": float((table["said_without"] == table["label"]).mean()),
              "flips": float(table.loc[dotted, "decided"].mean())}  # fmt: skip
    kinds = {"": table["decided"], "undecided ": dotted & ~table["decided"], "free ": table["free"]}
    named = [c for c in table if c.startswith(("hit", "mass", "chance", "other"))]
    for word, rows in kinds.items():
        found[f"{word or 'decided '}tiles"] = int(rows.sum())
        kept = [c for c in named if word == "free " or not c.startswith("other")]
        found |= {word + c: float(table.loc[rows, c].mean()) for c in kept}
    shown = table[dotted & (table["said"] == 1)]
    found["dotted said 1"] = len(shown)
    return found | {f"given away {m}": float(shown[f"hit {m}"].mean()) for m in METHODS}


STUDY = Study("explanations", plan, row, Recipe(n_tiles=600, steps=150))

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
