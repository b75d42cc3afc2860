"""A judge's legs -> Ray Tune trials, as many at once as the cluster has room for; and a bar for people, see `progress`.

Ray Tune runs them first come, first served, and is told nothing it would have to remember: a campaign that was killed
starts a new experiment on the same records.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import ray
import ray.tune
from ray.actor import ActorHandle
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher
from tqdm import tqdm

from llmrec_ray.config import Recipe
from llmrec_ray.tune.progress import Standing
from llmrec_ray.tune.room import concurrent_trials
from llmrec_ray.tune.schedule import Plan
from llmrec_ray.tune.trial import run_leg

__all__ = ["run_search"]

logger = logging.getLogger(__name__)

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "1",  # no tables: bar and files say it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a leg that fails before its first epoch reports nothing
}
LEG_RESOURCES = {"memory": 2**20}
"""A leg itself only waits for its training workers, which ask for CPUs of their own; Tune wants something."""
RESTARTS = 2
"""How often a leg whose process was lost, as with its machine, is run again."""


def run_search(recipe: Recipe, plan: Plan, root: str, data_id: str, judge: ActorHandle, shared: ActorHandle) -> None:
    """Train legs until the judge has none. Raises ClusterError when there is no room for a single trial."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune.tune").setLevel(logging.ERROR)  # when stopped, it tells how to restore its own state
    concurrent = concurrent_trials(recipe)
    trainable = ray.tune.with_parameters(
        run_leg, recipe_json=recipe.model_dump_json(), root=root, data_id=data_id, judge=judge, shared=shared
    )
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, LEG_RESOURCES),
        tune_config=ray.tune.TuneConfig(
            metric=plan.metric, mode="max", num_samples=-1, max_concurrent_trials=concurrent,
            search_alg=_Legs(judge, plan.metric, root), reuse_actors=True,
            trial_name_creator=_name, trial_dirname_creator=_folder_name,
        ),
        run_config=ray.tune.RunConfig(
            name=f"experiment-{uuid.uuid4().hex[:8]}", storage_path=f"{root}/ray", verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=RESTARTS),
            callbacks=[JsonLoggerCallback(), _Progress(judge)],
        ),
    )
    with _handlers_kept(), contextlib.redirect_stdout(io.StringIO()):  # Ray Tune's boxes, which know nothing of legs
        tuner.fit()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ctrl-C means afterwards what it meant before: Ray Tune 2.60 leaves handlers that only note the first signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Legs(Searcher):  # type: ignore[misc]
    """Hands Ray Tune the judge's legs."""

    def __init__(self, judge: ActorHandle, metric: str, root: str) -> None:
        super().__init__(metric=metric, mode="max")
        self._judge, self._root = judge, root
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A leg; None when there is none now."""
        given = ray.get(self._judge.next_assignment.remote())
        if given is None:
            return Searcher.FINISHED if ray.get(self._judge.is_over.remote()) else None
        _say(given.said)
        self._numbers[trial_id] = given.number
        return {"trial": given.number, "until": given.until, **given.settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A leg that ended without telling the judge has too often lost its process, or met what nobody expects."""
        number = self._numbers.pop(trial_id)
        if error and ray.get(self._judge.is_active.remote(number)):
            reason = (
                f"it was restarted {RESTARTS} times from its last checkpoint and ended each time without a reason for "
                f"people, as when its process is lost: see error.txt of trial {number} below {self._root}/ray"
            )
            ray.get(self._judge.fail.remote(number, reason))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""


class _Progress(ray.tune.Callback):  # type: ignore[misc]
    """A bar over epochs on stderr, a line whenever a leg ends, and one in the end."""

    def __init__(self, judge: ActorHandle) -> None:
        self._judge = judge

    def setup(self, **info: Any) -> None:
        """Made here and not before, since Tune pickles its callbacks."""
        now: Standing = ray.get(self._judge.standing.remote())
        self._bar = tqdm(total=now.planned, initial=now.done, desc="tune", unit="epoch", postfix=now.text)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Before the first epoch, which may take long."""
        self._show()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """After every epoch, of which the judge knows first."""
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A line on the trial."""
        _say(ray.get(self._judge.leg_line.remote(trial.config["trial"])))
        self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """As above."""
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The bar ends."""
        self._show()
        self._bar.close()
        logger.info("%s", ray.get(self._judge.summary.remote()))

    def _show(self) -> None:
        now: Standing = ray.get(self._judge.standing.remote())
        self._bar.total = now.planned
        self._bar.n = max(self._bar.n, now.done)  # epochs that are done again after a lost process count once
        self._bar.set_postfix_str(now.text)


def _say(line: str | None) -> None:
    """A line above the bar."""
    if line is not None:
        with tqdm.external_write_mode():
            logger.info("%s", line)


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:05d}-{trial.trial_id}"


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:05d}-to-{trial.config['until']:03d}-{trial.trial_id}"
