"""The `evaluate` section: what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from llmrec_ray.config.section import Section

__all__ = ["BaselineName", "EvaluateConfig"]

BaselineName = Literal[
    "popularity", "recent_popularity", "tfidf", "text", "item_knn", "item_knn_recency", "ease", "ease_recency", "ials",
    "bpr", "markov", "sasrec",
]
CHEAP_BASELINES: tuple[BaselineName, ...] = (
    "popularity", "recent_popularity", "tfidf", "text", "item_knn", "item_knn_recency", "ease", "ease_recency", "ials",
    "bpr", "markov",
)

SAMPLED_NEGATIVES = 99


class EvaluateConfig(Section):
    """How the pipeline, its signals and the baselines are measured; `data.split` says what is held out."""

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (5, 10, 20)
    """Cut-offs of the metrics."""
    baselines: tuple[BaselineName, ...] = CHEAP_BASELINES
    """Baselines that stand beside the model; `sasrec`, which trains a network of its own, only when named."""
    batch_users: PositiveInt = 256
    """Users scored at once; bounds a worker's memory, batch_users × items × (4 × signals + 24) bytes of scores."""
    candidates: Literal["all", "sampled"] = "all"
    """`all` ranks each target among all items; `sampled` among a few drawn at random, which is only for comparison with
    figures published so (it may turn round which system is better: Krichene and Rendle 2020)."""
    sampled_negatives: PositiveInt = SAMPLED_NEGATIVES
    """Items drawn per user with `candidates: sampled`, the same for every seed, among those that the user never met."""
    num_workers: PositiveInt = 1
    """Ray actors that rank blocks of users; 1 ranks in this process. The figures are the same."""

    @model_validator(mode="after")
    def _check_sampled(self) -> EvaluateConfig:
        if self.candidates == "all" and self.sampled_negatives != SAMPLED_NEGATIVES:
            raise ValueError(
                f"sampled_negatives is {self.sampled_negatives}, but it has no effect with candidates all: set "
                "evaluate.candidates to sampled, or leave sampled_negatives out"
            )
        return self
