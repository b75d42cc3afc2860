"""Any sharding trains like one plain process, and its checkpoint goes on under any other number of workers.

Losses are compared step by step over the eleven steps after the checkpoint: a forgotten step count, schedule or group
leaves the first loss right and only later ones wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from llmrec_ray.config import EncoderConfig, Recipe
from tests.tiny_encoder import write_tiny_decoder
from tests.train_boards import Job, deterministic_recipe, train_in_processes

SHARDINGS = ("ddp", "zero1", "zero2", "zero3")
TUNINGS = ("frozen", "top_layers", "lora", "full")
COMBINATIONS = list(product(SHARDINGS, TUNINGS))
pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]
STEPS, CHECKPOINT = 15, 4
SAME = 1e-4
ABOVE_ROUNDING = 1e-6
"""AdamW's epsilon: a gradient that is only rounding would be scaled up to a whole step, and rounding differs from one
processor to the next.
"""


def train(workers: int, jobs: Sequence[Job]) -> list[list[float]]:
    return train_in_processes(workers, jobs, ABOVE_ROUNDING)


class Runs:
    """Losses of every run of the matrix, from a handful of process groups."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder, self.encoder = folder, encoder
        alone = [Job(self.recipe("none", tuning, 1), folder / "alone" / tuning) for tuning in TUNINGS]
        self.alone = dict(zip(TUNINGS, train(1, alone), strict=True))
        self.two = self._train(2, "two")
        self.two_to_one = self._train(1, "two_to_one", resume="two")
        self.two_to_three = self._train(3, "two_to_three", resume="two")
        self.one_to_two = self._train(2, "one_to_two", resume="alone")

    def recipe(self, sharding: str, tuning: str, workers: int) -> Recipe:
        encoder = {"model": str(self.encoder), "max_batch_tokens": 256}
        if tuning != "frozen":
            encoder |= {"tuning": tuning, "top_layers": 1, "learning_rate": 1e-3, "layer_decay": 0.5}
        train = {
            "sharding": sharding, "num_workers": workers, "checkpoint_steps": 1, "learning_rate": 0.001,
            "weight_decay": 0.1,
        }
        return deterministic_recipe(**train).model_copy(update={"encoder": EncoderConfig(**encoder)})

    def _train(self, workers: int, name: str, resume: str | None = None) -> dict[tuple[str, str], list[float]]:
        jobs = [
            Job(
                self.recipe(sharding, tuning, workers),
                self.folder / name / sharding / tuning,
                resume_from=resume and self._checkpoint(resume, sharding, tuning),
            )
            for sharding, tuning in COMBINATIONS
        ]
        return dict(zip(COMBINATIONS, train(workers, jobs), strict=True))

    def _checkpoint(self, name: str, sharding: str, tuning: str) -> Path:
        parts = [name, tuning] if name == "alone" else [name, sharding, tuning]
        return self.folder.joinpath(*parts, str(CHECKPOINT))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_encoder) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_encoder)


@pytest.mark.parametrize(("sharding", "tuning"), COMBINATIONS)
def test_two_workers_train_like_one(runs, sharding, tuning):
    assert len(runs.alone[tuning]) == STEPS
    assert runs.two[sharding, tuning] == pytest.approx(runs.alone[tuning], abs=SAME)


@pytest.mark.parametrize("change", ["two_to_one", "two_to_three", "one_to_two"])
@pytest.mark.parametrize(("sharding", "tuning"), COMBINATIONS)
def test_a_checkpoint_goes_on_at_another_number_of_workers(runs, sharding, tuning, change):
    resumed = getattr(runs, change)[sharding, tuning]
    uninterrupted = runs.alone[tuning] if change == "one_to_two" else runs.two[sharding, tuning]
    assert resumed == pytest.approx(uninterrupted[CHECKPOINT:], abs=SAME)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_what_is_compared_moves_by_far_more_than_the_tolerance(runs, tuning):
    frozen, losses = runs.alone["frozen"], runs.alone[tuning]
    assert max(losses[CHECKPOINT:]) - min(losses[CHECKPOINT:]) > 1000 * SAME
    if tuning != "frozen":
        assert max(abs(a - b) for a, b in zip(losses, frozen, strict=True)) > 1000 * SAME


VARIANTS = {
    "offloaded optimizer, zero1": ({}, {"sharding": "zero1", "offload": "optimizer"}),
    "offloaded optimizer, zero2": ({}, {"sharding": "zero2", "offload": "optimizer"}),
    "offloaded weights too, zero3": ({}, {"sharding": "zero3", "offload": "all"}),
    "micro-batches, ddp": ({}, {"sharding": "ddp", "accumulation_steps": 2}),
    "micro-batches, zero2": ({}, {"sharding": "zero2", "accumulation_steps": 2}),
    "micro-batches, zero3": ({}, {"sharding": "zero3", "accumulation_steps": 2}),
    "recomputed activations, ddp": ({"gradient_checkpointing": True}, {"sharding": "ddp"}),
    "recomputed activations, zero3": ({"gradient_checkpointing": True}, {"sharding": "zero3"}),
    "compiled blocks, zero2": ({}, {"sharding": "zero2", "compile": True}),
    "small passes, zero3": ({"max_batch_tokens": 32}, {"sharding": "zero3"}),
}


@pytest.fixture(scope="module")
def variants(runs) -> dict[str, list[float]]:
    def job(encoder: dict, train: dict) -> Job:
        base = runs.recipe(train["sharding"], "full", 2)
        return Job(base.model_copy(update={
            "encoder": base.encoder.model_copy(update=encoder), "train": base.train.model_copy(update=train),
        }))

    return dict(zip(VARIANTS, train(2, [job(*variant) for variant in VARIANTS.values()]), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_saves_memory_changes_no_loss(runs, variants, variant):
    assert variants[variant] == pytest.approx(runs.alone["full"], abs=SAME)


def test_lora_on_a_bidirectional_decoder_resumes_sharded_and_offloaded(tmp_path):
    """From a checkpoint, since adapters begin at zero: the first gradients are rounding, which AdamW scales up."""
    folder = write_tiny_decoder(tmp_path / "qwen3", "qwen3")
    encoder = EncoderConfig(model=str(folder), tuning="lora", pooling="last", bidirectional=True, learning_rate=1e-3)

    def recipe(sharding: str, workers: int, offload: str = "none") -> Recipe:
        train = {"sharding": sharding, "num_workers": workers, "offload": offload, "checkpoint_steps": 1}
        return deterministic_recipe(learning_rate=0.001, **train).model_copy(update={"encoder": encoder})

    [whole] = train(1, [Job(recipe("none", 1), tmp_path / "alone")])
    checkpoint = tmp_path / "alone" / str(CHECKPOINT)
    variants = [recipe("zero3", 2), recipe("zero3", 2, "all"), recipe("zero2", 2, "optimizer")]
    for resumed in train(2, [Job(variant, resume_from=checkpoint) for variant in variants]):
        assert resumed == pytest.approx(whole[CHECKPOINT:], abs=SAME)
