"""A Dataset and a trained model -> lists of candidates that neither training nor validation makes optimistic.

Whoever learns how much to trust a signal must see it on events that it was not fitted on. So each person's last train
events are taken away, the towers and the item-item signal are fitted once more on what is left, with the same recipe,
and retrieve candidates in memory for the events that were taken away, each after the history before it. The twin's
vectors are turned into the space of the model that is served (orthogonal Procrustes), so that what is learnt on the
former's holds for the latter's.

Shapes: U users, L lists, C candidates, N items, D embedding size.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmrec_ray.bundle import Scorer
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.errors import DataError
from llmrec_ray.model import catalogue_vectors
from llmrec_ray.model.context import context_sizes
from llmrec_ray.ranking import mask_seen, top_k
from llmrec_ray.signals import Calibration, CandidateLists, Ease, Given, Popularity, Signal, TextCosine
from llmrec_ray.train.checkpoint import load_weights
from llmrec_ray.train.inputs import TrainingInputs, build_recommender
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["HeldOut", "cross_fitted_lists", "hold_out", "make_lists"]

logger = logging.getLogger(__name__)

MAX_LISTS = 20_000
BATCH_LISTS = 256
MAX_CALIBRATION_SCORES = 2_000_000
PREFIX = "model."


@dataclass(frozen=True)
class HeldOut:
    """Train events cut in two: rest [U] histories, and the L events after them, each with the history before it.

    counted: [E] bool, which train events are in `rest`.
    """

    rest: Histories
    histories: Histories
    targets: IntArray
    counted: NDArray[np.bool_]


def hold_out(train: Histories, last: int, times: IntArray, seed: int = 0) -> HeldOut:
    """Take away everybody's `last` newest events, but never the first; at most MAX_LISTS, drawn at random, are asked
    for, each history at the time of its event. times: [E] int64 unix seconds of the train events."""
    ages = np.repeat(train.indptr[1:], train.lengths) - np.arange(len(train.item_rows))
    first = np.zeros(len(train.item_rows), np.bool_)
    first[train.indptr[:-1][train.lengths > 0]] = True
    counted = (ages > last) | first
    owners = np.repeat(np.arange(len(train)), train.lengths)
    kept = np.bincount(owners[counted], minlength=len(train))
    events = np.flatnonzero(~counted)
    if len(events) > MAX_LISTS:
        events = np.sort(np.random.default_rng(seed).choice(events, MAX_LISTS, replace=False))
    pasts = [train.item_rows[train.indptr[owners[event]] : event] for event in events]
    histories = Histories.from_lists(pasts, train.user_rows[owners[events]].tolist(), times[events])
    asked_at = np.full(len(train), -1, np.int64)
    users, first_asked = np.unique(owners[events], return_index=True)
    asked_at[users] = times[events[first_asked]]
    indptr = np.concatenate([[0], np.cumsum(kept)])
    rest = Histories(train.user_rows, indptr, train.item_rows[counted], asked_at)
    return HeldOut(rest, histories, train.item_rows[events], counted)


def cross_fitted_lists(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, last: int, signals: Sequence[str]
) -> tuple[CandidateLists, HeldOut]:
    """Lists of candidates scored by a twin of `scorer` that has not seen their targets, in the scorer's vector space.

    last: events of each person that are held out. signals: those whose scores are wanted. Costs as much as training
    the towers once in this process. Raises DataError when there is nothing to learn from.
    """
    held_out = hold_out(dataset.histories("train"), last, dataset.history_times("train"), recipe.seed)
    if not len(held_out.targets):
        raise _nothing_to_learn_from(held_out)
    twin = _twin(recipe, dataset, scorer, held_out)
    counts = np.bincount(held_out.rest.item_rows, minlength=len(dataset.items))
    lists = make_lists(recipe, twin, held_out, counts, signals)
    turn = _turn(twin.item_vectors, scorer.item_vectors, counts)
    return _turned(lists, turn), held_out


def make_lists(
    recipe: Recipe, scorer: Scorer, held_out: HeldOut, item_counts: IntArray, signals: Sequence[str]
) -> CandidateLists:
    """The retriever's candidates for every held-out event; events whose item is not among them are left out.

    item_counts: [N] events that the scorer was fitted on; items without any are no candidates, as they are not fused.
    Raises DataError when no list is left.
    """
    sources = {str(name): n for name, n in recipe.retrieval.candidates.items() if name in {"neural", *scorer.signals}}
    parts: list[_Part] = []
    for part, targets in _batches(held_out.histories, held_out.targets):
        users = scorer.user_vectors(part)
        rows = _retrieve(scorer, sources, part, users, item_counts > 0)
        found = rows == targets[:, None]
        inside = np.flatnonzero(found.any(axis=1))
        histories, rows, users = part.select(inside), rows[inside], users[inside]
        scores = scorer.score_items(histories, rows, users, names=signals)
        parts.append(_Part(histories, rows, users, scores, found[inside].argmax(axis=1)))
    if not sum(len(part.places) for part in parts):
        raise _nothing_to_learn_from(held_out)
    calibration = _calibrate(scorer, held_out.rest, signals)
    return _joined(parts, calibration, np.log1p(item_counts).astype(np.float32), scorer.item_vectors)


@dataclass(frozen=True)
class _Part:
    histories: Histories
    item_rows: IntArray
    users: FloatArray
    scores: dict[str, FloatArray]
    places: IntArray


def _nothing_to_learn_from(held_out: HeldOut) -> DataError:
    return DataError(
        f"The fusion mode learns from the newest train events of everybody, but of {len(held_out.targets)} such events "
        "none was found among the candidates that are retrieved: raise retrieval.candidates, or set fusion.mode to "
        "late."
    )


def _twin(recipe: Recipe, dataset: Dataset, scorer: Scorer, held_out: HeldOut) -> Scorer:
    """Fitted on the rest alone; the encoder, when it was trained, stays as it is."""
    n_items, text = len(dataset.items), scorer.signals.get("text")
    vectors = text.text_vectors if isinstance(text, TextCosine) else None
    signals: dict[str, Signal] = {"popularity": Popularity().fit(held_out.rest, n_items)}
    if "item_item" in scorer.signals:
        signals["item_item"] = Ease(recipe.item_item.l2, recipe.item_item.recency).fit(held_out.rest, n_items)
    if text is not None:
        signals["text"] = text
    alone, targets = _alone(recipe), _next_items(held_out, len(dataset.users))
    inputs = TrainingInputs.of(alone, dataset, vectors, None).part(held_out.rest, held_out.counted, targets)
    state = _trained(alone, inputs)
    text_size = None if vectors is None else vectors.shape[1]
    model = build_recommender(alone, len(dataset.users), n_items, text_size, context_sizes(state))
    model.load_state_dict(state)
    return Scorer(model, catalogue_vectors(model, vectors), signals)


def _alone(recipe: Recipe) -> Recipe:
    """The recipe for towers over fixed text vectors, trained by one process."""
    train = {"num_workers": 1, "min_workers": None, "sharding": "none", "offload": "none", "compile": False,
             "checkpoint_steps": None, "warm_start": None, "use_gpu": False, "precision": "fp32"}
    return recipe.model_copy(update={
        "encoder": recipe.encoder.model_copy(update={"tuning": "frozen"}),
        "train": recipe.train.model_copy(update=train),
    })


def _trained(recipe: Recipe, inputs: TrainingInputs) -> dict[str, Tensor]:
    """Weights of the towers at their best epoch."""
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder)

        def keep(metrics: dict[str, float], write: Callable[[Path], None]) -> None:
            if metrics["epoch"] == metrics["best_epoch"]:
                write(best)

        train_epochs(recipe, inputs, Workers(), keep, say=logger.debug)
        weights = load_weights(best)
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}


def _next_items(held_out: HeldOut, n_users: int) -> IntArray:
    """[U] each user's first held-out event that is asked for, -1 without one: what the twin stops early by."""
    targets = np.full(n_users, -1, np.int64)
    users, first = np.unique(held_out.histories.user_rows, return_index=True)
    targets[users] = held_out.targets[first]
    return targets


