"""The `model`, `item_item` and `fusion` sections: towers, co-occurrence, and how signals become one score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import ColdSignalName, Section, SignalName, Weight

__all__ = ["CascadeConfig", "ContextConfig", "FusionConfig", "FusionMode", "ItemItemConfig", "ModelConfig"]

FusionMode = Literal["late", "feature", "gated", "learned", "cascade"]

Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


NEWCOMER_EVENTS = 5
COLD_WEIGHTS: dict[ColdSignalName, float] = {"item_item": 0.7, "neural": 0.1, "text": 0.2}
COLD_SCALE = 0.35
TIME_CONSTANTS = (1.0, 4.0, 16.0, None)
TRANSFORMER_LAYERS, TRANSFORMER_HEADS = 2, 2
NCF_HIDDEN = (64, 32)


class ContextConfig(Section):
    """What is known beside the history; empty fields are off."""

    time: tuple[Literal["hour", "weekday"], ...] = ()
    """Parts of the time of the request (UTC) that join the user vector."""
    user_columns: tuple[str, ...] = ()
    """Columns among data.users.attributes that join the user vector."""
    item_columns: tuple[str, ...] = ()
    """Columns among data.items.attributes that join the item vector."""


class ModelConfig(Section):
    """User tower, item tower and the neural collaborative-filtering head."""

    embedding_size: PositiveInt = 64
    """Width of item and user vectors."""
    history_length: PositiveInt = 50
    """Newest items of a history that the user tower reads."""
    user_tower: Literal["decayed_means", "transformer"] = "decayed_means"
    """How a history becomes a vector: decayed means are the cheapest; a transformer (SASRec) reads the order."""
    time_constants: Annotated[tuple[PositiveFloat | None, ...], Field(min_length=1)] = TIME_CONSTANTS
    """Decay of each history mean in events, exp(-age/t); null is the plain mean."""
    transformer_layers: PositiveInt = TRANSFORMER_LAYERS
    """Layers of the transformer; together they look back over `history_length`."""
    transformer_heads: PositiveInt = TRANSFORMER_HEADS
    """Attention heads of each layer; must divide `embedding_size`."""
    user_embedding: bool = True
    """Add a learned vector per known user; off when users come and go."""
    dropout: Dropout = 0.2
    """Dropout in the user tower."""
    id_dropout: Dropout = 0.2
    """Share of items whose id embedding is hidden in a step, so that text alone gives a usable vector."""
    ncf_head: Literal["neumf", "gmf", "mlp"] = "neumf"
    """Head of the `ncf` signal (He et al. 2017): elementwise product, perceptron, or `neumf`, both."""
    ncf_hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = NCF_HIDDEN
    """Hidden widths of the head's perceptron."""
    context: ContextConfig = ContextConfig()
    """Columns and times that join the vectors: numbers standardised, other columns as words."""

    @model_validator(mode="after")
    def _check_user_tower(self) -> ModelConfig:
        others = {
            "decayed_means": {
                "transformer_layers": self.transformer_layers != TRANSFORMER_LAYERS,
                "transformer_heads": self.transformer_heads != TRANSFORMER_HEADS,
            },
            "transformer": {"time_constants": self.time_constants != TIME_CONSTANTS},
        }
        for name in (name for name, is_given in others[self.user_tower].items() if is_given):
            other = "transformer" if self.user_tower == "decayed_means" else "decayed_means"
            raise ValueError(
                f"{name} is about the user tower {other}, but user_tower is {self.user_tower}: leave it out, or set "
                f"model.user_tower to {other}"
            )
        if self.user_tower == "transformer" and self.embedding_size % self.transformer_heads:
            raise ValueError(
                f"transformer_heads is {self.transformer_heads}, which does not divide embedding_size "
                f"({self.embedding_size}): set model.transformer_heads to a divisor of it"
            )
        return self

    @model_validator(mode="after")
    def _check_ncf_head(self) -> ModelConfig:
        if self.ncf_head == "gmf" and self.ncf_hidden != NCF_HIDDEN:
            raise ValueError(
                "ncf_hidden is about a perceptron, which ncf_head gmf has not: leave it out, or set model.ncf_head to "
                "neumf or mlp"
            )
        return self


