"""The reading room alone, in a browser without code cells, served by Voilà to this machine."""

import argparse
import tempfile
from pathlib import Path

import nbformat

from crc_helpers.models import load_classifier
from crc_helpers.runs import ROOT

PORT = 8866
CELLS = (
    "import numpy as np\n"
    "from pathlib import Path\n"
    "from IPython.display import Markdown\n"
    "from crc_helpers import data, explorers, models, runs\n"
    "Markdown('# Reading room\\n\\n**Not for diagnosis.** For research and teaching, one reader'\n"
    "         ' at a time. Pictures that you open are not saved and not sent anywhere.')",
    "tiles, parts = data.recall('runs/by_hand', 'shipped')\n"
    "model, facts = models.load_classifier(Path({weights!r}))\n"
    "room = explorers.ReadingRoom(model, tiles, parts.test, facts['size'], Path({answers!r}))\n"
    "room.show()",
    "Markdown('## Any tile, or your own image')",
    "shown = np.random.default_rng(0).permutation(parts.test)\n"
    "explorers.GradCamExplorer({{'classifier': model}}, tiles, shown, facts['size']).show()",
)


def app(arguments: argparse.Namespace) -> int:
    """Serve the reading room until it is stopped; return the exit status."""
    weights = Path(arguments.weights or ROOT / "weights" / "classifier.safetensors").expanduser()
    load_classifier(weights)  # what it cannot load it says here, and not in the browser
    answers = Path(arguments.out).expanduser().resolve() / "reading.csv"
    paths = {"weights": str(weights.resolve()), "answers": str(answers)}
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell.format(**paths)) for cell in CELLS]
    from voila.app import Voila  # seconds to import, for this command only

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reading_room.ipynb"
        nbformat.write(notebook, file)
        print(
            f"reading room: http://127.0.0.1:{arguments.port}/ (Ctrl-C ends it; answers: {answers})"
        )
        Voila.launch_instance(
            [str(file), f"--port={arguments.port}", "--no-browser", "--Voila.ip=127.0.0.1"]
        )
    return 0
