"""The `encoder` section: the language model that turns text into vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config.section import Prompt, Section

__all__ = ["EncoderConfig", "Pooling"]

Pooling = Literal["mean", "cls", "last", "weighted"]


class EncoderConfig(Section):
    """The language model that turns text into vectors."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A local folder or a Hugging Face model name: BERT family, or a decoder LLM (Qwen, Llama, Mistral, Gemma)."""
    pooling: Pooling = "mean"
    """How token states become one vector; use what the model was trained with, `last` or `weighted` for decoders."""
    item_prompt: Prompt = "{text}"
    """What the encoder reads for an item; `{text}` is the item's text."""
    query_prompt: Prompt = "{text}"
    """What the encoder reads for a request's query or profile; instruction-tuned encoders want one."""
    bidirectional: bool = False
    """Let every token of a decoder LLM read the later ones too; it needs training to pay (LLM2Rec, Table 4)."""
    max_tokens: PositiveInt = 128
    """Texts are cut to this many tokens."""
    max_batch_tokens: PositiveInt = 1024
    """Padded tokens in one forward pass; small is faster on a CPU, large on a GPU."""
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What computes vectors: `auto` is ONNX Runtime on a CPU, two to three times as fast there, and torch on a GPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How attention is computed (eager where a model has no sdpa); flash_attention_2 needs a GPU and bf16."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision of vectors; int8 (ONNX Runtime on a CPU, faster still) is for texts that come when serving: training
    and the catalogue stay fp32, and the Bundle's manifest states the loss. Training has its own in train.precision."""
    tuning: Literal["frozen", "top_layers", "lora", "full"] = "frozen"
    """`frozen` uses cached vectors; the others also train the last `top_layers` blocks, LoRA adapters, or all."""
    top_layers: PositiveInt = 2
    """How many transformer blocks `tuning: top_layers` trains, with the final norm."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters of `tuning: lora` (Hu et al. 2021); more learns more and costs more."""
    lora_alpha: PositiveInt = 16
    """Adapters are scaled by lora_alpha / lora_rank; twice the rank is usual."""
    lora_targets: tuple[str, ...] | None = None
    """Names that adapted layers end in, such as `q_proj`; empty adapts every linear layer inside the blocks."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate of the encoder's top; far below the rest of the model's, ten times higher for `lora`."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Each block below the top learns at this times the rate of the one above; 0.8 to 0.95 keeps what it knew."""
    gradient_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a step's items encoded with gradients, the others by last epoch's vectors; small for slow machines."""
    gradient_checkpointing: bool = False
    """Compute a block's states again in the backward pass: a third more time, far less memory."""
    cached_states_gb: Annotated[float, Field(ge=0.0)] = 2.0
    """Memory for what the first of `top_layers` reads, computed once; else the lower blocks run in every step."""
    num_actors: PositiveInt = 1
    """Ray Data actors that encode the catalogue; one per GPU."""

    @model_validator(mode="after")
    def _check_attention(self) -> EncoderConfig:
        if self.attention == "flash_attention_2" and self.precision != "bf16":
            raise ValueError(
                f"attention flash_attention_2 does not compute in {self.precision}: set encoder.precision to bf16, or "
                "encoder.attention to sdpa"
            )
        return self

    @model_validator(mode="after")
    def _check_runtime(self) -> EncoderConfig:
        refused = {("torch", "int8"): "onnx or auto", ("onnx", "bf16"): "torch or auto"}
        if better := refused.get((self.runtime, self.precision)):
            raise ValueError(
                f"runtime {self.runtime} does not compute in {self.precision}: set encoder.runtime to {better}, or "
                "encoder.precision to fp32"
            )
        return self

    @model_validator(mode="after")
    def _check_tuning(self) -> EncoderConfig:
        given = {
            "gradient_checkpointing": self.gradient_checkpointing, "layer_decay": self.layer_decay < 1.0,
            "gradient_share": self.gradient_share < 1.0,
        }
        if self.tuning == "frozen" and any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise ValueError(
                f"{name} is about training the encoder, but encoder.tuning is frozen: leave it out, or set tuning to "
                "top_layers, lora or full"
            )
        if self.tuning != "lora" and self.lora_targets is not None:
            raise ValueError(
                f"lora_targets is given, but encoder.tuning is {self.tuning}: leave it out, or set tuning to lora"
            )
        return self
