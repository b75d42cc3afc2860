"""The `llmrec` command: one verb per arrow of the flow, people's output on stderr, one JSON line on stdout."""

from llmrec_ray.cli.main import main

__all__ = ["main"]
