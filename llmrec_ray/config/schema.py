"""The recipe as frozen, typed sections: every knob once, unknown keys forbidden, one sentence on how to choose.

Entry points receive the whole `Recipe`; components receive their section only.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

__all__ = [
    "AppConfig",
    "BaselineName",
    "DataConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "FusionConfig",
    "IndexConfig",
    "ItemItemConfig",
    "LogConfig",
    "ModelConfig",
    "Pooling",
    "Recipe",
    "Replicas",
    "RequestLimits",
    "RetrievalConfig",
    "ServeConfig",
    "Sharding",
    "SignalName",
    "SourceName",
    "TableConfig",
    "TrainConfig",
    "TuneConfig",
]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
FileFormat = Literal["csv", "tsv", "parquet", "jsonl"]
SignalName = Literal["neural", "ncf", "item_item", "text", "popularity"]
BaselineName = Literal["popularity", "tfidf", "item_knn", "ease", "ease_recency", "ials"]
SourceName = Literal["neural", "item_item", "text", "popularity"]
Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3"]
Pooling = Literal["mean", "cls", "last", "weighted"]


def _without_credentials(uri: str) -> str:
    if re.search(r"://[^/?#]*:[^/?#]*@|[?&](access_key|secret_key|session_token)=", uri):
        raise ValueError(
            "the URI carries credentials, which would be written into every artifact: take them out and give them "
            "through the environment or the machine's role"
        )
    return uri


def _with_one_place(prompt: str) -> str:
    if prompt.count("{text}") != 1:
        raise ValueError(f"the prompt {prompt!r} must have {{text}} exactly once: write it where the text goes")
    return prompt


Uri = Annotated[str, AfterValidator(_without_credentials)]
Prompt = Annotated[str, AfterValidator(_with_one_place)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LogColumns(Section):
    """Which columns of the log hold what."""

    user_id: str = "user_id"
    """Column with the user's id; any type, kept as a string."""
    item_id: str = "item_id"
    """Column with the item's id; any type, kept as a string."""
    timestamp: str = "timestamp"
    """Column with the time of the event, see `timestamp_unit`."""
    value: str | None = None
    """Optional column with a rating or weight; absent means 1.0 for every event."""


class LogConfig(Section):
    """Where the behaviour log is and how to read it."""

    paths: Annotated[tuple[Uri, ...], Field(min_length=1)]
    """Files or globs; `{raw}` is the folder that `data fetch` fills."""
    format: FileFormat = "parquet"
    """How the files are encoded; TSV and CSV need a header row."""
    columns: LogColumns = LogColumns()
    """Mapping from this log's column names."""
    timestamp_unit: Literal["s", "ms", "us", "iso8601"] = "s"
    """Unit of numeric timestamps since 1970 UTC, or text in ISO 8601."""
    min_value: float | None = None
    """Keep only events with at least this value; leave empty for implicit feedback."""

    @model_validator(mode="after")
    def _check_min_value_has_a_column(self) -> LogConfig:
        if self.min_value is not None and self.columns.value is None:
            raise ValueError(
                f"min_value is {self.min_value}, but no column is named as the value: "
                "set columns.value, or leave min_value empty"
            )
        return self


class TableConfig(Section):
    """A table of items or users with their descriptions."""

    paths: Annotated[tuple[Uri, ...], Field(min_length=1)]
    """Files or globs; `{raw}` is the folder that `data fetch` fills."""
    format: FileFormat = "parquet"
    """How the files are encoded."""
    id: str
    """Column with the id that the log refers to."""
    title: str | None = None
    """Column with a short name for people; the id when absent."""
    template: str
    """Text for the encoder, columns in braces: "{title} ({year}). Genres: {genres}"."""
    attributes: tuple[str, ...] = ()
    """Columns kept beside the text for request filters."""


class DataConfig(Section):
    """From raw files to a Dataset."""

    fetch: Literal["movielens-100k"] | None = None
    """Public data set that `data fetch` brings; empty for your own files."""
    interactions: LogConfig
    """The behaviour log."""
    items: TableConfig | None = None
    """Item descriptions; without them the text signal is off and items have only their ids."""
    users: TableConfig | None = None
    """User descriptions (profiles), kept with the Dataset; no signal reads them."""
    min_user_interactions: PositiveInt = 5
    """k-core: users with fewer events are dropped (3 is the least that a leave-one-out split can use)."""
    min_item_interactions: PositiveInt = 1
    """k-core: items with fewer events are dropped."""
    max_bad_ratio: Fraction = 0.01
    """Stop when a larger share of rows than this is quarantined."""
    split: Literal["leave_one_out"] = "leave_one_out"
    """Last event of each user = test, second last = validation, rest = train."""

    @model_validator(mode="after")
    def _check_split_needs_three(self) -> DataConfig:
        if self.min_user_interactions < 3:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but a leave_one_out split needs 3 events "
                "per user (train, validation, test): set data.min_user_interactions to 3 or more"
            )
        return self


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
    weights: dict[SignalName, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] | None = None
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


class RetrievalConfig(Section):
    """How many candidates each source proposes to the reranker."""

    candidates: Annotated[dict[SourceName, PositiveInt], Field(min_length=1)] = {
        "neural": 150, "item_item": 100, "text": 50, "popularity": 50
    }
    """Items per source; a source that is not named is not asked."""


