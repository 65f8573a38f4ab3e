"""How figures look: one colour for one meaning in every lesson, and fonts that have every name."""

import warnings
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib import font_manager, get_cachedir
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

# One colour, one meaning: no two of these share a colour, and those of one differ for readers
# who see no red or no green; a test measures both. `colours` looks a name up.
CLASSES = ["#0173b2", "#d55e00", "#fc7d95", "#4c925a", "#c8207b", "#894553"]  # HP, SSA, then others
ARMS = {
    "pre-trained": "#00692e",  # and fine-tuned
    "pre-trained, probe first": "#7968ae",
    "pre-trained, probe": "#5fbf6a",
    "probe": "#5fbf6a",
    "the paper's recipe": "#af7a72",
    "from scratch": "#e8a000",
    "random encoder": "#f869eb",
    "colour only": "#009190",
}
RECIPES = {"tissue": "#056869", "paper": "#614bfc", "gentle": "#2abda7"}  # of views
METHODS = {
    "Grad-CAM": "#613415",
    "HiResCAM": "#9797fa",
    "LayerCAM": "#4c93b8",
    "Integrated Gradients": "#999d78",
    "occlusion": "#b121d2",
}
SPARE = ["#ff944b", "#404104", "#dbb7ee", "#66720c", "#a98eaf", "#083428"]  # for other names
SLIDES = ["#98c8d4", "#f1ab9a", "#d6c96d", "#c2f9b5", "#bdf0fe", "#40fedc", "#ffc2c7", "#9fcbff"]
PARTS = {"train": "#695c4f", "val": "#856536", "test": "#c29f6a", "discarded": "#d7bba1"}
CONTROLS = ["#808080", "#404040", "#b3b3b3"]
VALUE, CHOSEN = "#3b3b6d", "#b3003b"  # a measurement without a name of its own, one picked out
REGION, BOX = "#00e5ff", "#ffd400"  # the pixels that decide, and pixels found or lost
CHANCE = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
HEAT = "inferno"  # perceptually uniform, readable with any colour vision


def set_style() -> None:
    """Set fonts, sizes and resolution for a whole lesson.

    Pictures in notebooks are JPEG: as PNG the grain of tissue makes files that code hosts refuse.
    """
    from matplotlib_inline.backend_inline import set_matplotlib_formats  # not outside Jupyter

    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 72})
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rc("figure", dpi=80)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=110)
    plt.rc("text", parse_math=False)  # a $ in the name of a class or file is no formula
    plt.rc("axes.spines", top=False, right=False)
    # Without titley matplotlib lays out every tick, even hidden ones, to place a title.
    plt.rc("axes", titlesize=12, titleweight="bold", titley=1.0)
    asian = filter(None, map(font_with, "漢한"))  # for titles of axes, which are made before names
    plt.rc("font", family=list(dict.fromkeys(["sans-serif", *asian])))


def drawable(text: str) -> str:
    """Return a text that matplotlib can draw: characters that no font here has are escaped.

    A font that has what those in use lack is used for all axes made from here on.
    """
    fonts = {c: c.isprintable() and font_with(c) for c in set(text) - {"\n"}}
    families = [*plt.rcParams["font.family"], *filter(None, fonts.values())]
    plt.rcParams["font.family"] = list(dict.fromkeys(families))
    if lacking := "".join(c for c, font in fonts.items() if font is None):
        warnings.warn(
            f"no font here has {lacking}, drawn as numbers: install one, such as Noto, and delete"
            f" {get_cachedir()}, where matplotlib keeps its list of fonts",
            stacklevel=2,
        )
    return "".join(c if fonts.get(c, c) else c.encode("unicode_escape").decode() for c in text)


@cache
def font_with(character: str) -> str | None:
    """Return the family of a font here that has a character, one in use if it can."""
    used = [(FontProperties(family=[name]), name) for name in plt.rcParams["font.family"]]
    fonts = [(font_manager.findfont(font), name) for font, name in used]
    fonts += [(font.fname, font.name) for font in font_manager.fontManager.ttflist]
    for path, name in fonts:
        boxes = "LastResort" in name.replace(" ", "")  # it has them all, as boxes
        if not boxes and Path(path).is_file() and FT2Font(path).get_char_index(ord(character)):
            return name
    return None


def named_colour(name: str) -> str | None:
    """Return the colour that an arm, a recipe or a method has in every lesson, None of another.

    What follows a comma may be more than its name: "pre-trained, 0.001".
    """
    colours_by_name, words = (
        ARMS | RECIPES | METHODS,
        name.replace("frozen probe", "probe").split(", "),
    )
    keys = (", ".join(words[:k]) for k in range(len(words), 0, -1))
    return next((colours_by_name[key] for key in keys if key in colours_by_name), None)


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name: its own, or for those that have none the next spare one."""
    spare = chain(SPARE, sns.husl_palette(len(names)).as_hex())
    return {name: named_colour(name) or next(spare) for name in names}
