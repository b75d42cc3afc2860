"""From a Dataset, a Bundle and the serving pipeline to one table under a named protocol, kept and logged.

The number reported as "the model" is the served pipeline's; each signal and each baseline stands beside it.
"""

from llmrec_ray.evaluate.baselines import fit_baseline
from llmrec_ray.evaluate.compare import Comparison, compare
from llmrec_ray.evaluate.protocol import Protocol, Task
from llmrec_ray.evaluate.report import Evaluation
from llmrec_ray.evaluate.run import evaluate
from llmrec_ray.evaluate.systems import Ranking
from llmrec_ray.evaluate.validation import validation_value

__all__ = [
    "Comparison", "Evaluation", "Protocol", "Ranking", "Task", "compare", "evaluate", "fit_baseline",
    "validation_value",
]
