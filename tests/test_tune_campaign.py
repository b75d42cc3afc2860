"""What a campaign keeps of itself between two processes that run it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from ray.tune.tune import _setup_signal_catching

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.storage import read_json, write_json_atomic
from llmrec_ray.tune import campaign
from llmrec_ray.tune.begun import check_begun, keep_begun
from llmrec_ray.tune.confirm import _say_what_is_left
from llmrec_ray.tune.fresh import identity_of
from llmrec_ray.tune.outcome import Finals
from llmrec_ray.tune.records import best_records
from llmrec_ray.tune.schedule import Plan
from llmrec_ray.tune.search import _handlers_kept
from tests.outcomes import METRIC, full_outcome, made_record, searched_recipe

DATASET = SimpleNamespace(id="0123456789abcdef", uri="datasets/dataset-0123456789abcdef")
MACHINES = ("train.num_workers=4", "train.sharding=zero2", "train.accumulation_steps=2", "evaluate.batch_users=64")


def test_what_needs_no_training_is_found_once_for_a_winner(tmp_path, monkeypatch):
    recipe, found, asked = searched_recipe(), full_outcome().policy, []
    monkeypatch.setattr(campaign, "_found", lambda *given: asked.append(given[-1].epoch) or found)

    def policy_of(epoch: int) -> object:
        winner = campaign._Winner(made_record(0), epoch)
        return campaign._policy(recipe, DATASET, Workspace(str(tmp_path)), str(tmp_path), winner)

    assert [policy_of(3), policy_of(3), policy_of(5), policy_of(5)] == [found] * 4
    assert asked == [3, 5]
    write_json_atomic(f"{tmp_path}/policy.json", read_json(f"{tmp_path}/policy.json") | {"found": {"of": "old"}})
    assert policy_of(5) == found and asked == [3, 5, 5]


def test_the_winner_is_the_finalist_that_was_chosen_and_keeps_its_mode(tmp_path, monkeypatch):
    recipe, asked = searched_recipe(), []
    records = [made_record(n, train__learning_rate=rate) for n, rate in ((0, 4e-3), (1, 1e-2), (2, 2e-3))]
    plan = Plan(recipe, {}, 9, METRIC)
    best = campaign._winner(plan, records, None)
    assert best.record is best_records(records, METRIC)[0] and best.mode is None
    assert best.settings(recipe) == best.record.settings
    third = best_records(records, METRIC)[2]
    chosen = campaign._winner(plan, records, Finals((11,), (), third.number, "late"))
    assert chosen.record is third
    assert chosen.settings(recipe) == third.settings | {"fusion.mode": "late"}
    own = campaign._winner(plan, records, Finals((11,), (), third.number, "learned"))
    assert own.settings(recipe) == third.settings, "the recipe's own mode is no setting that was changed"
    monkeypatch.setattr(campaign, "_found", lambda *given: asked.append(given[-1].mode) or full_outcome().policy)
    for winner in (chosen, chosen, own):
        campaign._policy(recipe, DATASET, Workspace(str(tmp_path)), str(tmp_path), winner)
    assert asked == ["late", "learned"]


def test_what_needs_no_training_is_the_same_when_it_is_read_again_with_keys_in_their_order(tmp_path, monkeypatch):
    found = full_outcome().policy
    monkeypatch.setattr(campaign, "_found", lambda *_: found)
    winner = campaign._Winner(made_record(0), 3, "late")
    first, again = (
        campaign._policy(searched_recipe(), DATASET, Workspace(str(tmp_path)), str(tmp_path), winner)
        for _ in range(2)
    )
    assert repr(first) == repr(again) == repr(found)


def test_settings_of_the_winner_have_the_order_of_the_search():
    search = "{train.loss: {choice: [bpr, bce]}, retrieval.merge: {choice: [all]}, model.dropout: {uniform: [0, 0.5]}}"
    settings = {"fusion.mode": "late", "model.dropout": 0.1, "retrieval.merge": "all", "train.loss": "bpr"}
    ordered = campaign._in_order(searched_recipe(f"tune.search={search}"), settings)
    assert [*ordered] == ["train.loss", "model.dropout", "retrieval.merge", "fusion.mode"] and ordered == settings


def test_a_campaign_that_is_what_it_was_before_is_the_same_artifact(tmp_path, logged):
    workspace, outcome = Workspace(str(tmp_path)), full_outcome()
    first = campaign._keep(outcome, workspace)
    assert logged.messages == []
    write_json_atomic(f"{tmp_path}/latest/campaign.json", {"uri": "another"})
    assert campaign._keep(full_outcome(), workspace) == first
    assert logged.messages == ["campaign spring is what it was before, and is shown again"]
    assert workspace.latest("campaign", made_by="tune") == first.uri
    logged.clear()
    assert campaign._keep(full_outcome(17), workspace).uri != first.uri and logged.messages == []


@pytest.mark.parametrize(("done", "said"), [
    (0, "winner and recipe are trained again with the seeds 101, 102, which the search has not seen (0 of 4 done)"),
    (4, "winner and recipe were trained again with the seeds 101, 102 before; that is shown again"),
])
def test_fresh_seeds_are_only_said_to_be_trained_when_they_are(logged, done, said):
    _say_what_is_left((101, 102), done, 4)
    assert logged.messages == [said]


@pytest.fixture
def logged(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """What people see, also after tests of the command line, which keeps it from pytest."""
    logger = logging.getLogger("llmrec_ray")
    logger.addHandler(caplog.handler)
    before, logger.propagate = logger.propagate, False
    with caplog.at_level(logging.INFO, "llmrec_ray"):
        yield caplog
    logger.removeHandler(caplog.handler)
    logger.propagate = before


def test_ctrl_c_stops_what_comes_after_the_search():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which an earlier test may have changed
    try:
        with _handlers_kept():
            _setup_signal_catching()  # as a search does
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_campaign_goes_on_on_other_machines_and_in_smaller_pieces(tmp_path):
    recipe = searched_recipe("train.sharding=none", "train.num_workers=1")
    elsewhere = override_recipe(recipe, MACHINES)
    workspace = Workspace(str(tmp_path))
    keep_begun(workspace, "spring", recipe, DATASET)

    def check(now: Recipe) -> None:
        check_begun(workspace, "spring", now, DATASET, resume=True)

    check(elsewhere)
    assert identity_of(elsewhere, DATASET, "ndcg@10") == identity_of(recipe, DATASET, "ndcg@10")
    with pytest.raises(ArtifactMismatchError, match=r"since train\.precision \(fp32, now bf16\) changed"):
        check(override_recipe(recipe, ["train.precision=bf16"]))
