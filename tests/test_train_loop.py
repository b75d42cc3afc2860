"""The training loop without Ray: it learns, stops, resumes, and is the same whatever shards it."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec_ray.config import EncoderConfig, TrainConfig
from llmrec_ray.errors import ArtifactMismatchError, CorruptArtifactError, DataError, TrainingError
from llmrec_ray.metrics import ndcg
from llmrec_ray.model import catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.train import loop
from llmrec_ray.train.checkpoint import Checkpoint
from llmrec_ray.train.engine import TorchEngine, Unstepped
from llmrec_ray.train.inputs import LateFusion, build_module
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.optimizer import learning_rate_scale, make_optimizer
from llmrec_ray.train.prefetch import prefetched
from llmrec_ray.train.sharding import make_engine
from llmrec_ray.train.stopping import EarlyStopping
from llmrec_ray.train.validation import validate
from llmrec_ray.vocab import Vocabulary
from tests.boards import board_recipe
from tests.train_boards import (
    ALONE,
    Job,
    Recorder,
    deterministic_recipe,
    inputs_for,
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


@pytest.mark.parametrize(("schedule", "half", "end"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1, 1)])
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule, half, end):
    config = TrainConfig(schedule=schedule, warmup_steps=3)
    scales = [learning_rate_scale(step, config, 100) for step in range(101)]
    assert scales[:3] == pytest.approx([0.25, 0.5, 0.75], rel=0.03)
    assert (scales[50], scales[100]) == (pytest.approx(half), pytest.approx(end))
    assert all(a >= b for a, b in pairwise(scales[3:]))
    assert scales[25] == pytest.approx({"linear": 0.75, "cosine": 0.5 + 0.5**1.5, "constant": 1.0}[schedule])


def test_biases_and_norms_are_not_decayed_and_every_parameter_is_trained_once():
    recipe, inputs = plain(weight_decay=0.1), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    groups = make_optimizer(module, recipe).param_groups
    decayed, free = sorted(groups, key=lambda group: -group["weight_decay"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(module.parameters()))


def test_every_block_of_the_encoder_has_its_own_rate(tiny_encoder):
    encoder = {"model": str(tiny_encoder), "tuning": "full", "learning_rate": 1e-3, "layer_decay": 0.1}
    recipe = plain().model_copy(update={"encoder": EncoderConfig(**encoder)})
    inputs = inputs_for(recipe)
    module = build_module(recipe, inputs, inputs.windows(recipe))
    groups = make_optimizer(module, recipe).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    backbone = module.text_source.tuned.backbone
    assert rates[id(backbone.encoder.layer[1].output.dense.weight)] == pytest.approx(1e-3)
    assert rates[id(backbone.encoder.layer[0].output.dense.bias)] == pytest.approx(1e-4)
    assert rates[id(backbone.embeddings.word_embeddings.weight)] == pytest.approx(1e-5)
    assert rates[id(module.model.items.ids.weight)] == recipe.train.learning_rate
    assert len(rates) == sum(parameter.requires_grad for parameter in module.parameters())


def test_one_process_learns_the_board():
    recorder = Recorder()
    recipe = board_recipe(Path("/nowhere"), train={"sharding": "none", "num_workers": 1, "epochs": 12})
    state = train_epochs(recipe, inputs_of_board(), ALONE, recorder)
    assert state.stopping.best > 0.3, recorder.epochs
    assert recorder.losses[-1] < recorder.losses[0]


def test_training_inside_a_process_keeps_to_the_threads_that_it_was_given():
    before, told = torch.get_num_threads(), len(os.sched_getaffinity(0)) + 1
    torch.set_num_threads(told)  # as a process among others is told how many are its own
    try:
        train_epochs(plain(epochs=1), inputs_of_board(), ALONE, Recorder())
        assert torch.get_num_threads() == told
    finally:
        torch.set_num_threads(before)


def test_training_stops_when_validation_does_not_improve():
    recorder = Recorder()
    state = train_epochs(plain(epochs=40, patience=2, learning_rate=1e-9), inputs_of_board(), ALONE, recorder)
    assert state.epoch == len(recorder.epochs) == state.stopping.best_epoch + 2


@pytest.mark.parametrize("at", [5, 7], ids=["after an epoch", "within an epoch"])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(at, tmp_path):
    recipe = plain(checkpoint_steps=1).model_copy(update={"model": plain().model.model_copy(update={"dropout": 0.3})})
    whole = train_here(recipe, tmp_path / "whole")
    resumed = train_here(recipe, tmp_path / "resumed", resume_from=tmp_path / "whole" / str(at))
    assert resumed == whole[at:]
    assert_same_state(tmp_path / "whole" / "15", tmp_path / "resumed" / "15")


def test_an_optimizer_goes_on_where_its_parameters_are():
    """Fused AdamW on a GPU follows the address of every tensor of its state, the number of steps included."""
    recipe, inputs = plain(), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe)).to("meta")
    optimizer = make_optimizer(module, recipe)
    TorchEngine(module, optimizer, recipe, ALONE, Unstepped(module))
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert len(states) == 3 * len(list(module.parameters())) and {tensor.device.type for tensor in states} == {"meta"}


def test_checkpoints_within_an_epoch_do_not_change_training(tmp_path):
    often, seldom = Recorder(), Recorder()
    train_epochs(plain(checkpoint_steps=2), inputs_of_board(), ALONE, often)
    train_epochs(plain(), inputs_of_board(), ALONE, seldom)
    assert [epoch["loss"] for epoch in often.epochs] == seldom.losses
    assert [report["step"] for report in often.reports] == [2, 4, 5, 7, 9, 10, 12, 14, 15]


def test_training_ends_after_the_epoch_in_which_it_is_told_to_stop():
    recorder = Recorder()
    train_epochs(plain(epochs=9, patience=9), inputs_of_board(), ALONE, recorder,
                 verdict=lambda epoch: epoch == 2)
    assert len(recorder.epochs) == 2


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    train_here(plain(epochs=1), tmp_path)
    assert train_here(plain(epochs=1), resume_from=tmp_path / "5") == []


def test_two_processes_train_like_one_and_each_goes_on_from_the_others_checkpoint(tmp_path):
    whole = train_here(plain(), tmp_path / "whole")
    zero2 = deterministic_recipe(sharding="zero2")
    two, again, from_one = train_in_processes(2, [
        Job(zero2, tmp_path / "two"), Job(zero2), Job(zero2, resume_from=tmp_path / "whole" / "5"),
    ])
    assert again == two, "deterministic under a seed"
    assert two == pytest.approx(whole, rel=SAME)
    assert from_one == pytest.approx(whole[1:], rel=SAME)
    assert train_here(plain(), resume_from=tmp_path / "two" / "5") == pytest.approx(whole[1:], rel=SAME)


def test_micro_batches_change_nothing_but_memory():
    assert train_here(plain(accumulation_steps=3)) == pytest.approx(train_here(plain()), rel=SAME)


def test_a_loss_that_is_not_finite_stops_training_and_says_where():
    with pytest.raises(TrainingError) as caught:
        train_here(plain(learning_rate=1e30, gradient_clip=1e30))
    message = str(caught.value)
    assert message.startswith("The loss was not finite at step 2 (epoch 1), in a batch with the items row 0, row 1, ")
    assert "row 9 and others; last good checkpoint: none. Lower train.learning_rate (now 1e+30) or " in message
    assert message.endswith("train.gradient_clip (now 1e+30).")


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path, tiny_encoder):
    encoder = EncoderConfig(model=str(tiny_encoder), tuning="full")
    recipe = plain(checkpoint_steps=2, precision="bf16").model_copy(update={"encoder": encoder})
    recorder = Recorder(tmp_path)

    def spoil(metrics, write) -> None:
        recorder(metrics, write)
        if metrics["step"] == 7:
            run.module.model.users.mix.bias.data[0] = float("inf")
            run._look_at = lambda losses: setattr(run, "state", replace(
                run.state, step=run.state.step + len(losses), losses=[*run.state.losses, *[0.0] * len(losses)]))

    run = loop._Run(recipe, inputs_for(recipe), ALONE, spoil, None)
    run.train_epoch()
    with pytest.raises(TrainingError) as caught:
        run.train_epoch()
    message = str(caught.value)
    assert message.startswith("The weights were not finite at step 9 (epoch 2), in a batch with the items row ")
    assert message.endswith(
        "last good checkpoint: step 7. Lower train.learning_rate (now 0.01) or encoder.learning_rate (now 2e-05) or "
        "train.gradient_clip (now 5), or use train.precision=fp32."
    )
    assert not (tmp_path / "9").exists()


def test_a_loss_that_is_not_finite_names_the_newest_checkpoint_and_the_items_ids(tmp_path):
    healthy = plain(checkpoint_steps=2, schedule="constant")
    train_here(healthy, tmp_path)
    ids = Vocabulary([f"film {row}" for row in range(40)])
    sick = healthy.model_copy(update={"train": healthy.train.model_copy(update={
        "learning_rate": 1e30, "gradient_clip": 1e30})})
    with pytest.raises(TrainingError, match=r"at step 9 .* items film \d.* last good checkpoint: step 7\."):
        train_epochs(sick, replace(inputs_of_board(), item_ids=ids), ALONE, Recorder(), tmp_path / "7")


def test_text_vectors_that_are_not_finite_are_refused():
    inputs = inputs_of_board()
    inputs.check()
    inputs.text_vectors[[3, 5], 0] = np.nan
    with pytest.raises(DataError) as caught:
        replace(inputs, item_ids=Vocabulary([f"film {row}" for row in range(40)])).check()
    assert str(caught.value) == (
        "The text vectors of 2 items are not finite, first that of film 3: use encoder.precision=fp32, or another "
        "encoder.model."
    )


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    train_here(plain(epochs=1), tmp_path)
    narrow = plain(epochs=2)
    narrow = narrow.model_copy(update={"model": narrow.model.model_copy(update={
        "embedding_size": 8, "user_embedding": False})})
    with pytest.raises(ArtifactMismatchError) as caught:
        train_here(narrow, resume_from=tmp_path / "5")
    message = str(caught.value)
    assert message.startswith(
        f"The checkpoint in {tmp_path / '5'} is of another architecture (unexpected: model.users.users.weight; "
        "model.items.ids.weight is 40×16 instead of 40×8, "
    )
    assert message.endswith("resume with the recipe it was trained with, or train anew without --resume.")


def test_a_checkpoint_that_is_damaged_or_lacks_a_shard_is_refused(tmp_path):
    [_] = train_in_processes(2, [Job(deterministic_recipe(epochs=1), tmp_path)])
    first, second = sorted((tmp_path / "5").glob("shard-*"))
    whole = second.read_bytes()
    second.write_bytes(whole[:100])
    with pytest.raises(CorruptArtifactError, match=rf"^The checkpoint file {second} cannot be read \(.*--resume\.$"):
        Checkpoint(tmp_path / "5")
    second.unlink()
    with pytest.raises(CorruptArtifactError) as caught:
        Checkpoint(tmp_path / "5")
    assert str(caught.value) == (
        f"The checkpoint in {tmp_path / '5'} lacks a part of weight model.items.ids.weight: a worker's shard is "
        "missing. Restore it, or train anew without --resume."
    )
    second.write_bytes(whole)
    assert Checkpoint(tmp_path / "5").steps == 5 and first.exists()
    (tmp_path / "5" / "state.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"state\.json cannot be read \(Expecting.* without --resume\.$"):
        Checkpoint(tmp_path / "5")


def test_a_part_of_a_checkpoint_is_that_part_of_the_whole(tmp_path):
    train_here(plain(epochs=1), tmp_path)
    checkpoint = Checkpoint(tmp_path / "5")
    whole = checkpoint.read("exp_avg", "model.users.mix.weight")
    assert torch.equal(checkpoint.read("exp_avg", "model.users.mix.weight", 10, 100), whole[10:110])
    assert len(checkpoint.read("exp_avg", "model.users.mix.weight", 10, 0)) == 0


def test_what_is_made_ahead_comes_in_order_and_so_do_errors():
    def numbers(n: int):
        yield from range(n)
        raise KeyError("source")

    ahead = prefetched(numbers(7))
    assert [next(ahead) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError, match="source"):
        next(ahead)
    assert list(prefetched(iter(()))) == []
    abandoned = prefetched(iter(range(100)))
    assert next(abandoned) == 0
    abandoned.close()


def test_validation_ranks_the_whole_catalogue_minus_what_the_user_has_seen():
    recipe, inputs = plain(), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    catalogue = catalogue_vectors(module.model, inputs.text_vectors)
    scores = mask_seen(user_matrix(module.model, catalogue, inputs.histories) @ catalogue.T, inputs.histories)
    ranks = target_ranks(scores, inputs.targets)
    engine = make_engine(module, recipe, ALONE, None)
    for batch_users in (7, 1000):
        measured = validate(module, engine, inputs, ALONE, batch_users)
        assert measured["ndcg@10"] == pytest.approx(ndcg(ranks, 10))
        assert measured["hr@10"] == pytest.approx((ranks <= 10).mean())
    assert module.training


def test_users_without_a_target_are_left_out_of_validation():
    recipe, inputs = plain(), inputs_of_board()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    asked = np.arange(len(inputs.targets)) % 3 > 0
    catalogue = catalogue_vectors(module.model, inputs.text_vectors)
    scores = mask_seen(user_matrix(module.model, catalogue, inputs.histories) @ catalogue.T, inputs.histories)
    ranks = target_ranks(scores, inputs.targets)[asked]
    fewer = replace(inputs, targets=np.where(asked, inputs.targets, -1))
    measured = validate(module, make_engine(module, recipe, ALONE, None), fewer, ALONE, 7)
    assert measured["ndcg@10"] == pytest.approx(ndcg(ranks, 10))
    assert measured["hr@10"] == pytest.approx((ranks <= 10).mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_catalogue_is_encoded_in_the_precision_of_the_steps(tiny_encoder, precision):
    """FlashAttention computes in nothing else, and on a GPU fp32 is many times slower."""
    recipe = plain(precision=precision)
    recipe = recipe.model_copy(update={"encoder": EncoderConfig(model=str(tiny_encoder), tuning="full")})
    inputs, seen = inputs_for(recipe), set()
    module = build_module(recipe, inputs, inputs.windows(recipe))
    top = module.text_source.tuned.backbone.encoder.layer[-1].intermediate.dense
    top.register_forward_hook(lambda _, __, states: seen.add(states.dtype))
    validate(module, make_engine(module, recipe, ALONE, None), inputs, ALONE, 9, precision)
    assert seen == {torch.float32 if precision == "fp32" else torch.bfloat16}


def test_validation_reports_every_metric_of_both_signals_at_the_best_share():
    recipe, inputs = plain(), inputs_of_board()
    perfect = np.zeros((len(inputs.histories), inputs.n_items), np.float32)
    perfect[np.arange(len(perfect)), inputs.targets] = 5.0
    inputs = replace(inputs, late=LateFusion(np.arange(40), perfect), metrics=("mrr@3",), selection="fused_hr@5")
    module = build_module(recipe, inputs, inputs.windows(recipe))
    measured = validate(module, make_engine(module, recipe, ALONE, None), inputs, ALONE, 9)
    assert set(measured) == {
        "ndcg@10", "hr@10", "mrr@3", "hr@5", "fused_ndcg@10", "fused_hr@10", "fused_mrr@3", "fused_hr@5",
        "neural_share", "fused_curve",
    }
    assert (measured["neural_share"], measured["fused_mrr@3"], measured["fused_hr@5"]) == (0.0, 1.0, 1.0)
    shares, values = zip(*measured["fused_curve"], strict=True)
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert (values[0], values[-1]) == (1.0, pytest.approx(measured["hr@5"]))
    ranks = _fused_ranks(module.model, inputs, perfect, share=0.9)
    assert values[9] == pytest.approx((ranks <= 5).mean())


def _fused_ranks(model, inputs, partner, share):
    catalogue = catalogue_vectors(model, inputs.text_vectors)
    neural = user_matrix(model, catalogue, inputs.histories) @ catalogue.T
    unseen = np.isfinite(mask_seen(neural, inputs.histories))
    fused = share * neural / neural[unseen].std() + (1 - share) * partner / partner[unseen].std()
    return target_ranks(mask_seen(fused, inputs.histories), inputs.targets)


def assert_same_state(one: Path, other: Path) -> None:
    left, right = Checkpoint(one), Checkpoint(other)
    assert left.shapes == right.shapes and left.steps == right.steps
    for kind, name in left.shapes:
        assert torch.equal(left.read(kind, name), right.read(kind, name)), (kind, name)