class IndexConfig(Section):
    """Nearest-neighbour structure over item vectors."""

    kind: Literal["exact", "hnsw"] = "exact"
    """`exact` up to some 100,000 items, `hnsw` (FAISS) beyond."""
    hnsw_neighbors: PositiveInt = 32
    """Links per vector in HNSW; more is slower to build and more exact."""
    ef_construction: PositiveInt = 200
    """Breadth of the search while building HNSW."""
    ef_search: PositiveInt = 128
    """Breadth of the search while answering."""
    min_recall: Fraction = 0.95
    """Refuse an approximate index whose recall@100 against exact search is lower."""


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


class EvaluateConfig(Section):
    """Protocol P: full ranking of one held-out item per user."""

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (5, 10, 20)
    """Cut-offs of the metrics."""
    baselines: tuple[BaselineName, ...] = ("popularity", "tfidf", "item_knn", "ease", "ease_recency", "ials")
    """Baselines that stand beside the model."""
    batch_users: PositiveInt = 256
    """Users scored at once; bounds memory to batch_users × items × signals × 4 bytes."""


class TuneConfig(Section):
    """A small campaign over learning rate and fusion weight."""

    trials: PositiveInt = 4
    """Configurations to try."""
    max_concurrent: PositiveInt = 1
    """Trials at once; each holds train.num_workers workers."""
    learning_rate: tuple[PositiveFloat, PositiveFloat] = (5e-4, 8e-3)
    """Range searched on a log scale."""
    neural_weight: tuple[Fraction, Fraction] = (0.4, 1.0)
    """Range of the neural signal's share in late fusion with the item-item signal."""
    epochs: PositiveInt = 6
    """Most epochs of one trial."""
    grace_epochs: PositiveInt = 2
    """Epochs before ASHA may stop a trial."""

    @model_validator(mode="after")
    def _check_ranges(self) -> TuneConfig:
        for name, (low, high) in (("learning_rate", self.learning_rate), ("neural_weight", self.neural_weight)):
            if low > high:
                raise ValueError(f"tune.{name} is {low:g} to {high:g}: give the smaller bound first")
        return self


class Replicas(Section):
    """Autoscaling of one deployment."""

    min_replicas: PositiveInt = 1
    """Replicas that are always there."""
    max_replicas: PositiveInt = 2
    """Upper bound under load."""
    target_ongoing_requests: PositiveFloat = 4.0
    """Load per replica that the autoscaler aims at."""
    max_ongoing_requests: PositiveInt = 16
    """Requests one replica takes at once; more wait or go elsewhere."""
    num_cpus: Annotated[float, Field(ge=0.0)] = 0.25
    """Logical CPUs per replica, for placement."""
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per replica; only the encoder computes on one."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Replicas:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}: raise max_replicas"
            )
        return self


class RequestLimits(Section):
    """The most that one request may ask for."""

    max_k: PositiveInt = 200
    """Longest list a request may ask for."""
    max_history: PositiveInt = 1000
    """Most items a request's history may carry; also how many later events of a user are read."""
    max_text_chars: PositiveInt = 4000
    """Longest query or profile, in characters."""
    max_events: PositiveInt = 1000
    """Most events in one call of /v1/events."""
    max_body_bytes: PositiveInt = 4_000_000
    """Largest body of any request; more is refused before it is read."""


class AppConfig(Section):
    """What the Serve application is told, however it is deployed."""

    limits: RequestLimits = RequestLimits()
    """The most that one request may ask for."""
    ingress: Replicas = Replicas(target_ongoing_requests=16, max_ongoing_requests=64)
    """Validation, orchestration, feedback."""
    encoder: Replicas = Replicas()
    """Text to vectors."""
    retriever: Replicas = Replicas()
    """Candidates."""
    reranker: Replicas = Replicas()
    """Final order."""


class ServeConfig(AppConfig):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; with HAProxy in front Serve binds to all interfaces whatever this says."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """HTTP port."""


class Recipe(Section):
    """Everything a run needs; the file `--recipe NAME` or `--config FILE` names."""

    name: str
    """Short name; artifacts and logs carry it."""
    workspace: Uri = "runs/{name}"
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
        if self.data.items is None and self.fusion.item_vector != "id":
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

    @property
    def sharding(self) -> Sharding:
        """`train.sharding`, with `auto` worked out."""
        if self.train.sharding == "auto":
            return "ddp" if self.encoder.tuning == "frozen" else "zero2"
        return self.train.sharding

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
        missing = set() if self.data.items is not None else {"text"}
        if "item_item" not in {*self.fusion.signals, *self.retrieval.candidates}:
            missing.add("item_item")
        if lacking := sorted(missing & set(self.fusion.weights or ())):
            raise ValueError(
                f"fusion.weights names {' and '.join(lacking)}, but there will be no such signal: text needs "
                "data.items, and item_item must be among fusion.signals; add it there, or leave the weight out"
            )
        if self.data.items is None and {*self.fusion.signals} == {"text"}:
            raise ValueError(
                "fusion.signals names only text, but data.items is not given, so there are no item texts: name "
                "another signal, such as neural"
            )
        if self.data.items is None and {*self.retrieval.candidates} == {"text"}:
            raise ValueError(
                "retrieval.candidates names only text, but data.items is not given, so there are no item texts: "
                "name another source, such as neural"
            )
        return self
