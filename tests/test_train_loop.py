"""The training loop without Ray: it learns, stops, resumes, and is the same whatever shards it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmrec_ray.errors import TrainingError
from llmrec_ray.metrics import ndcg
from llmrec_ray.model import catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train.engine import learning_rate_scale, make_optimizer
from llmrec_ray.train.inputs import LateFusion, build_module
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.stopping import EarlyStopping
from llmrec_ray.train.validation import validate
from tests.boards import board_recipe
from tests.train_boards import (
    ALONE,
    Recorder,
    deterministic_recipe,
    inputs_of_board,
    train_here,
    train_in_processes,
)

SAME = 2e-5


def plain(**train: object):
    return deterministic_recipe(sharding="none", num_workers=1, **train)


@given(values=st.lists(st.floats(0, 1), min_size=1), patience=st.integers(1, 5))
def test_early_stopping_waits_for_patience_epochs_after_the_first_best_one(values, patience):
    rule = EarlyStopping()
    for epoch, value in enumerate(values, start=1):
        rule = rule.seen(value, epoch)
    assert rule.best == max(values) and rule.best_epoch == values.index(max(values)) + 1
    assert rule.should_stop(patience) == (len(values) - rule.best_epoch >= patience)


def test_the_learning_rate_warms_up_and_then_falls_linearly_to_zero():
    scales = [learning_rate_scale(step, 3, 100) for step in range(101)]
    assert scales[:3] == pytest.approx([0.25 * 1.0, 0.5 * 0.99, 0.75 * 0.98])
    assert np.diff(scales[3:]) == pytest.approx(-0.01) and scales[-1] == 0.0


def test_biases_and_norms_are_not_decayed_and_every_parameter_is_trained_once():
    recipe, inputs = plain(weight_decay=0.1), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    decayed, free = make_optimizer(module, recipe).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(module.parameters()))


def test_one_process_learns_the_board():
    recorder = Recorder()
    recipe = board_recipe(Path("/nowhere"), train={"sharding": "none", "num_workers": 1, "epochs": 12})
    state = train_epochs(recipe, inputs_of_board(), ALONE, recorder)
    assert state.stopping.best > 0.3, recorder.epochs
    assert recorder.losses[-1] < recorder.losses[0]


def test_training_stops_when_validation_does_not_improve():
    recorder = Recorder()
    state = train_epochs(plain(epochs=40, patience=2, learning_rate=1e-9), inputs_of_board(), ALONE, recorder)
    assert state.epoch == len(recorder.epochs) == state.stopping.best_epoch + 2


def test_a_stopped_run_resumes_as_if_nothing_had_happened(tmp_path):
    whole = train_here(plain(), tmp_path / "whole")
    resumed = train_here(plain(), tmp_path / "resumed", resume_from=tmp_path / "whole" / "1")
    assert resumed == whole[1:]
    assert_same_files(tmp_path / "whole" / "3", tmp_path / "resumed" / "3", tolerance=0.0)


def test_training_ends_after_the_epoch_in_which_it_is_told_to_stop():
    recorder = Recorder()
    train_epochs(plain(epochs=9, patience=9), inputs_of_board(), ALONE, recorder,
                 told_to_stop=lambda: len(recorder.epochs) >= 2)
    assert len(recorder.epochs) == 2


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    train_here(plain(epochs=1), tmp_path)
    assert train_here(plain(epochs=1), resume_from=tmp_path / "1") == []


@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero2"])
def test_two_processes_train_like_one_and_their_checkpoint_fits_one(sharding, tmp_path):
    whole = train_here(plain(), tmp_path / "whole")
    two = train_in_processes(2, deterministic_recipe(sharding=sharding), tmp_path / "two")
    assert two == pytest.approx(whole, rel=SAME)
    assert_same_files(tmp_path / "whole" / "3", tmp_path / "two" / "3", tolerance=1e-4)
    on_one = train_here(plain(), tmp_path / "one", resume_from=tmp_path / "two" / "1")
    assert on_one == pytest.approx(whole[1:], rel=SAME)


@pytest.mark.parametrize("sharding", ["zero1", "zero2"])
def test_a_checkpoint_of_one_process_resumes_on_two(sharding, tmp_path):
    whole = train_here(plain(), tmp_path / "whole")
    on_two = train_in_processes(
        2, deterministic_recipe(sharding=sharding), tmp_path / "two", resume_from=tmp_path / "whole" / "1"
    )
    assert on_two == pytest.approx(whole[1:], rel=SAME)
    assert_same_files(tmp_path / "whole" / "3", tmp_path / "two" / "3", tolerance=1e-4)


def test_a_loss_that_is_not_finite_stops_training_and_says_where():
    with pytest.raises(TrainingError) as caught:
        train_here(plain(learning_rate=1e30, gradient_clip=1e30))
    message = str(caught.value)
    assert "The loss was not finite at step 2 (epoch 1); last good checkpoint: none." in message
    assert "Lower train.learning_rate (now 1e+30) or train.gradient_clip (now 1e+30)" in message


def test_validation_ranks_the_whole_catalogue_minus_what_the_user_has_seen():
    recipe, inputs = plain(), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    catalogue = catalogue_vectors(module.model, inputs.text_vectors)
    scores = mask_seen(user_matrix(module.model, catalogue, inputs.histories) @ catalogue.T, inputs.histories)
    ranks = target_ranks(scores, inputs.targets)
    for batch_users in (7, 1000):
        measured = validate(module, inputs, ALONE, batch_users)
        assert measured["ndcg@10"] == pytest.approx(ndcg(ranks, 10))
        assert measured["hr@10"] == pytest.approx((ranks <= 10).mean())
    assert module.training


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (1.0, None)])
def test_validation_reports_the_late_fused_ranking(weight, expected):
    recipe, inputs = plain(), inputs_of_board()
    perfect = np.zeros((len(inputs.histories), inputs.n_items), np.float32)
    perfect[np.arange(len(perfect)), inputs.targets] = 5.0
    module = build_module(recipe, inputs, inputs.windows(recipe))
    measured = validate(module, replace(inputs, late=LateFusion(perfect, weight)), ALONE, 9)
    assert measured["late_ndcg@10"] == pytest.approx(measured["ndcg@10"] if expected is None else expected)


def assert_same_files(one: Path, other: Path, *, tolerance: float) -> None:
    """Every file agrees within the tolerance, but for one value in a hundred when a tolerance is given at all.

    A unit of the NeuMF head that is active for every candidate shifts all scores alike, which a softmax does not
    feel: its gradient is rounding, which AdamW scales up to full steps. A wrong group or shard would show in more.
    """
    for name in ("weights.safetensors", "moments.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        differences = torch.cat([(value - right[key]).abs().flatten() for key, value in left.items()])
        assert torch.isfinite(differences).all()
        assert float((differences > tolerance).float().mean()) <= (0.01 if tolerance else 0.0), name
        assert float(differences.max()) <= 100 * tolerance, name
