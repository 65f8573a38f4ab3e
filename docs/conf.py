"""The site: lessons with their stored outputs, documents, and a page for each room of the helper.

`make site` builds it into build/site. It executes nothing, and no page loads anything from another
host.
"""

import importlib.util
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # also the folder of the sources

project = "Self-supervised pathology"
author = "The crc-helpers authors"
copyright = "code MIT, text and figures CC BY 4.0"
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

root_doc = "README"
include_patterns = ["*.md", "docs/**", "notebooks/*", "exercises/*", "exercises/solutions/*"]
include_patterns += ["benchmarks/[A-Z]*.md", "tests/faults/*.md"]
CONTENTS = {
    "Lessons": ["notebooks/*"],
    "Exercises": ["exercises/*"],
    "Teaching": ["docs/teaching/*"],
    "More": ["docs/*", "benchmarks/*", "tests/faults/*", "C*", "SECURITY"],
    "Functions": ["docs/api/*"],
}

extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4
default_role = "code"
suppress_warnings = ["toc.not_included"]  # slides and solutions: other pages link there
autodoc_typehints_format = "short"
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # one search field, not two
html_sidebars = {"**": ["navbar-logo.html", "search-field.html", "sbt-sidebar-nav.html"]}
html_context = {"default_mode": "auto"}
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
html_static_path = [str(mathjax / "static"), "site.css"]
html_css_files = ["site.css"]
mathjax_path = "mathjax/tex-chtml.js"
unused = ["sre", "a11y", "mml-*", "*svg*", "output/svg*", "tex-chtml-*"]  # 20 of its 24 MB
exclude_patterns = [f"mathjax/{name}" for name in unused]

API = ROOT / "docs" / "api"
API.mkdir(exist_ok=True)
for room in sorted((ROOT / "crc_helpers").glob("[a-z]*.py")):
    text = f"{room.stem}\n{'=' * 40}\n\n.. automodule:: crc_helpers.{room.stem}\n   :members:\n"
    (API / f"{room.stem}.rst").write_text(text, encoding="utf-8")


def add_contents(_app, page, source):
    """Give the README, which is the site's first page, the list of all pages."""
    for title, pages in CONTENTS.items():
        if page == root_doc and any(any(ROOT.glob(f"{name}.*")) for name in pages):
            lines = ["```{toctree}", f":caption: {title}", ":glob:", ":hidden:", *pages, "```"]
            source[0] += "\n\n" + "\n".join(lines)


def setup(app):
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", add_contents)
