"""Campaigns made by arithmetic, not by training: records, outcomes and what was found after them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from llmrec_ray.config import FusionMode, Recipe, load_recipe, override_recipe
from llmrec_ray.policy import PolicyFound
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.tune.outcome import Confirmation, Finalist, Finals, Outcome
from llmrec_ray.tune.records import TrialRecord, best_record, best_records

__all__ = ["METRIC", "SEARCH", "full_outcome", "made_finals", "made_outcome", "made_record", "searched_recipe"]

METRIC = "fused_ndcg@10"
SEARCH = {
    "train.learning_rate": {"loguniform": [1e-4, 3e-2]},
    "model.dropout": {"uniform": [0.0, 0.6]},
    "train.batch_size": {"choice": [16, 64, 256]},
    "train.loss": {"choice": ["sampled_softmax", "full_softmax", "bpr"]},
    "model.embedding_size": {"int": [16, 128]},
}


def searched_recipe(*overrides: str) -> Recipe:
    """The packaged recipe with SEARCH, 16 trials of 9 epochs."""
    tree = load_recipe("movielens-100k").model_dump(mode="json")
    tree["tune"] |= {"search": SEARCH, "epochs": 9, "name": "spring"}
    return override_recipe(Recipe.model_validate(tree), list(overrides))


def made_record(number: int, *, epochs: int = 9, seed: int = 0, **settings) -> TrialRecord:
    """A trial whose value depends most on the learning rate, less on dropout, and not at all on the rest."""
    rng = random.Random(f"{seed}-{number}")
    tried = {
        "train.learning_rate": math.exp(rng.uniform(math.log(1e-4), math.log(3e-2))),
        "model.dropout": rng.uniform(0.0, 0.6), "train.batch_size": rng.choice([16, 64, 256]),
        "train.loss": rng.choice(SEARCH["train.loss"]["choice"]), "model.embedding_size": rng.randint(16, 128),
    } | {key.replace("__", "."): value for key, value in settings.items()}
    top = 0.105 - 0.02 * math.log10(tried["train.learning_rate"] / 4e-3) ** 2 - 0.05 * abs(tried["model.dropout"] - 0.2)
    entries = []
    for epoch in range(1, epochs + 1):
        neural = top * (1 - math.exp(-0.6 * epoch)) + rng.gauss(0, 0.0008)
        curve = [[share / 10, round(neural + 0.012 - 0.03 * (share / 10 - 0.6) ** 2, 6)] for share in range(11)]
        entries.append({
            "epoch": epoch, "step": epoch * 100, "loss": 6.0 - top * epoch, "ndcg@10": neural, "hr@10": neural * 2,
            METRIC: max(value for _, value in curve), "neural_share": 0.6, "fused_curve": curve, "train_s": 1.8,
            "epoch_s": 2.0, "seconds": 2.0 * epoch, "checkpoint": f"checkpoint_{epoch:06d}",
        })
    return TrialRecord(
        number=number, settings=tried, until=epochs, status="finished", epochs=entries, seconds=2.0 * epochs + 4,
        training_s=2.0 * epochs, started_at=f"2026-03-01T09:{number % 60:02d}:00+00:00",
    )


def made_outcome(records: list[TrialRecord], recipe: Recipe | None = None, **more) -> Outcome:
    """An Outcome over some records, without what comes after the search unless it is given."""
    recipe = searched_recipe() if recipe is None else recipe
    winner = best_record(records, METRIC)
    assert winner is not None
    overrides = [f"{key}={value}" for key, value in winner.settings.items() if key in SEARCH]
    outcome = Outcome(
        name="spring", recipe=recipe, dataset="0123456789abcdef", space=recipe.tune.search, records=records,
        metric=METRIC, label="validation NDCG@10 of the fused signals", winner=winner, overrides=overrides,
        best_recipe=override_recipe(recipe, overrides), seconds=312.5,
    )
    return replace(outcome, **more)


def made_finals(outcome: Outcome, mode: FusionMode | None = "late") -> Finals:
    """In which the second of the search won, the first was luckier there, and the third failed with a seed."""
    first, second, third = (record.number for record in best_records(outcome.records, METRIC)[:3])
    finalists = (
        Finalist(second, 0.1131, {"learned": {11: 0.1102, 12: 0.1106}, "late": {11: 0.1118, 12: 0.1124}}),
        Finalist(first, 0.1138, {"learned": {11: 0.1112, 12: 0.1108}, "late": {11: 0.1101, 12: 0.1095}}),
        Finalist(third, 0.1122, {"learned": {11: 0.1104}, "late": {11: 0.1099}}, {12: "It broke with 12."}),
    )
    return Finals((11, 12), finalists, second, mode, {second: "late", first: "learned"})


def full_outcome(trials: int = 16) -> Outcome:
    """A campaign in which everything happened: trials stopped, failed and retried, a policy, and fresh seeds."""
    poor = {"train__learning_rate": 4e-4, "model__dropout": 0.5, "train__loss": "bpr"}
    own = poor | {"train__batch_size": 16, "model__embedding_size": 64}
    recipe = searched_recipe(*(f"{key.replace('__', '.')}={value}" for key, value in poor.items()))
    records = [made_record(0, **own)] + [
        made_record(n, epochs=9 if n % 3 == 2 else 2 if n % 3 == 1 else 6) for n in range(1, trials)
    ]
    records = [
        record if len(record.epochs) == 9 else record.model_copy(update={
            "status": "stopped", "reason": f"rung {len(record.epochs)}: not among the best third of 7 trials",
        }) for record in records
    ]
    records[3] = made_record(3, epochs=1).model_copy(update={
        "status": "failed", "reason": "The loss is not finite in step 104: lower train.learning_rate.",
    })
    records[5] = made_record(5, epochs=0).model_copy(update={
        "status": "failed", "reason": "Worker 0 ran out of memory, again after smaller pieces.",
        "retried": "ran out of memory with encoder.max_batch_tokens 4096",
    })
    policy = PolicyFound(
        overrides=["fusion.mode=late", "retrieval.candidates.text=20"], value=0.1142, base=0.1121,
        table=[
            {"fusion.mode": "learned", "value": 0.1121, "candidates": 370},
            {"fusion.mode": "late", "value": 0.1146, "candidates": 370},
            {"fusion.mode": "late", "retrieval.candidates.text": 20, "value": 0.1142, "candidates": 340},
        ],
        curve=[[share / 20, 0.114 - 0.02 * (share / 20 - 0.55) ** 2] for share in range(21)],
        weights={"neural": 0.52, "item_item": 0.31, "ncf": 0.11, "text": 0.06, "popularity": 0.0}, seconds=1.84,
        left_out={"fusion.cold_scale": "validation holds no items that nobody had met"},
        policy=FusionPolicy(weights={"neural": 0.52, "item_item": 0.48}, candidates={"neural": 150, "text": 20}),
    )
    confirmation = Confirmation(
        winner={101: 0.1118, 102: 0.1131, 103: 0.1109}, default={101: 0.1071, 102: 0.1092, 103: 0.1078},
        test=0.1043, test_seed=101, test_uri="runs/movielens-100k/evaluations/evaluation-0011223344556677",
    )
    outcome = made_outcome(records, recipe, policy=policy, confirmation=confirmation)
    overrides = [*outcome.overrides, *policy.overrides]
    return replace(outcome, overrides=overrides, best_recipe=override_recipe(outcome.recipe, overrides))
