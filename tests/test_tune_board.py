"""What TensorBoard shows of a campaign, read back from the files that are written for it."""

import math

import pytest

from llmrec_ray.tune.board import Board
from tests.outcomes import METRIC, made_record
from tests.tensorboard_files import hyperparameters_of, scalars_of

TAG = METRIC.replace("@", "_")


def test_every_metric_of_an_epoch_is_a_scalar_at_that_epoch(tmp_path):
    record = made_record(3, epochs=2)
    board = Board(str(tmp_path), METRIC)
    for entry in record.epochs:
        board.epoch(3, entry)
    scalars = scalars_of(tmp_path / "tensorboard" / "trial-00003")
    assert [step for step, _ in scalars[TAG]] == [1, 2]
    assert [value for _, value in scalars["loss"]] == pytest.approx([entry["loss"] for entry in record.epochs])
    assert "checkpoint" not in scalars and "fused_curve" not in scalars


def test_a_trial_that_is_resumed_goes_on_in_its_run(tmp_path):
    first, second = made_record(0, epochs=2).epochs
    Board(str(tmp_path), METRIC).epoch(0, first)
    Board(str(tmp_path), METRIC).epoch(0, second)
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")["loss"]] == [1, 2]


def test_settings_stand_beside_the_best_value(tmp_path):
    records = [made_record(0), made_record(1, epochs=0), made_record(2, train__loss=None)]
    Board(str(tmp_path), METRIC).close(records)
    for record in records:
        assert hyperparameters_of(tmp_path / "tensorboard" / f"trial-{record.number:05d}")
    [(_, best)] = scalars_of(tmp_path / "tensorboard" / "trial-00000")[f"best/{TAG}"]
    assert best == pytest.approx(max(entry[METRIC] for entry in records[0].epochs))


def test_a_value_that_is_not_a_number_leaves_a_gap(tmp_path):
    record = made_record(0, epochs=2)
    record.epochs[0][METRIC] = math.nan
    for entry in record.epochs:
        Board(str(tmp_path), METRIC).epoch(0, entry)
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")[TAG]] == [2]


def test_nothing_is_written_to_a_bucket():
    board = Board("s3://bucket/campaign", METRIC)
    board.epoch(0, made_record(0).epochs[0])
    board.close([made_record(0)])


def test_a_file_that_cannot_be_written_is_named_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    board = Board(str(tmp_path), METRIC)
    board.epoch(0, made_record(0).epochs[0])
    board.close([made_record(0)])
    assert [line.split(": ")[0] for line in caplog.messages] == ["TensorBoard will not show all trials"] * 2
