"""Plan a cohort of drawn slides: sites, readers, clinical columns.

Every slide is a polyp. It has a lab, a scanner, a stain, a thickness, a focus and a plane of
section; its tiles differ in what `parameters.OF_A_TILE` names. Seven simulated readers vote
on each tile of a serrated polyp, HP or SSA, and their majority is the label that a data set would
publish. Normal mucosa and tubular adenoma, in cohorts that ask for them, are not in dispute.

Sources: Wei et al., arXiv 2101.12355 (2021), for the histogram of votes.
Synthetic throughout: no number measured on it says anything about patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crc_helpers.tissue.parameters import (
    CLASS_NAMES,
    CRITERIA,
    INTERNAL,
    KINDS,
    LOOKS,
    SITES,
    UNEQUIVOCAL,
    TissueParameters,
    distortion,
    kind_of,
)
from crc_helpers.tissue.slide import Slide

TILES_PER_SLIDE = 6
SHORTCUTS = ("ink", "stain")
SERRATED = tuple(KINDS.index(name) for name in CLASS_NAMES)  # HP and SSA among KINDS
SSA_SLIDES = 0.33  # share of polyps that are SSA
SSA_TILES = (0.05, 0.78)  # share of SSA-like tiles in the slides of either kind of polyp
# Severity of HP-like tiles is half a Beta variable, of SSA-like ones 0.5 + half another. These and
# the readers are fitted to the published histogram of votes (Wei et al. 2021).
SEVERITY = ((1.18, 1.30), (0.54, 0.39))
READER_BIAS = 0.115 * np.array([-1.5, -0.9, -0.4, 0.0, 0.35, 0.85, 1.6])  # added to the threshold
READER_SKILL = 7.4 * np.array([0.8, 1.3, 1.0, 1.2, 0.9, 1.1, 0.7])  # slope of the logistic curve
# Polyp size (logarithm of millimetres, mean and spread) and share in the right colon of either
# kind, set so that both together tell the polyps apart about as well as the study needs that adds
# them to morphology and goes from an AUC of .659 to .929 (Hum Pathol 2023, pubmed 37044202).
# In the order of KINDS; "normal" is a fold of mucosa taken for a small polyp. The outer two are
# plausible, not fitted.
SIZE = ((np.log(3.5), np.log(4.0), np.log(10.5), np.log(7.0)), 0.55)
RIGHT_COLON = (0.5, 0.22, 0.78, 0.55)
RIGHT = ("Cecum", "Ascending colon", "Transverse colon")
LEFT = ("Descending colon", "Sigmoid colon", "Rectum")


@dataclass(frozen=True)
class Cohort:
    """What is known about n tiles before one pixel is drawn.

    parameters: n of them. seeds: int64 (n,), one a slide. slide: str (n,), one polyp each.
    true_label: int64 (n,), index into class_names by `kind_of`. votes: int64 (n,), readers of seven
    who say SSA, -1 where neither HP nor SSA is in question. label: int64 (n,), the majority of the
    seven, else the true label: what a data set would publish. table: a row a tile of what else
    would be known: Scanner, Polyp Size (mm), Colon Site.
    """

    parameters: tuple[TissueParameters, ...]
    seeds: np.ndarray
    slide: np.ndarray
    true_label: np.ndarray
    votes: np.ndarray
    label: np.ndarray
    table: pd.DataFrame

    seed: int
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def slides(self) -> int:
        """How many slides there are; the last may have fewer tiles."""
        return -(-len(self.seeds) // TILES_PER_SLIDE)

    @property
    def names(self) -> list[str]:
        """File names of the tiles."""
        return [f"synthetic_{self.seed}_{i:06d}.png" for i in range(len(self.seeds))]

    def one(self, slide: int) -> "Slide":
        """A slide, counted from 0, ready to be drawn."""
        first = slide * TILES_PER_SLIDE
        rows = slice(first, first + TILES_PER_SLIDE)
        seed = int(self.seeds[first])
        return Slide(self.parameters[rows], seed, first, tuple(self.names[rows]))

    def annotations(self) -> pd.DataFrame:
        """What a data set would publish, a row a tile, in MHIST's columns and some more.

        The partition is by slide; its test part has MHIST's share, 31 %.
        """
        chance = column_stream(self.seed, "partition").random(self.slides)
        test = np.repeat(chance < 0.31, TILES_PER_SLIDE)[: len(self.seeds)]
        published = {
            "Image Name": self.names,
            "Majority Vote Label": np.array(self.class_names)[self.label],
            "Number of Annotators who Selected SSA (Out of 7)": self.votes,
            "Partition": np.where(test, "test", "train"),
            "Slide": self.slide,
        }
        return pd.DataFrame(published).join(self.table)

    def truth(self) -> pd.DataFrame:
        """What only the generator knows, a row a tile."""
        known = {
            "Image Name": self.names,
            "True Label": np.array(self.class_names)[self.true_label],
            "Severity": [p.severity for p in self.parameters],
            "Distortion": [distortion(p) for p in self.parameters],
        }
        return pd.DataFrame(known)


def reader_votes(distortions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Votes for SSA, int64 (n,), of seven readers with a bias, a skill and logistic noise each."""
    evidence = (distortions[:, None] - UNEQUIVOCAL - READER_BIAS) * READER_SKILL
    return (evidence + rng.logistic(size=evidence.shape) > 0).sum(1)