def _batches(histories: Histories, targets: IntArray) -> Iterator[tuple[Histories, IntArray]]:
    for start in range(0, len(histories), BATCH_LISTS):
        part = slice(start, start + BATCH_LISTS)
        yield histories.select(part), targets[part]


def _score_source(scorer: Scorer, name: str, histories: Histories, users: FloatArray) -> FloatArray:
    if name == "neural":
        return np.asarray(users @ scorer.item_vectors.T, np.float32)
    return scorer.score_signal(name, histories)


def _retrieve(
    scorer: Scorer, sources: dict[str, int], histories: Histories, users: FloatArray, allowed: NDArray[np.bool_]
) -> IntArray:
    """[B, C] item rows, ascending, -1 at the end: the union of the sources' best unseen items."""
    union = np.zeros((len(histories), len(scorer.item_vectors)), np.bool_)
    for source, n in sources.items():
        scores = mask_seen(_score_source(scorer, source, histories, users), histories)
        rows, _ = top_k(np.where(allowed, scores, -np.inf).astype(np.float32), n)
        owners, columns = np.nonzero(rows >= 0)
        union[owners, rows[owners, columns]] = True
    counts = union.sum(axis=1)
    item_rows = np.full((len(union), int(counts.max(initial=0))), -1, np.int64)
    item_rows[np.arange(item_rows.shape[1]) < counts[:, None]] = np.nonzero(union)[1]
    return item_rows


