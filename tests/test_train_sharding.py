"""Which sharding a recipe means, what cannot work together, and what DeepSpeed is told."""

from __future__ import annotations

import pytest

from llmrec_ray.config import load_recipe
from llmrec_ray.errors import ConfigError
from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.sharding import deepspeed_config, describe
from llmrec_ray.train.workers import Workers
from tests.train_boards import ALONE, deterministic_recipe, inputs_of_board


def recipe(*overrides: str):
    return load_recipe("movielens-100k", overrides=overrides)


@pytest.mark.parametrize(("overrides", "sharding"), [
    ([], "ddp"),
    (["encoder.tuning=lora"], "zero2"),
    (["encoder.tuning=lora", "train.sharding=zero3"], "zero3"),
    (["train.sharding=none", "train.num_workers=1"], "none"),
])
def test_auto_replicates_for_a_frozen_encoder_and_shards_for_one_that_trains(overrides, sharding):
    assert recipe(*overrides).sharding == sharding


@pytest.mark.parametrize(("overrides", "message"), [
    (["train.sharding=none"], "sharding none runs in one process, but num_workers is 2: set train.sharding to ddp, "
     "zero1, zero2 or zero3, or train.num_workers to 1"),
    (["train.batch_size=3", "train.accumulation_steps=2"], "batch_size 3 is less than num_workers x accumulation_steps "
     "(2 x 2), so some would never have work: raise train.batch_size"),
    (["train.min_workers=3"], "min_workers 3 is above num_workers 2: lower train.min_workers"),
    (["train.offload=optimizer"], "train.offload optimizer needs DeepSpeed, but the sharding is ddp (auto, "
     "for a frozen encoder): set train.sharding to zero1, zero2 or zero3, or train.offload to none"),
    (["train.offload=all", "encoder.tuning=full"], "train.offload all moves sharded weights to the host, but zero2 "
     "shards none: set train.sharding to zero3, or train.offload to optimizer"),
    (["train.compile=true", "encoder.tuning=full", "train.sharding=zero3"], "train.compile cannot trace through the "
     "weights that zero3 gathers block by block: set train.compile to false, or train.sharding to zero2"),
    (["train.compile=true"], "train.compile compiles the blocks of an encoder that trains, but encoder.tuning is "
     "frozen: set train.compile to false"),
])
def test_what_cannot_work_is_refused_when_the_recipe_is_read(overrides, message):
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    assert message in str(caught.value)


def test_deepspeed_is_told_what_follows_from_the_recipe():
    tuned = recipe("encoder.tuning=full", "train.sharding=zero3", "train.offload=all", "train.batch_size=24",
                   "train.accumulation_steps=3", "train.precision=bf16", "train.gradient_clip=2")
    config = deepspeed_config(tuned, world_size=4, device="cuda", largest_parameter=10**9)
    assert config["zero_optimization"] == {
        "stage": 3, "reduce_bucket_size": 10**9, "allgather_bucket_size": 10**9, "overlap_comm": True,
        "contiguous_gradients": True, "stage3_param_persistence_threshold": 10_000,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }
    assert config["train_micro_batch_size_per_gpu"] == 2 and config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 2.0 and config["torch_autocast"]["enabled"]


def test_what_trains_is_described_with_its_numbers():
    board, inputs = deterministic_recipe(sharding="none", num_workers=1), inputs_of_board()
    module = build_module(board, inputs, inputs.windows(board))
    count = sum(parameter.numel() for parameter in module.parameters())
    assert describe(module, board, ALONE) == (
        f"training {count:,} of {count:,} parameters (encoder: frozen) on 1 process, cpu, fp32, sharding none"
    )
    two = describe(module, deterministic_recipe(sharding="zero1"), Workers(0, 2))
    assert " on 2 processes, cpu, fp32, sharding zero1; DeepSpeed is told {\"train_micro_batch_size_per_gpu\": 8" in two
