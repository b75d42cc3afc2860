"""From behaviour logs to an autoscaled recommendation endpoint, with a language model in it, on Ray."""

__all__ = ["__version__"]

__version__ = "0.1.0"
