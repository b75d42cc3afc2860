"""The whole recipe, and the rules between its sections.

Entry points receive the whole `Recipe`; components receive their section only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from llmrec_ray.config.data import DataConfig
from llmrec_ray.config.encoder import EncoderConfig
from llmrec_ray.config.evaluate import EvaluateConfig
from llmrec_ray.config.model import CascadeConfig, FusionConfig, ItemItemConfig, ModelConfig
from llmrec_ray.config.section import Section, Uri
from llmrec_ray.config.serve import IndexConfig, RetrievalConfig, ServeConfig
from llmrec_ray.config.train import Sharding, TrainConfig
from llmrec_ray.config.tune import TuneConfig

__all__ = ["Recipe"]

PATTERN = frozenset("*?[")


def _without_patterns(workspace: str) -> str:
    if "://" not in workspace and (found := PATTERN & {*workspace}):
        raise ValueError(
            f"the folder {workspace} has {' '.join(sorted(found))} in its name, which stands for other names in paths: "
            "choose another folder"
        )
    return workspace


class Recipe(Section):
    """Everything a run needs; the file `--recipe NAME` or `--config FILE` names."""

    name: str
    """Short name; artifacts and logs carry it."""
    workspace: Annotated[Uri, AfterValidator(_without_patterns)] = "runs/{name}"
    """Folder or URI (`/path`, `file://`, `s3://`, `gs://`) that receives every artifact."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs for a Ray started here; empty counts the machine's. Ignored when joining a cluster."""
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    item_item: ItemItemConfig = ItemItemConfig()
    fusion: FusionConfig = FusionConfig()
    train: TrainConfig = TrainConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _check_text(self) -> Recipe:
        if not self.data.items and self.fusion.item_vector != "id":
            raise ValueError(
                f"fusion.item_vector is {self.fusion.item_vector!r}, but data.items is not given, so there are "
                "no item texts: describe data.items, or set fusion.item_vector to id"
            )
        if self.encoder.tuning != "frozen" and self.fusion.item_vector == "id":
            raise ValueError(
                f"encoder.tuning is {self.encoder.tuning}, but fusion.item_vector is 'id', so training never reads a "
                "text: set encoder.tuning to frozen, or fusion.item_vector to feature"
            )
        return self

    @model_validator(mode="after")
    def _check_training_precision(self) -> Recipe:
        flash = self.encoder.attention == "flash_attention_2" and self.encoder.tuning != "frozen"
        if flash and self.train.precision == "fp32":
            raise ValueError(
                "encoder.attention flash_attention_2 does not train in fp32: set train.precision to bf16, or "
                "encoder.attention to sdpa"
            )
        return self

    @model_validator(mode="after")
    def _check_sampled_candidates(self) -> Recipe:
        if self.data.split == "cold_items" and self.evaluate.candidates == "sampled":
            raise ValueError(
                "evaluate.candidates sampled is for splits with one target per user, but data.split cold_items ranks "
                "every held-out item: set evaluate.candidates to all"
            )
        return self

    @model_validator(mode="after")
    def _check_values(self) -> Recipe:
        has_values = any(log.columns.value or log.event_weights for log in self.data.interactions)
        if self.train.positive_value is not None and not has_values:
            raise ValueError(
                f"train.positive_value is {self.train.positive_value:g}, but the log has no values: name their column "
                "in data.interactions.columns.value, or leave train.positive_value empty"
            )
        return self

    @model_validator(mode="after")
    def _check_context(self) -> Recipe:
        context, data = self.model.context, self.data
        for field, names, table in (("user_columns", context.user_columns, "users"),
                                    ("item_columns", context.item_columns, "items")):
            kept = [name for section in getattr(data, table) for name in section.attributes]
            kept += ["domain"] if table == "items" and data.domains else []
            if missing := [name for name in names if name not in kept]:
                raise ValueError(
                    f"model.context.{field} names {', '.join(missing)}, but data.{table} keeps "
                    f"{', '.join(kept) or 'no attributes'}: add it to data.{table}.attributes, or leave it out"
                )
        return self

    @property
    def sharding(self) -> Sharding:
        """`train.sharding`, with `auto` worked out."""
        if self.train.sharding == "auto":
            return "ddp" if self.encoder.tuning == "frozen" else "zero2"
        return self.train.sharding

    @property
    def cascade(self) -> CascadeConfig | None:
        """`fusion.cascade` with its defaults, or None in another mode."""
        return (self.fusion.cascade or CascadeConfig()) if self.fusion.mode == "cascade" else None

    @model_validator(mode="after")
    def _check_sharding(self) -> Recipe:
        train, sharding = self.train, self.sharding
        if train.offload != "none" and sharding in {"none", "ddp"}:
            raise ValueError(
                f"train.offload {train.offload} needs DeepSpeed, but the sharding is {sharding}"
                f"{' (auto, for a frozen encoder)' if train.sharding == 'auto' else ''}: set train.sharding to zero1, "
                "zero2 or zero3, or train.offload to none"
            )
        if train.offload == "all" and sharding != "zero3":
            raise ValueError(
                f"train.offload all moves sharded weights to the host, but {sharding} shards none: set train.sharding "
                "to zero3, or train.offload to optimizer"
            )
        if train.compile and sharding == "zero3":
            raise ValueError(
                "train.compile cannot trace through the weights that zero3 gathers block by block: set train.compile "
                "to false, or train.sharding to zero2"
            )
        if train.compile and self.encoder.tuning == "frozen":
            raise ValueError(
                "train.compile compiles the blocks of an encoder that trains, but encoder.tuning is frozen: set "
                "train.compile to false"
            )
        return self

    @model_validator(mode="after")
    def _check_signals_exist(self) -> Recipe:
        if lacking := sorted(self._missing_signals() & set(self.fusion.weights or ())):
            raise ValueError(
                f"fusion.weights names {' and '.join(lacking)}, but there will be no such signal: text needs "
                "data.items, and item_item must be among fusion.signals; add it there, or leave the weight out"
            )
        if not self.data.items and {*self.fusion.signals} == {"text"}:
            raise ValueError(
                "fusion.signals names only text, but data.items is not given, so there are no item texts: name "
                "another signal, such as neural"
            )
        if not self.data.items and {*self.retrieval.candidates} - {"cold"} == {"text"}:
            raise ValueError(
                "retrieval.candidates names only text, but data.items is not given, so there are no item texts: "
                "name another source, such as neural"
            )
        return self

    @model_validator(mode="after")
    def _check_cascade(self) -> Recipe:
        cascade = self.cascade
        if cascade is None:
            return self
        if lacking := sorted(self._missing_signals() & {cascade.first, cascade.then}):
            raise ValueError(
                f"fusion.cascade names {' and '.join(lacking)}, but there will be no such signal: text needs "
                "data.items, and item_item must be among fusion.signals or retrieval.candidates; add it there, or name "
                "another signal"
            )
        if cascade.keep < max(self.evaluate.ks):
            raise ValueError(
                f"fusion.cascade.keep is {cascade.keep}, less than the longest list that is measured, "
                f"{max(self.evaluate.ks)} (evaluate.ks): keep at least as many"
            )
        return self

    def _missing_signals(self) -> set[str]:
        missing = set() if self.data.items else {"text"}
        return missing if "item_item" in {*self.fusion.signals, *self.retrieval.candidates} else {*missing, "item_item"}