def _calibrate(scorer: Scorer, rest: Histories, signals: Sequence[str]) -> Calibration:
    """On as many people as keep the score arrays within MAX_CALIBRATION_SCORES each."""
    seen = rest.select(slice(0, max(1, MAX_CALIBRATION_SCORES // len(scorer.item_vectors))))
    users = scorer.user_vectors(seen)
    everything = scorer.score_all(seen) if "ncf" in signals else {}
    scores = {
        name: everything[name] if name in everything else _score_source(scorer, name, seen, users) for name in signals
    }
    return Calibration.fit(scores, seen)


def _joined(
    parts: Sequence[_Part], calibration: Calibration, log_counts: FloatArray, item_vectors: FloatArray
) -> CandidateLists:
    width = max(part.item_rows.shape[1] for part in parts)

    def wide(array: NDArray[np.generic], empty: float) -> NDArray[np.generic]:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=empty)

    histories = Histories.from_lists(
        [history for part in parts for history in part.histories],
        np.concatenate([part.histories.user_rows for part in parts]).tolist(),
    )
    return CandidateLists(
        scores={
            name: np.concatenate([wide(part.scores[name], np.nan) for part in parts]) for name in parts[0].scores
        },
        given=Given(
            histories, np.concatenate([wide(part.item_rows, -1) for part in parts]),
            np.concatenate([part.users for part in parts]),
        ),
        places=np.concatenate([part.places for part in parts]), calibration=calibration, log_counts=log_counts,
        item_vectors=item_vectors,
    )


def _turn(own: FloatArray, wanted: FloatArray, item_counts: IntArray) -> FloatArray:
    """[D, D] the rotation after which `own` item vectors [N, D + 1] are nearest to `wanted` (Schönemann 1966)."""
    weights = np.sqrt(item_counts)[:, None]
    left, _, right = np.linalg.svd((own[:, :-1] * weights).T @ (wanted[:, :-1] * weights))
    return np.asarray(left @ right, np.float32)


def _turned(lists: CandidateLists, turn: FloatArray) -> CandidateLists:
    def turned(vectors: FloatArray) -> FloatArray:
        return np.concatenate([vectors[:, :-1] @ turn, vectors[:, -1:]], axis=1)

    given = Given(lists.given.histories, lists.given.item_rows, turned(lists.given.users))
    return CandidateLists(
        lists.scores, given, lists.places, lists.calibration, lists.log_counts, turned(lists.item_vectors)
    )
