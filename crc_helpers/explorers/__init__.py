"""Interactive views of pure functions; the only modules that import ipywidgets."""

# ruff: noqa: F401 (lessons find them here)

from crc_helpers.explorers.base import Explorer
from crc_helpers.explorers.embedding import EmbeddingExplorer, embedding_figure
from crc_helpers.explorers.grad_cam import GradCamExplorer
from crc_helpers.explorers.heat import Look, explain, explanation_figure
from crc_helpers.explorers.live import LiveExplorer, live_figure
from crc_helpers.explorers.pointer import PointedImage
from crc_helpers.explorers.reading import Reading, ReadingRoom, reading_figure, reading_table
from crc_helpers.explorers.temperature import TemperatureExplorer, temperature_figure
from crc_helpers.explorers.threshold import ThresholdExplorer, cell_figure, threshold_figure
from crc_helpers.explorers.tissue import TissueExplorer, tissue_figure
from crc_helpers.explorers.views import ViewsExplorer, views_figure
