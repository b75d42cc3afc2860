"""A Release behind HTTP: a Ray Serve application of four autoscaling deployments, its start and its stop.

Ray Serve reads its flags when it is imported, so this package imports it only when something is started;
`serve_config.yaml` names `llmrec_ray.serve.app:build`.
"""

from llmrec_ray.serve.args import ServeArgs
from llmrec_ray.serve.run import Endpoint, start

__all__ = ["Endpoint", "ServeArgs", "start"]
