"""polyroute: learned routing at every scale."""

__version__ = "0.1.0"
