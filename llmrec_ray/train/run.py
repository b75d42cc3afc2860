"""Recipe and data -> a trained model, through Ray Train: the driver's side.

The run's folder holds Ray Train's checkpoints (the newest and the best, or all), see `run_folder`. It knows no Bundle.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from llmrec_ray.config import Recipe
from llmrec_ray.errors import ClusterError
from llmrec_ray.train.checkpoint import load_weights
from llmrec_ray.train.failures import RestartUnlessExplained, explain
from llmrec_ray.train.inputs import TrainingInputs
from llmrec_ray.train.loop import is_over
from llmrec_ray.train.progress import ReportToDriver, progress_bar
from llmrec_ray.train.run_folder import begin_run, identity, mark_stopped, resume_run, state_of
from llmrec_ray.train.worker import train_worker

__all__ = ["TrainedModel", "run_training"]

logger = logging.getLogger(__name__)

MODEL_PREFIX, BACKBONE_PREFIX = "model.", "text_source.tuned.backbone."
POLL_S = "0.2"
WAIT_FOR_LOST_NODE_S = "15"
RESIZE_CHECK_S = 60.0


@dataclass(frozen=True)
class TrainedModel:
    """The weights of the best epoch.

    model_state: state dict of the `FusionRecommender`. encoder_state: the trained tensors of the encoder's
    backbone, by its names; empty when the encoder is frozen. epochs: metrics of every epoch, oldest first; epoch 0 is
    the Bundle that training started from. kept: names of the checkpoints in the run's folder, by epoch.
    """

    model_state: dict[str, Tensor]
    encoder_state: dict[str, Tensor]
    epochs: list[dict[str, Any]]
    best_epoch: int
    seconds: float
    kept: dict[int, str]

    @property
    def best(self) -> dict[str, Any]:
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
    inputs_ref: ray.ObjectRef | None = None,
    verdict: Callable[[int], bool] | None = None,
    start_from: str | None = None,
    keep_all: bool = False,
    neighbours: int = 1,
) -> TrainedModel:
    """Train with the recipe's workers and sharding on the connected Ray; checkpoints go to `run_dir`.

    Without `resume` what is in `run_dir` is replaced. With it, the run that was stopped there goes on from
    its last checkpoint, also with other workers, another sharding, or settings that only cost memory or time; nothing
    else may differ. One that is over already needs no workers, and gives what it gave.

    inputs_ref: where `inputs` are in Ray's object store already. verdict: asked by the first worker after each epoch
    but the last, with its number; True ends the run there. Resumed with a verdict, such a run goes on if that says
    False now; without one it is over. start_from: folder or URI of a checkpoint that another run reported, whose
    weights, AdamW moments, epoch and step this one goes on from; rates, dropout and other settings that leave the
    architecture alone may differ. keep_all: keep the checkpoint of every epoch.
    neighbours: how many such runs, this one included, share a machine's cores.

    Raises TrainingError (loss not finite, or workers failed too often), OutOfMemoryError, DiskFullError, ClusterError
    (too few CPUs or GPUs), ArtifactNotFoundError and ArtifactMismatchError (nothing, or another run, to resume).
    """
    inputs.check()
    told = identity(recipe, inputs, data_id, start_from)
    if resume and (over := resume_run(run_dir, told, recipe, verdict)) is not None:
        _remember_end(run_dir, recipe, over[0])
        return _best(*over, seconds=0.0)
    _check_cluster(recipe)
    if not resume:
        begin_run(run_dir, told)
    started = time.perf_counter()
    job = _Job(recipe, inputs, run_dir, inputs_ref or ray.put(inputs), verdict, start_from, keep_all, neighbours)
    with progress_bar(recipe.train.epochs, inputs.selection, shown=show_progress) as reporter:
        result = job.fit(reporter, callbacks)
    trained = _best(result, inputs.selection, time.perf_counter() - started)
    _remember_end(run_dir, recipe, result)
    _log_end(trained, inputs.selection)
    return trained


def _remember_end(run_dir: str, recipe: Recipe, result: ray.train.Result) -> None:
    """That a run has ended before its last epoch; also one whose driver was killed before it could say so."""
    if not is_over(state := state_of(result), recipe.train):
        mark_stopped(run_dir, state.epoch)


def _log_end(trained: TrainedModel, selection: str) -> None:
    logger.info(
        "trained up to epoch %d in %.1f s, best validation %s %.4f at epoch %d%s", trained.epochs[-1]["epoch"],
        trained.seconds, selection, trained.best[selection], trained.best_epoch,
        "" if trained.best_epoch else ": no epoch was better than the Bundle it started from",
    )


@dataclass(frozen=True)
class _Job:
    """What `run_training` was asked for, as Ray Train wants to be told."""

    recipe: Recipe
    inputs: TrainingInputs
    run_dir: str
    inputs_ref: ray.ObjectRef
    verdict: Callable[[int], bool] | None
    start_from: str | None
    keep_all: bool
    neighbours: int

    def fit(self, reporter: ReportToDriver, callbacks: Sequence[ray.train.UserCallback]) -> ray.train.Result:
        """Run it to its end. Raises the errors of `run_training`."""
        _set_up_ray_train(self.recipe)
        trainer = _Trainer(
            train_worker,
            train_loop_config={
                "recipe": self.recipe.model_dump_json(), "inputs": self.inputs_ref, "run_dir": self.run_dir,
                "reporter": reporter, "verdict": self.verdict, "start_from": self.start_from,
                "neighbours": self.neighbours,
            },
            torch_config=TorchConfig(backend="nccl" if self.recipe.train.use_gpu else "gloo"),
            scaling_config=self._scaling(),
            run_config=self._run_config([reporter, *callbacks]),
        )
        try:
            with _interruptible():
                return trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise explain(error, self.run_dir, self.recipe) from error
        except KeyboardInterrupt:
            logger.warning(
                "Training was stopped: --resume goes on from the last checkpoint in %s, if there is one.", self.run_dir
            )
            raise

    def _scaling(self) -> ray.train.ScalingConfig:
        train = self.recipe.train
        return ray.train.ScalingConfig(
            num_workers=train.num_workers if train.min_workers is None else (train.min_workers, train.num_workers),
            use_gpu=train.use_gpu, resources_per_worker=_resources(self.recipe),
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        )

    def _run_config(self, callbacks: list[ray.train.UserCallback]) -> ray.train.RunConfig:
        return ray.train.RunConfig(
            name=PurePosixPath(self.run_dir).name,
            storage_path=str(self.run_dir).rpartition("/")[0],
            failure_config=ray.train.FailureConfig(max_failures=self.recipe.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=None if self.keep_all else 1,
                checkpoint_score_attribute=self.inputs.selection, checkpoint_score_order="max",
            ),
            callbacks=callbacks,
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        )


def _set_up_ray_train(recipe: Recipe) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)  # a report waits for the next poll
    if not _has_dashboard():  # a private Ray: nobody announces that its machine will be taken away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if recipe.train.min_workers is not None:  # how long the old size is retried before going on with fewer
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", WAIT_FOR_LOST_NODE_S)


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
    """With a failure policy of its own, and without processes that have nothing to do: the manager of Ray Datasets, of
    which there are none, and where no dashboard runs the watcher for dead controllers, which would only complain."""

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        policy = RestartUnlessExplained(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        idle = {"DatasetsCallback"} | (set() if _has_dashboard() else {"PlacementGroupCleanerCallback"})
        return [callback for callback in callbacks if type(callback).__name__ not in idle]


def _has_dashboard() -> bool:
    address = ray.get_runtime_context().gcs_address
    return bool(ray.init(address, ignore_reinit_error=True, logging_level=logging.WARNING).dashboard_url)


def _best(result: ray.train.Result, selection: str, seconds: float) -> TrainedModel:
    state = state_of(result)
    checkpoint, metrics = max(result.best_checkpoints, key=lambda entry: entry[1][selection])
    with checkpoint.as_directory() as folder:
        weights = load_weights(Path(folder))
    return TrainedModel(
        model_state=_under(MODEL_PREFIX, weights), encoder_state=_under(BACKBONE_PREFIX, weights),
        epochs=state.epochs, best_epoch=int(metrics["epoch"]), seconds=seconds,
        kept={
            int(metrics["epoch"]): PurePosixPath(checkpoint.path).name
            for checkpoint, metrics in result.best_checkpoints if "epoch" in metrics
        },
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
