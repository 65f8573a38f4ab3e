"""An executed notebook, made to be read without a kernel."""

import os
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from crc_helpers.runs import ROOT

OWN_RUN = (
    "> **A run of its own**, with {}. The printed numbers and the figures are this run's. The text"
    " (*What to see*) describes the published run, whose numbers and figures differ."
)
PICTURES = {"image/png", "image/jpeg"}
NO_TEXT = "No description has been provided for this image"  # nbconvert's own words


def drop_widgets(notebook: Any) -> Any:
    """Remove progress bars and explorers, which need a kernel, from a notebook, and return it."""
    view = "application/vnd.jupyter.widget-view+json"
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if view not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)
    return notebook


def page(notebook: Path, changed: dict[str, Any] | None = None) -> str:
    """An executed notebook as one HTML file that loads nothing but MathJax, for the formulas.

    changed: the parameters that differ from the published run's, which the page then names.
    """
    from nbconvert import HTMLExporter

    content = drop_widgets(nbformat.read(notebook, as_version=4))
    if changed:
        pairs = (f"{name} = {value!r}".replace("`", "'") for name, value in changed.items())
        settings = ", ".join(f"`{pair}`" for pair in pairs)
        content.cells.insert(0, nbformat.v4.new_markdown_cell(OWN_RUN.format(settings)))
    remote = ("require_js_url", "mermaid_js_url", "mermaid_layout_elk_js_url", "jquery_url")
    exporter = HTMLExporter(embed_images=True, **dict.fromkeys(remote, ""))
    html, _ = exporter.from_notebook_node(
        content, {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    )
    # This template of nbconvert says nothing about pictures; the lessons do.
    texts = iter(
        escape(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", NO_TEXT))
        for cell in content.cells
        for output in cell.get("outputs", [])
        if PICTURES & set(output.get("data", {}))
    )
    html = re.sub(f'alt="{NO_TEXT}"', lambda _: f'alt="{next(texts, NO_TEXT)}"', html)
    # The next lesson is a page beside this one; what lies beside the notebooks is in the checkout.
    html = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', html)
    html = html.replace('href="../', f'href="{os.path.relpath(ROOT, notebook.parent)}/')
    return html.replace('<script src=""></script>', "")
