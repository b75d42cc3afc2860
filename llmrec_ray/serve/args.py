"""Arguments of the Serve application, typed and validated."""

from __future__ import annotations

from llmrec_ray.config import AppConfig

__all__ = ["ServeArgs"]


class ServeArgs(AppConfig):
    """What `args` of `serve_config.yaml` may hold."""

    release_uri: str
    """A Release, or the pointer `releases/current.json`, which is followed while serving."""
    events_folder: str
    """Local folder of the event log; every Ingress replica of a machine shares it."""
