"""One supervisor for every LLM call made on a machine."""

from callpool.version import __version__

__all__ = ["__version__"]
