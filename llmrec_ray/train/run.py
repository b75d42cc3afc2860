"""Recipe and data -> a trained model, through Ray Train: the driver's side.

The run's folder holds Ray Train's checkpoints (the newest and the best) and `run.json`, which says what was
trained on what, so that only the same run is resumed. It knows no Bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import ray
import ray.train
from pyarrow import fs as pafs
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from llmrec_ray.artifact import read_json, write_json_atomic
from llmrec_ray.config import Recipe
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, ClusterError, CorruptArtifactError
from llmrec_ray.train.checkpoint import load_state, load_weights
from llmrec_ray.train.failures import RestartUnlessExplained, explain
from llmrec_ray.train.inputs import TrainingInputs
from llmrec_ray.train.loop import SELECTION
from llmrec_ray.train.progress import ReportToDriver, progress_bar
from llmrec_ray.train.worker import stop_file, train_worker

__all__ = ["TrainedModel", "run_training"]

logger = logging.getLogger(__name__)

SECTIONS_THAT_MATTER = ("seed", "encoder", "model", "train", "fusion")
FREE_TO_CHANGE = {
    "train": {
        "num_workers", "min_workers", "sharding", "offload", "accumulation_steps", "use_gpu", "patience",
        "max_failures", "checkpoint_steps", "compile",
    },
    "encoder": {"max_batch_tokens", "gradient_checkpointing", "cached_states_gb", "num_actors", "attention"},
}
MODEL_PREFIX, BACKBONE_PREFIX = "model.", "text_source.tuned.backbone."
RAYS_RECORD = "checkpoint_manager_snapshot.json"
POLL_S = "0.2"
WAIT_FOR_LOST_NODE_S = "15"
RESIZE_CHECK_S = 60.0


@dataclass(frozen=True)
class TrainedModel:
    """The weights of the best epoch.

    model_state: state dict of the `FusionRecommender`. encoder_state: the trained tensors of the encoder's
    backbone, by its names; empty when the encoder is frozen. epochs: metrics of every epoch, oldest first; epoch 0 is
    the Bundle that training started from.
    """

    model_state: dict[str, Tensor]
    encoder_state: dict[str, Tensor]
    epochs: list[dict[str, float]]
    best_epoch: int
    seconds: float

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return next(metrics for metrics in self.epochs if metrics["epoch"] == self.best_epoch)


def run_training(
    recipe: Recipe,
    inputs: TrainingInputs,
    run_dir: str,
    *,
    data_id: str = "",
    resume: bool = False,
    callbacks: Sequence[ray.train.UserCallback] = (),
    show_progress: bool = True,
) -> TrainedModel:
    """Train with the recipe's workers and sharding on the connected Ray; checkpoints go to `run_dir`.

    Without `resume` what is in `run_dir` is replaced. With it, the run that was stopped there goes on from
    its last checkpoint, also with other workers, another sharding, or settings that only cost memory or time; nothing
    else may differ.

    Raises TrainingError (loss not finite, or workers failed too often), ClusterError (too few CPUs or GPUs),
    ArtifactNotFoundError and ArtifactMismatchError (nothing, or another run, to resume).
    """
    inputs.check()
    _check_cluster(recipe)
    _open_run(run_dir, _identity(recipe, inputs, data_id), resume=resume)
    started = time.perf_counter()
    with progress_bar(recipe.train.epochs, shown=show_progress) as reporter:
        result = _fit(recipe, inputs, run_dir, reporter, callbacks)
    trained = _best(result, time.perf_counter() - started)
    logger.info("trained up to epoch %d in %.1f s, best validation ndcg@10 %.4f at epoch %d%s",
                trained.epochs[-1]["epoch"], trained.seconds, trained.best[SELECTION], trained.best_epoch,
                "" if trained.best_epoch else ": no epoch was better than the Bundle it started from")
    return trained


def _fit(
    recipe: Recipe, inputs: TrainingInputs, run_dir: str, reporter: ReportToDriver,
    callbacks: Sequence[ray.train.UserCallback],
) -> ray.train.Result:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)  # a report waits for the next poll
    if not _has_dashboard():  # a private Ray: nobody announces that its machine will be taken away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    train = recipe.train
    if train.min_workers is not None:  # how long the old size is retried before going on with fewer
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", WAIT_FOR_LOST_NODE_S)
    trainer = _Trainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump_json(), "inputs": ray.put(inputs), "run_dir": run_dir,
            "reporter": reporter,
        },
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers if train.min_workers is None else (train.min_workers, train.num_workers),
            use_gpu=train.use_gpu, resources_per_worker=_resources(recipe),
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        ),
        run_config=ray.train.RunConfig(
            name=PurePosixPath(run_dir).name,
            storage_path=str(run_dir).rpartition("/")[0],
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
            ),
            callbacks=[reporter, *callbacks],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with _interruptible():
            return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise explain(error, run_dir, train.max_failures) from error
    except KeyboardInterrupt:
        logger.warning(
            "Training was stopped: --resume goes on from the last checkpoint in %s, if there is one.", run_dir
        )
        raise


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stops training as KeyboardInterrupt, and means what it meant before once training is over.

    Ray Train 2.60 replaces the handler of SIGINT, ends the process with status 0, and does not put it back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """With a failure policy of its own, and without the watcher for dead controllers where no dashboard runs, since it
    would only complain."""

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        policy = RestartUnlessExplained(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        unheard = set() if _has_dashboard() else {"PlacementGroupCleanerCallback"}
        return [callback for callback in callbacks if type(callback).__name__ not in unheard]


def _has_dashboard() -> bool:
    address = ray.get_runtime_context().gcs_address
    return bool(ray.init(address, ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url)


def _best(result: ray.train.Result, seconds: float) -> TrainedModel:
    assert result.checkpoint is not None, "training ended without a checkpoint. This is a bug."
    with result.checkpoint.as_directory() as folder:
        state = load_state(Path(folder))
    checkpoint, metrics = max(result.best_checkpoints, key=lambda entry: entry[1][SELECTION])
    with checkpoint.as_directory() as folder:
        weights = load_weights(Path(folder))
    return TrainedModel(
        model_state=_under(MODEL_PREFIX, weights), encoder_state=_under(BACKBONE_PREFIX, weights),
        epochs=state.epochs, best_epoch=int(metrics["epoch"]), seconds=seconds,
    )


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _resources(recipe: Recipe) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if recipe.train.use_gpu else {"CPU": 1}


def _check_cluster(recipe: Recipe) -> None:
    have = ray.cluster_resources()
    for kind, each in _resources(recipe).items():
        field = "num_workers" if recipe.train.min_workers is None else "min_workers"
        workers = getattr(recipe.train, field)
        if have.get(kind, 0) < each * workers:
            raise ClusterError(
                f"train.{field} is {workers}, which needs {each * workers:g} {kind}s, but Ray has "
                f"{have.get(kind, 0):g}: set train.{field} lower, or join a larger cluster."
            )


def _identity(recipe: Recipe, inputs: TrainingInputs, data_id: str) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    tree = recipe.model_dump(mode="json", include=set(SECTIONS_THAT_MATTER))
    for section, free in FREE_TO_CHANGE.items():
        tree[section] = {key: value for key, value in tree[section].items() if key not in free}
    if inputs.start_id:  # the Bundle may have moved; its encoder is a part of it
        tree["train"]["warm_start"] = inputs.start_id
        tree["encoder"]["model"] = "of the Bundle" if recipe.fusion.item_vector != "id" else recipe.encoder.model
    vectors = b"" if inputs.text_vectors is None else np.ascontiguousarray(inputs.text_vectors).data
    return {"recipe": tree, "dataset": data_id, "text_vectors": hashlib.sha256(vectors).hexdigest()[:16]}


def _open_run(run_dir: str, identity: dict[str, Any], *, resume: bool) -> None:
    record = f"{run_dir}/run.json"
    if not resume:
        _remove(run_dir)
        write_json_atomic(record, identity)
        return
    try:
        before = read_json(record)
    except FileNotFoundError:
        raise ArtifactNotFoundError(
            f"There is no training run to resume in {run_dir}: run `llmrec train` without --resume."
        ) from None
    _check_record(run_dir)
    if changed := _differences(before, json.loads(json.dumps(identity))):
        raise ArtifactMismatchError(
            f"The run in {run_dir} cannot be resumed, since {', '.join(changed)} changed: use the recipe and "
            "data it was started with, or train anew without --resume."
        )
    Path(stop_file(run_dir)).unlink(missing_ok=True)


def _check_record(run_dir: str) -> None:
    """Ray Train writes its record of checkpoints over the last one, which a full disk may cut short."""
    try:
        read_json(f"{run_dir}/{RAYS_RECORD}")
    except FileNotFoundError:
        logger.warning("The run in %s was stopped before its first checkpoint was complete: it begins anew.", run_dir)
    except CorruptArtifactError:
        raise CorruptArtifactError(
            f"{run_dir}/{RAYS_RECORD}, the record of the run's checkpoints, is damaged: train anew without --resume."
        ) from None


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [path.removeprefix("recipe.")] if before != now else []
    keys = sorted(before.keys() | now.keys())
    pairs = [(before.get(key), now.get(key), f"{path}.{key}".strip(".")) for key in keys]
    return [name for pair in pairs for name in _differences(*pair)]


def _remove(run_dir: str) -> None:
    if "://" not in run_dir:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    filesystem, path = pafs.FileSystem.from_uri(run_dir)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        filesystem.delete_dir(path)