class ItemItemConfig(Section):
    """The traditional co-occurrence signal: EASE (Steck 2019) on recency-weighted histories."""

    l2: PositiveFloat = 400.0
    """EASE regularisation; hundreds for small data."""
    recency: PositiveFloat | None = 10.0
    """History items weigh exp(-age/recency), age in events; null weighs them alike."""


class CascadeConfig(Section):
    """One signal narrows the candidates, another ranks what is left; the language model may be either."""

    first: SignalName = "item_item"
    """Narrows."""
    keep: PositiveInt = 100
    """How many items stay; the others follow them, in the order of `first`."""
    then: SignalName = "neural"
    """Ranks what stays."""

    @model_validator(mode="after")
    def _check_two_signals(self) -> CascadeConfig:
        if self.first == self.then:
            raise ValueError(f"first and then are both {self.first}, so nothing is narrowed: name two signals")
        return self


class FusionConfig(Section):
    """How text, neural and co-occurrence knowledge become one score."""

    item_vector: Literal["feature", "id", "text"] = "feature"
    """`feature` = id embedding + projected text; `id` or `text` use one of them alone."""
    mode: FusionMode = "late"
    """`late` = weighted sum of calibrated signals; `feature` ranks by the learned model alone, whose item vectors have
    the text; `gated` = weights from the item's popularity and the history's length; `learned` = late fusion corrected
    by a network trained on candidates; `cascade` = one signal narrows, another ranks."""
    signals: tuple[SignalName, ...] = ("neural", "item_item")
    """Signals whose weights late fusion searches; the others gained nothing on validation, and choice costs a little.
    Gated and learned fusion read all signals, `ncf` only when it is named here."""
    weights: dict[SignalName, Weight] | None = None
    """Fixed weights of late fusion; empty searches them on stored validation scores after training."""
    cascade: CascadeConfig | None = None
    """For `mode: cascade`; empty takes the defaults."""
    newcomer_events: PositiveInt = NEWCOMER_EVENTS
    """Shorter histories are read with weights of their own, searched too; 1 reads all alike."""
    cold_weights: dict[ColdSignalName, Weight] = COLD_WEIGHTS
    """Weights for items without a train event, whose signals are carried over from items with similar content; mode
    `feature` carries nothing over."""
    cold_scale: Weight = COLD_SCALE
    """How far items without a train event may rise among the others, whose accuracy pays for it: with a fifth of
    MovieLens-100K's films held out .35 costs 0.5 %, .5 costs 4 %; 0 leaves them in the middle of the catalogue."""

    @model_validator(mode="after")
    def _check_something_ranks(self) -> FusionConfig:
        if self.mode in {"late", "gated", "learned"} and not self.signals:
            raise ValueError("fusion.signals is empty, so nothing would rank the items: name a signal")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("every weight in fusion.weights is 0, so nothing would rank the items: give one a weight")
        return self

    @model_validator(mode="after")
    def _check_effects(self) -> FusionConfig:
        if self.weights is not None and self.mode not in {"late", "learned"}:
            raise ValueError(
                f"fusion.weights has no effect with fusion.mode {self.mode}: set mode to late, or leave it out"
            )
        if self.cascade is not None and self.mode != "cascade":
            raise ValueError(
                f"fusion.cascade has no effect with fusion.mode {self.mode}: set mode to cascade, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_who_is_new(self) -> FusionConfig:
        if self.newcomer_events != NEWCOMER_EVENTS and (self.mode == "feature" or self.weights is not None):
            because = "fusion.mode feature" if self.mode == "feature" else "fixed fusion.weights"
            raise ValueError(
                f"fusion.newcomer_events has no effect with {because}, since no weights are searched: leave it out"
            )
        given = {"cold_weights": self.cold_weights != COLD_WEIGHTS, "cold_scale": self.cold_scale != COLD_SCALE}
        for name in (name for name, is_given in given.items() if is_given and self.mode == "feature"):
            raise ValueError(
                f"fusion.{name} has no effect with fusion.mode feature, which carries nothing over to new items: set "
                "mode to late, or leave it out"
            )
        return self
