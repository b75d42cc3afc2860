"""The `train` section: training with Ray Train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import Section, Uri

__all__ = ["Sharding", "TrainConfig"]

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3"]


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
    negatives: PositiveInt = 256
    """Uniform negatives shared by a step, drawn from items seen in train."""
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
