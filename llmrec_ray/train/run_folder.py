"""The folder of a training run: Ray Train's checkpoints, and what is said beside them.

    run.json        what was trained on what, so that only the same run is resumed
    stopped.json    the epoch after which the run was told to end before its last: it is over while it stands there

It knows a folder, local or on an object store, and no workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError  # noqa: PLC2701

from llmrec_ray.config import FusionConfig, Recipe
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from llmrec_ray.storage import delete_folder, read_json, write_json_atomic
from llmrec_ray.train.checkpoint import LoopState, load_state
from llmrec_ray.train.inputs import TrainingInputs
from llmrec_ray.train.loop import is_over

__all__ = ["begin_run", "identity", "mark_stopped", "resume_run", "state_of"]

logger = logging.getLogger(__name__)

RUN, STOPPED, RAYS_RECORD = "run.json", "stopped.json", "checkpoint_manager_snapshot.json"
SECTIONS_THAT_MATTER = ("seed", "encoder", "model", "train", "fusion")
FREE_TO_CHANGE = {
    "train": {
        "num_workers", "min_workers", "sharding", "offload", "accumulation_steps", "use_gpu", "patience",
        "max_failures", "checkpoint_steps", "compile",
    },
    "encoder": {"max_batch_tokens", "gradient_checkpointing", "cached_states_gb", "num_actors", "attention"},
    "fusion": FusionConfig.model_fields.keys() - {"item_vector"},
}
FIRST_SELECTION = "ndcg@10"
"""That of runs that did not write theirs down."""


def identity(recipe: Recipe, inputs: TrainingInputs, data_id: str, start_from: str | None) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    tree = _without_free(recipe.model_dump(mode="json", include=set(SECTIONS_THAT_MATTER)))
    if inputs.start_id:  # the Bundle may have moved; its encoder is a part of it
        tree["train"]["warm_start"] = inputs.start_id
        tree["encoder"]["model"] = "of the Bundle" if recipe.fusion.item_vector != "id" else recipe.encoder.model
    vectors = b"" if inputs.text_vectors is None else np.ascontiguousarray(inputs.text_vectors).data
    return {
        "recipe": tree, "dataset": data_id, "text_vectors": hashlib.sha256(vectors).hexdigest()[:16],
        "selection": inputs.selection, **({} if start_from is None else {"start_from": start_from}),
    }


def begin_run(run_dir: str, identity: dict[str, Any]) -> None:
    """Make the folder of a new run; what was there is removed."""
    delete_folder(run_dir)
    write_json_atomic(f"{run_dir}/{RUN}", identity)


def resume_run(
    run_dir: str, identity: dict[str, Any], recipe: Recipe, verdict: Callable[[int], bool] | None = None
) -> tuple[ray.train.Result, str] | None:
    """The result of a run that is over, and the metric that chose its best checkpoint; None for one that may go on.

    A run that was told to end is over unless a `verdict` says that it may go on from there.

    Raises ArtifactNotFoundError (nothing to resume), ArtifactMismatchError (another run), CorruptArtifactError.
    """
    try:
        before = read_json(f"{run_dir}/{RUN}")
    except FileNotFoundError:
        raise ArtifactNotFoundError(
            f"There is no training run to resume in {run_dir}: run `llmrec train` without --resume."
        ) from None
    result = _finished_run(run_dir, recipe, verdict) if _has_checkpoints(run_dir) else None
    selection = str(before.get("selection", FIRST_SELECTION))
    then = before | {"recipe": _without_free(before["recipe"]), "selection": selection}
    now = json.loads(json.dumps(identity))
    if result is not None:  # what it gave no longer depends on these
        then, now = ({**each, "selection": selection, "start_from": None} for each in (then, now))
    if changed := _differences(then, now):
        raise ArtifactMismatchError(
            f"The run in {run_dir} cannot be resumed, since {', '.join(changed)} changed: use the recipe and "
            "data it was started with, or train anew without --resume."
        )
    return None if result is None else (result, selection)


def state_of(result: ray.train.Result) -> LoopState:
    """Where the loop stood at the newest checkpoint."""
    assert result.checkpoint is not None, "training ended without a checkpoint. This is a bug."
    with result.checkpoint.as_directory() as folder:
        return load_state(Path(folder))


def mark_stopped(run_dir: str, epoch: int) -> None:
    """Remember that the run was told to end after this epoch."""
    write_json_atomic(f"{run_dir}/{STOPPED}", {"epoch": epoch})


def _finished_run(
    run_dir: str, recipe: Recipe, verdict: Callable[[int], bool] | None
) -> ray.train.Result | None:
    try:
        with warnings.catch_warnings():  # Ray 2.60 reads its record through pydantic's old names
            warnings.simplefilter("ignore", DeprecationWarning)
            result = ray.train.Result.from_path(run_dir)
    except CheckpointManagerInitializationError as error:
        raise CorruptArtifactError(
            f"The checkpoints that {run_dir}/{RAYS_RECORD} names cannot be used ({str(error).splitlines()[0]}): train "
            "anew without --resume."
        ) from error
    if result.checkpoint is None:
        return None
    state = state_of(result)
    if is_over(state, recipe.train):
        return result
    if state.losses or state.epoch == 0:
        return None
    told_to_end = _stopped_after(run_dir) == state.epoch if verdict is None else verdict(state.epoch)
    return result if told_to_end else None


def _stopped_after(run_dir: str) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return int(read_json(f"{run_dir}/{STOPPED}")["epoch"])
    return None


def _without_free(tree: dict[str, Any]) -> dict[str, Any]:
    return tree | {
        section: {key: value for key, value in tree[section].items() if key not in free}
        for section, free in FREE_TO_CHANGE.items() if section in tree
    }


def _has_checkpoints(run_dir: str) -> bool:
    """Ray Train writes its record of checkpoints over the last one, which a full disk may cut short."""
    try:
        read_json(f"{run_dir}/{RAYS_RECORD}")
        return True
    except FileNotFoundError:
        logger.warning("The run in %s was stopped before its first checkpoint was complete: it begins anew.", run_dir)
        return False
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
