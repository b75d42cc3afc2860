"""What a campaign keeps of itself between two processes that run it."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from ray.tune.tune import _setup_signal_catching

from llmrec_ray.artifact import Workspace, read_json, write_json_atomic
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.tune import campaign
from llmrec_ray.tune.begun import check_begun, keep_begun
from llmrec_ray.tune.confirm import _identity
from llmrec_ray.tune.search import _handlers_kept
from tests.outcomes import full_outcome, made_record, searched_recipe

DATASET = SimpleNamespace(id="0123456789abcdef")
MACHINES = ("train.num_workers=4", "train.sharding=zero2", "train.accumulation_steps=2", "evaluate.batch_users=64")


def test_what_needs_no_training_is_found_once_for_a_winner(tmp_path, monkeypatch):
    recipe, found, asked = searched_recipe(), full_outcome().policy, []
    monkeypatch.setattr(campaign, "_found", lambda *given: asked.append(given[-1]) or found)

    def policy_of(epoch: int) -> object:
        return campaign._policy(recipe, DATASET, Workspace(str(tmp_path)), str(tmp_path), made_record(0), epoch)

    assert [policy_of(3), policy_of(3), policy_of(5), policy_of(5)] == [found] * 4
    assert asked == [3, 5]
    write_json_atomic(f"{tmp_path}/policy.json", read_json(f"{tmp_path}/policy.json") | {"found": {"of": "old"}})
    assert policy_of(5) == found and asked == [3, 5, 5]


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
    assert _identity(elsewhere, DATASET, "ndcg@10") == _identity(recipe, DATASET, "ndcg@10")
    with pytest.raises(ArtifactMismatchError, match=r"since train\.precision \(fp32, now bf16\) changed"):
        check(override_recipe(recipe, ["train.precision=bf16"]))