def make_cohort(
    n: int,
    seed: int,
    shortcut: str | None = None,
    strength: float = 0.9,
    scanner: str | None = None,
    kinds: Sequence[str] = CLASS_NAMES,
) -> Cohort:
    """Plan n tiles of n / TILES_PER_SLIDE polyps; a larger n begins with the same parameters.

    `shortcut` plants a mark that goes with the published label, or none (None): "ink", a dot in the
    corner of the tile; "stain", a bluer stain of the whole slide, by the polyp's kind. A share
    (1 + strength) / 2 of SSA carries it, and (1 - strength) / 2 of the rest: 1 gives every label
    away, 0 says nothing, -1 misleads. `scanner` puts all slides on one of SITES.

    `kinds`: which of KINDS to draw, in any order, about as many polyps of each. Asking for HP or
    SSA draws both, since one serrated polyp has tiles of either: together they get two kinds'
    share, a third of it SSA polyps. Raises ValueError.
    """
    if n < 1:
        raise ValueError(f"n = {n} must be at least 1")
    if shortcut not in (None, *SHORTCUTS) or not -1 <= strength <= 1:
        raise ValueError(
            f"shortcut {shortcut!r} of strength {strength}: expected one of "
            f"{', '.join(SHORTCUTS)} or None, and -1 to 1"
        )
    if scanner not in (None, *SITES):
        raise ValueError(f"scanner {scanner!r}: expected one of {', '.join(SITES)} or None")
    unknown = [name for name in kinds if name not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds {', '.join(unknown)!r}: expected some of {', '.join(KINDS)}")
    both = CLASS_NAMES if set(CLASS_NAMES) & set(kinds) else ()
    names = tuple(name for name in KINDS if name in {*kinds, *both})
    slide = np.arange(n) // TILES_PER_SLIDE
    kind = plan_kinds(names, slide, seed)
    polyp = kind == SERRATED[1]
    columns = plan_morphology(n, slide, polyp, seed) | plan_artefacts(n, seed)
    lab, scanners = plan_slides(slide, seed, scanner)
    columns |= lab
    for name in set(LOOKS) & set(names):
        for parameter, (mean, spread) in LOOKS[name].items():
            own, other = vary(parameter, mean, spread, slide, seed), columns.get(parameter, 0.0)
            own = np.clip(own, mean - 2 * spread, mean + 2 * spread)  # no adenoma without dysplasia
            columns[parameter] = np.where(kind == KINDS.index(name), own, other)
    drawn = as_parameters(columns)
    place = np.array([names.index(name) if name in names else -1 for name in KINDS])
    true_label = place[[KINDS.index(kind_of(p)) for p in drawn]]
    worst = np.array([distortion(p) for p in drawn])
    in_question = np.isin(kind, SERRATED)
    votes = np.where(in_question, reader_votes(worst, column_stream(seed, "votes")), -1)
    label = np.where(in_question, place[SERRATED[0]] + (votes >= 4), true_label)
    if shortcut:
        ssa = label == place[SERRATED[1]] if shortcut == "ink" else polyp
        draws = column_stream(seed, "shortcut").random(n)
        draws = draws if shortcut == "ink" else draws[: slide[-1] + 1][slide]
        marked = draws < 0.5 + strength * (ssa - 0.5)
        if shortcut == "ink":
            columns["ink_dot"] = marked.astype(float)
        else:
            columns["stain_turn"] = np.clip(columns["stain_turn"] + 6.0 * marked - 3.0, -12, 12)
    parameters = as_parameters(columns)
    seeds = [np.random.SeedSequence((seed, i)).generate_state(1)[0] for i in range(slide[-1] + 1)]
    return Cohort(
        parameters,
        np.array(seeds, np.int64)[slide],
        np.array([f"slide-{i:04d}" for i in slide + 1]),
        true_label,
        votes.astype(np.int64),
        label,
        pd.DataFrame({"Scanner": scanners, **clinical(slide, kind, seed)}),
        seed,
        names,
    )


def plan_kinds(names: Sequence[str], slide: np.ndarray, seed: int) -> np.ndarray:
    """What each polyp is, int (n,), index into KINDS; serrated ones are the same in any cohort."""
    slides = slide[-1] + 1
    ssa = column_stream(seed, "polyp").random(slides) < SSA_SLIDES
    share = (len(names) * column_stream(seed, "tissue").random(slides)).astype(int)
    kind = np.array([KINDS.index(name) for name in names])[share]
    return np.where(np.isin(kind, SERRATED), np.array(SERRATED)[ssa.astype(int)], kind)[slide]


def vary(
    name: str, mean: float | np.ndarray, spread: float, slide: np.ndarray, seed: int
) -> np.ndarray:
    """A parameter that is a slide's own, (n,), normal about its mean (slides,), within bounds."""
    values = mean + spread * column_stream(seed, name).standard_normal(slide[-1] + 1)
    return np.clip(values, *TissueParameters.__dataclass_fields__[name].metadata["bounds"])[slide]


def as_parameters(columns: dict[str, np.ndarray]) -> tuple[TissueParameters, ...]:
    """Parameters of n tiles from columns (n,)."""
    rows = np.stack(list(columns.values()), 1).tolist()
    return tuple(TissueParameters(**dict(zip(columns, row, strict=True))) for row in rows)


def column_stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one column of a cohort, so that a longer column begins the same."""
    return np.random.default_rng([seed, *name.encode()])


def plan_morphology(
    n: int, slide: np.ndarray, polyp: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Severity and the criteria that go with it, a tile; confounders of both kinds, a slide."""
    polyps = slide[-1] + 1
    normal = {
        name: column_stream(seed, name).standard_normal(polyps)[slide]
        for name in ("goblets", "base", "length", "diameter", "spacing", "gape", "mucus")
    }
    uniform = {
        name: column_stream(seed, name).random(polyps)[slide]
        for name in ("rich", "position", "serration", "branching", "prolapse", "prolapsed")
    }
    ssa_like = column_stream(seed, "kind").random(n) < np.where(polyp, SSA_TILES[1], SSA_TILES[0])
    halves = [0.5 * column_stream(seed, f"severity {i}").beta(*SEVERITY[i], n) for i in (0, 1)]
    severity = np.where(ssa_like, np.minimum(0.5 + halves[1], 1), np.minimum(halves[0], 0.4999))
    gains = {name: np.exp(0.35 * column_stream(seed, name).standard_normal(n)) for name in CRITERIA}
    mean = sum(weight * gains[name] for name, weight in CRITERIA.items())
    # A florid crypt meets all criteria; the milder one may meet mainly one of them.
    columns = {"severity": severity} | {
        name: np.clip(1 + (gain / mean - 1) * (1 - severity), 0, 2) for name, gain in gains.items()
    }
    rich = uniform["rich"] < np.where(polyp, 0.10, 0.20)  # goblet-rich HP
    goblets = np.clip(0.42 + 0.25 * rich - 0.10 * polyp + 0.18 * normal["goblets"], 0, 1)
    at_base = np.clip(0.12 + 0.18 * polyp + 0.25 * rich + 0.12 * normal["base"], 0, 1)
    prolapsed = uniform["prolapsed"] < np.where(polyp, 0.08, 0.16)
    return columns | {
        "goblet_share": goblets,
        "goblet_share_at_base": at_base,
        "serration": 0.5 + 0.5 * uniform["serration"],
        # HP gapes more, SSA stands wider apart: the shares of white, of gland and of stroma, which
        # a colour meter can see, tell the two apart badly.
        "gape": np.clip(0.70 - 0.5 * polyp + 0.25 * normal["gape"], 0, 1),
        "mucus": np.clip(0.35 + 0.3 * normal["mucus"], 0, 1),
        "branching": 0.14 + 0.16 * uniform["branching"] + 0.15 * polyp,
        "prolapse": prolapsed * (0.4 + 0.6 * uniform["prolapse"]),
        # Beyond 1 the bases lie below the tile. Turned and mirrored, no part of a tile then shows
        # the diagnostic region more often than another.
        "base_position": 0.75 + 0.50 * uniform["position"],
        "crypt_length": np.clip(420 + 28 * normal["length"], 370, 510),
        "crypt_diameter": np.clip(70 + 6 * normal["diameter"], 50, 90),
        "crypt_spacing": np.clip(96 + 8 * polyp + 6 * normal["spacing"], 85, 130),
    }


def plan_artefacts(n: int, seed: int) -> dict[str, np.ndarray]:
    """Folds, bubbles and pen, each in a few tiles of a hundred, whatever the diagnosis."""
    rare = {"fold": 0.04, "bubble": 0.03, "pen": 0.03}
    chance = {name: column_stream(seed, name).random((2, n)[::-1]).T for name in rare}
    return {
        name: np.where(chance[name][0] < share, 0.3 + 0.7 * chance[name][1], 0.0)
        for name, share in rare.items()
    }


def plan_slides(
    slide: np.ndarray, seed: int, only: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stain, light, focus and plane of section, a slide's own, and the scanner, str (n,)."""
    slides = slide[-1] + 1
    names = list(SITES)
    scanner = column_stream(seed, "scanner").integers(INTERNAL, size=slides)
    if only:
        scanner = np.full(slides, names.index(only))
    mean_and_spread = {
        "haematoxylin": (1.05, 0.16),
        "eosin": (0.95, 0.22),
        "stain_turn": (1.5, 4.0),
        "lamp": (0.3, 0.35),
        "contrast": (1.05, 0.06),
        "focus": (0.5, 0.2),
        "noise": (3.0, 0.5),
        "cellularity": (0.5, 0.2),
        "thickness": (4.8, 0.5),
    }
    columns = {}
    for name, (mean, spread) in mean_and_spread.items():
        shift = np.array([SITES[site].get(name, 0.0) for site in names])[scanner]
        columns[name] = vary(name, mean + shift, spread, slide, seed)
    plane, tilt = column_stream(seed, "plane").random((slides, 2)).T
    columns["cut_angle"] = np.where(plane < 0.68, 6 * tilt, 50 + 35 * tilt)[slide]
    return columns, np.array(names)[scanner][slide]


def clinical(slide: np.ndarray, kind: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Size of the polyp in millimetres and its site in the colon, one a slide."""
    slides = slide[-1] + 1
    spread = column_stream(seed, "size").standard_normal(slides)[slide]
    right, place = column_stream(seed, "site").random((slides, 2))[slide].T
    size = np.exp(np.array(SIZE[0])[kind] + SIZE[1] * spread)
    in_right = right < np.array(RIGHT_COLON)[kind]
    names = np.where(in_right[:, None], RIGHT, LEFT)
    site = names[np.arange(len(slide)), (3 * place).astype(int)]
    return {"Polyp Size (mm)": np.clip(np.round(size), 1, 40).astype(int), "Colon Site": site}
