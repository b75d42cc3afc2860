"""Epoch metrics and worker failures, from Ray Train's controller process to a progress bar in the driver."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from llmrec_ray.errors import LlmrecError

__all__ = ["ReportToDriver", "progress_bar"]

logger = logging.getLogger(__name__)


class ReportToDriver(ray.train.UserCallback):  # type: ignore[misc]
    """Runs in the controller; puts what happens into a queue that the driver reads, or only warns of failures."""

    def __init__(self, channel: Queue | None) -> None:
        self._channel = channel

    def say(self, text: str) -> None:
        """A line for people, from any process."""
        if self._channel is not None:
            self._channel.put(text)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Metrics of the first worker, after an epoch or within it."""
        if self._channel is not None:
            self._channel.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Which workers failed, and how; what the run ends with is said then."""
        if any(isinstance(error, LlmrecError) for error in worker_exceptions.values()):
            return
        failures = {rank: _last_line(error) for rank, error in worker_exceptions.items()}
        if self._channel is None:
            _warn_of(failures)
        else:
            self._channel.put(failures)


@contextlib.contextmanager
def progress_bar(epochs: int, selection: str, *, shown: bool = True) -> Iterator[ReportToDriver]:
    """A bar over epochs on stderr for the length of the block; the callback feeds it.

    selection: the metric that it shows. Without `shown` no process is started for it, which many short runs would feel.
    """
    if not shown:
        yield ReportToDriver(None)
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # a lost node must not end the run
    reader = threading.Thread(target=_show, args=(channel, epochs, selection), daemon=True)
    reader.start()
    try:
        yield ReportToDriver(channel)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            channel.put(None)
            reader.join()
            channel.shutdown()


def _show(channel: Queue, epochs: int, selection: str) -> None:
    bar = tqdm(total=epochs, desc="train", unit="epoch")
    with contextlib.suppress(ray.exceptions.RayError), bar:
        while (message := channel.get()) is not None:
            if isinstance(message, str):
                with tqdm.external_write_mode():
                    logger.info("%s", message)
            elif "epoch" in message:
                bar.update(int(message["epoch"]) - bar.n)
                bar.set_postfix_str(_line(message, selection))
            elif "step" in message:
                bar.set_postfix_str(f"step {message['step']:.0f}, loss {message['loss']:.4f}")
            else:
                _warn_of(message)


def _warn_of(failures: dict[int, str]) -> None:
    logger.warning("Training workers failed: %s", failures)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _line(metrics: dict[str, Any], selection: str) -> str:
    loss = f"loss {metrics['loss']:.4f}, " if "loss" in metrics else "before the first step, "
    return f"{loss}validation {selection} {metrics[selection]:.4f}, best epoch {metrics['best_epoch']:.0f}"
