"""A tile's parameters, the rules that make its diagnosis, and what sites and kinds add to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

CLASS_NAMES = ("HP", "SSA")
KINDS = ("Normal", "HP", "SSA", "Tubular adenoma")
UNEQUIVOCAL = 0.5  # distortion, or dysplasia, from which a crypt alone makes the diagnosis
WITHIN_NORMAL = 0.1  # serration and distortion below which a mucosa is normal
CRITERIA = {"basal_dilatation": 0.4, "horizontal_growth": 0.4, "serration_depth": 0.2}
# What may differ between tiles of a slide; all else is the patient's, the lab's, the scanner's.
OF_A_TILE = ("severity", *CRITERIA, "fold", "bubble", "pen", "ink_dot")
STREAMS = ("turn", "plane", "crypt", "cells", "stroma", "vessels", "texture", "sensor", "artefacts")
# A site is a lab and a scanner: what it adds to the mean of each parameter.
SITES = {
    "Scanner A": {},
    "Scanner B": {
        "haematoxylin": -0.2,
        "eosin": 0.35,
        "stain_turn": -7.0,
        "lamp": -1.0,
        "contrast": -0.18,
        "focus": 0.4,
        "noise": 2.0,
    },
    # An external site, of which no cohort has a slide unless it is asked for: pale, a yellow lamp,
    # soft optics. Nuclei are hard to see there, which colour jitter in training does not mend.
    "Scanner C": {
        "haematoxylin": -0.4,
        "eosin": -0.3,
        "lamp": -1.0,
        "contrast": -0.2,
        "focus": 0.4,
        "noise": 1.5,
    },
}
INTERNAL = 2  # so many of them, the first, a cohort is from
# Mean and spread over slides of what normal mucosa and adenomas do not share with serrated polyps.
# Wide lumina and a cellular stroma in normal mucosa, the reverse in adenomas, are there for the
# colour meter: without them it would see the mucin of one and the chromatin of the other at once.
LOOKS = {
    "Normal": {
        "severity": (0, 0),
        "serration": (0, 0),
        "prolapse": (0, 0),
        "branching": (0.02, 0),
        "goblet_share": (0.62, 0.12),
        "goblet_share_at_base": (0.40, 0.12),
        "gape": (0.65, 0.25),
        "cellularity": (0.65, 0.18),
    },
    "Tubular adenoma": {
        "severity": (0, 0),
        "serration": (0, 0),
        "prolapse": (0, 0),
        "branching": (0.30, 0.05),
        "dysplasia": (0.78, 0.12),
        "gape": (0.50, 0.30),
        "crypt_diameter": (75, 6),
        "crypt_spacing": (98, 6),
        "cellularity": (0.35, 0.18),
    },
}


def bounded(default: float, low: float, high: float):
    """A dataclass field with a default and the closed interval it must lie in."""
    return field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True)
class TissueParameters:
    """One tile, as a histologist would describe it; out of bounds raises ValueError.

    `severity` is the architectural distortion of the tile's worst crypt. The three criteria
    of the rule scale what that severity brings: 1 is typical, 0 absent, 2 twice as much.
    """

    severity: float = bounded(0.2, 0, 1)  # latent distortion, 0 none to 1 florid
    serration_depth: float = bounded(1.0, 0, 2)  # how far serration reaches down, relative
    basal_dilatation: float = bounded(1.0, 0, 2)  # width of the crypt base, relative
    horizontal_growth: float = bounded(1.0, 0, 2)  # feet along the muscularis (L, T), relative
    serration: float = bounded(0.6, 0, 1)  # height of the saw teeth in the upper crypt
    goblet_share: float = bounded(0.4, 0, 1)  # goblet cells among the cells of the upper half
    goblet_share_at_base: float = bounded(0.1, 0, 1)  # the same among the cells of the base
    gape: float = bounded(0.4, 0, 1)  # width of the lumen where nothing dilates it
    mucus: float = bounded(0.3, 0, 1)  # bluish mucus in the lumen, none to thick
    branching: float = bounded(0.2, 0, 1)  # share of crypts with a side branch
    dysplasia: float = bounded(0.0, 0, 1)  # nuclei long, dark, in tiers; mucin lost; up to the top
    prolapse: float = bounded(0.0, 0, 1)  # crypts wide in the middle, muscle fibres between them
    cut_angle: float = bounded(0.0, 0, 90)  # degrees from the crypts' axis; 90 is a cross section
    base_position: float = bounded(0.8, 0.5, 1.3)  # height of the bases, 0 top to 1 bottom
    crypt_length: float = bounded(420.0, 370, 510)  # micrometres
    crypt_diameter: float = bounded(70.0, 50, 90)  # micrometres
    crypt_spacing: float = bounded(100.0, 85, 130)  # micrometres from axis to axis
    cellularity: float = bounded(0.5, 0, 1)  # lymphocytes in the lamina propria, none to dense
    thickness: float = bounded(4.0, 2, 8)  # micrometres of the section; thick ones are dark
    haematoxylin: float = bounded(1.0, 0.5, 1.6)  # stain strength, relative
    eosin: float = bounded(1.0, 0.4, 1.8)  # stain strength, relative
    stain_turn: float = bounded(0.0, -12, 12)  # degrees that the stain vectors turn, red to blue
    lamp: float = bounded(0.0, -1, 1)  # colour of the light, -1 yellow to 1 blue
    contrast: float = bounded(1.0, 0.7, 1.4)  # exponent of the scanner's tone curve
    focus: float = bounded(0.7, 0, 5)  # blur, standard deviation in micrometres
    noise: float = bounded(2.0, 0, 10)  # sensor noise, standard deviation in grey levels
    fold: float = bounded(0.0, 0, 1)  # a crease where the section lies double
    bubble: float = bounded(0.0, 0, 1)  # an air bubble under the cover slip
    pen: float = bounded(0.0, 0, 1)  # a stroke of the pathologist's marker
    ink_dot: float = bounded(0.0, 0, 1)  # a dot of ink in a corner: the planted shortcut

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (low, high) = getattr(self, item.name), item.metadata["bounds"]
            if not low <= value <= high:
                raise ValueError(f"{item.name} = {value} is outside [{low}, {high}]")


def weigh(dilatation, growth, serration):
    """The distortion of a crypt: the mean of its three features, weighted by CRITERIA."""
    return (
        CRITERIA["basal_dilatation"] * dilatation
        + CRITERIA["horizontal_growth"] * growth
        + CRITERIA["serration_depth"] * serration
    )


def distortion(parameters: TissueParameters) -> float:
    """Distortion of the worst crypt of a tile, 0 to 1, known before anything is drawn."""
    return float(weigh(*express(parameters, 1.0)))


def express(parameters: TissueParameters, susceptibility: float) -> tuple[float, float, float]:
    """Dilatation, growth and depth of serration, 0 to 1, of a crypt more or less susceptible."""
    scale = parameters.severity * susceptibility
    return tuple(min(1.0, scale * getattr(parameters, name)) for name in CRITERIA)


def diagnose(distortions: Sequence[float]) -> int:
    """1 (SSA) if one crypt is unequivocally distorted, else 0 (HP): WHO 2019."""
    return int((np.asarray(distortions) >= UNEQUIVOCAL).any())


def kind_of(parameters: TissueParameters) -> str:
    """What a tile shows, one of KINDS, by the rules alone.

    Dysplasia decides first: serrated lesions that turn dysplastic have no kind of their own here.
    """
    worst = distortion(parameters)
    if parameters.dysplasia >= UNEQUIVOCAL:
        return "Tubular adenoma"
    if max(worst, parameters.serration) < WITHIN_NORMAL:
        return "Normal"
    return CLASS_NAMES[diagnose([worst])]


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """Random numbers for one feature of one slide, independent of every other feature's."""
    return np.random.default_rng(np.random.SeedSequence((seed, STREAMS.index(name), index)))
