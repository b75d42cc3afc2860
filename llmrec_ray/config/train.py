"""The `train` section: training with Ray Train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import Fraction, Section, Uri

__all__ = ["AugmentConfig", "MinedConfig", "Sharding", "TrainConfig"]

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3"]
FOCAL_GAMMA, POPULARITY_POWER = 2.0, 0.75


class MinedConfig(Section):
    """Hard negatives: what the model itself ranks high, beside the uniform ones."""

    per_window: PositiveInt = 8
    """Hard negatives of each history window."""
    pool: PositiveInt = 64
    """They are drawn from so many of a user's best unseen items, ranked anew each epoch."""
    skip: Annotated[int, Field(ge=0)] = 8
    """Best items left out of the pool, since what a user will like next is among them."""
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    """Leave out those that score above the target minus this (NV-Retriever), as possibly liked too."""


class AugmentConfig(Section):
    """Shares of windows whose history is changed in training: small data gain, at little cost."""

    crop: Fraction = 0.0
    """Forget the oldest events."""
    mask: Fraction = 0.0
    """Forget random events."""
    substitute: Fraction = 0.0
    """Replace random events by items that stand near the same item elsewhere."""

    @property
    def is_on(self) -> bool:
        """Whether any window changes."""
        return self.crop + self.mask + self.substitute > 0.0

    @model_validator(mode="after")
    def _check_shares(self) -> AugmentConfig:
        if (total := self.crop + self.mask + self.substitute) > 1.0:
            raise ValueError(
                f"crop, mask and substitute are shares of all windows, but add up to {total:g}: lower "
                "train.augment to 1 together"
            )
        return self


class TrainConfig(Section):
    """Training with Ray Train."""

    num_workers: PositiveInt = 2
    """Processes; one per GPU, or gloo processes on CPU."""
    min_workers: PositiveInt | None = None
    """Go on with as few as this when machines are lost; empty waits for `num_workers`."""
    use_gpu: bool = False
    """Give each worker a GPU and use NCCL."""
    sharding: Literal["auto", "none", "ddp", "zero1", "zero2", "zero3"] = "auto"
    """`none` for one process; `ddp` replicates; DeepSpeed's `zero1`, `zero2`, `zero3` shard optimizer state, also
    gradients, also weights; `auto` is `ddp` for a frozen encoder and `zero2` for one that trains."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer state, or with `zero3` also weights (`all`), in the host's memory: slower, and fits more."""
    epochs: PositiveInt = 14
    """Upper bound; early stopping usually ends sooner."""
    patience: PositiveInt = 6
    """Stop after this many epochs without a better validation NDCG@10."""
    batch_size: PositiveInt = 16
    """History windows per step over all workers."""
    accumulation_steps: PositiveInt = 1
    """Micro-batches that a worker's share of a step is cut into: the same gradients with less memory."""
    learning_rate: PositiveFloat = 4e-3
    """Peak rate of AdamW for everything but the encoder."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rates fall to zero over `epochs`, after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW's decoupled decay; not applied to biases and norms."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    gradient_clip: PositiveFloat = 5.0
    """Largest global gradient norm."""
    loss: Literal["sampled_softmax", "full_softmax", "bpr", "bce", "focal"] = "sampled_softmax"
    """What is minimised; full_softmax is for small catalogues, bce and focal also learn from dislikes."""
    focal_gamma: Annotated[float, Field(ge=0.0)] = FOCAL_GAMMA
    """How little easy examples count under focal (Lin et al. 2017); 0 is bce."""
    positive_value: float | None = None
    """Events of a smaller value are dislikes: read as history, and wrong answers to bce and focal; empty likes all."""
    negatives: PositiveInt = 256
    """Negatives shared by a step, drawn from items seen in train; in_batch takes at most so many."""
    negative_sampling: Literal["uniform", "popularity", "in_batch", "mined"] = "uniform"
    """Where negatives come from; popularity and in_batch are logQ-corrected, mined adds each user's hard ones."""
    popularity_power: Fraction = POPULARITY_POWER
    """Popularity negatives are drawn in proportion to count^power; 0 is uniform, 1 the log itself."""
    mined: MinedConfig = MinedConfig()
    """Hard negatives of `negative_sampling` mined."""
    augment: AugmentConfig = AugmentConfig()
    """Changes to training histories (CL4SRec)."""
    checkpoint_steps: PositiveInt | None = None
    """Also keep a checkpoint after so many steps of an epoch; empty keeps one per epoch."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often Ray Train restarts failed workers from the last checkpoint."""
    warm_start: Uri | None = None
    """A Bundle to start from: rows kept by id, newcomers from their texts; empty starts anew."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in half the bits beside fp32 weights: for GPUs; fp32 on CPU."""
    compile: bool = False
    """Compile the encoder's blocks (`torch.compile`): faster steps after a slow first one."""

    @model_validator(mode="after")
    def _check_workers(self) -> TrainConfig:
        if self.batch_size < self.num_workers * self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is less than num_workers x accumulation_steps "
                f"({self.num_workers} x {self.accumulation_steps}), so some would never have work: raise "
                "train.batch_size"
            )
        if self.sharding == "none" and self.num_workers > 1:
            raise ValueError(
                f"sharding none runs in one process, but num_workers is {self.num_workers}: "
                "set train.sharding to ddp, zero1, zero2 or zero3, or train.num_workers to 1"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above num_workers {self.num_workers}: lower train.min_workers"
            )
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> TrainConfig:
        if self.loss == "full_softmax" and self.negative_sampling != "uniform":
            raise ValueError(
                f"full_softmax compares with every item, so negative_sampling {self.negative_sampling} would do "
                "nothing: leave it out, or set train.loss to sampled_softmax"
            )
        if self.positive_value is not None and self.loss not in {"bce", "focal"}:
            raise ValueError(
                f"positive_value marks dislikes, which loss {self.loss} cannot learn from: set train.loss to bce or "
                "focal, or leave train.positive_value empty"
            )
        return self

    @model_validator(mode="after")
    def _check_all_is_used(self) -> TrainConfig:
        given = (
            ("focal_gamma", self.focal_gamma != FOCAL_GAMMA, "loss", self.loss, "focal"),
            ("popularity_power", self.popularity_power != POPULARITY_POWER, "negative_sampling",
             self.negative_sampling, "popularity"),
            ("mined", self.mined != MinedConfig(), "negative_sampling", self.negative_sampling, "mined"),
        )
        for name, is_given, field, value, needed in given:
            if is_given and value != needed:
                raise ValueError(
                    f"{name} is about {field} {needed}, but {field} is {value}: leave it out, or set train.{field} to "
                    f"{needed}"
                )
        return self
