"""The `model`, `item_item` and `fusion` sections: towers, co-occurrence, and how signals become one score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import Section, SignalName, Weight

__all__ = ["FusionConfig", "ItemItemConfig", "ModelConfig"]

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class ModelConfig(Section):
    """User tower, item tower and the neural collaborative-filtering head."""

    embedding_size: PositiveInt = 64
    """Width of item and user vectors."""
    history_length: PositiveInt = 50
    """Newest items of a history that the user tower reads."""
    time_constants: Annotated[tuple[PositiveFloat | None, ...], Field(min_length=1)] = (1.0, 4.0, 16.0, None)
    """Decay of each history mean in events, exp(-age/t); null is the plain mean."""
    user_embedding: bool = True
    """Add a learned vector per known user; off when users come and go."""
    dropout: Dropout = 0.2
    """Dropout in the user tower."""
    id_dropout: Dropout = 0.2
    """Share of items whose id embedding is hidden in a step, so that text alone gives a usable vector."""
    ncf_hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 32)
    """Hidden widths of the NeuMF head's MLP (He et al. 2017); its scores are the `ncf` signal."""


class ItemItemConfig(Section):
    """The traditional co-occurrence signal: EASE (Steck 2019) on recency-weighted histories."""

    l2: PositiveFloat = 400.0
    """EASE regularisation; hundreds for small data."""
    recency: PositiveFloat | None = 10.0
    """History items weigh exp(-age/recency), age in events; null weighs them alike."""


class FusionConfig(Section):
    """How text, neural and co-occurrence knowledge become one score."""

    item_vector: Literal["feature", "id", "text"] = "feature"
    """`feature` = id embedding + projected text; `id` or `text` use one of them alone."""
    mode: Literal["late", "neural"] = "late"
    """`late` = weighted sum of calibrated signals; `neural` ranks by the learned model alone."""
    signals: tuple[SignalName, ...] = ("neural", "item_item")
    """Signals whose weights are searched; the others gained nothing on validation, and choice costs a little."""
    weights: dict[SignalName, Weight] | None = None
    """Fixed weights; empty searches them on stored validation scores after training."""

    @model_validator(mode="after")
    def _check_something_ranks(self) -> FusionConfig:
        if self.mode == "late" and not self.signals:
            raise ValueError("fusion.signals is empty, so nothing would rank the items: name a signal")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("every weight in fusion.weights is 0, so nothing would rank the items: give one a weight")
        if self.weights is not None and self.mode == "neural":
            raise ValueError("fusion.weights has no effect with fusion.mode neural: set mode to late, or leave it out")
        return self
