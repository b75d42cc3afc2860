"""Vocabulary: ids to rows and back, on disk and off."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.vocab import Vocabulary

ID = st.text(min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(ID, unique=True))
def test_rows_and_ids_are_each_others_inverse(ids):
    vocabulary = Vocabulary(ids)
    assert vocabulary.ids(vocabulary.rows(ids)) == ids == list(vocabulary)
    assert vocabulary.rows(ids).tolist() == list(range(len(vocabulary)))


@settings(deadline=None)
@given(st.lists(ID, unique=True), st.lists(ID))
def test_extending_keeps_every_old_row_and_adds_each_newcomer_once(old, new):
    before = Vocabulary(old)
    after = before.extended(new)
    assert list(after)[: len(before)] == old
    assert list(after)[len(before) :] == sorted(set(new) - set(old))


def test_an_unknown_id_has_row_minus_one_and_can_be_left_out():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.row("x") == -1
    assert "x" not in vocabulary
    assert vocabulary.rows(["b", "x", "a"]).tolist() == [1, -1, 0]
    assert vocabulary.known_rows(["b", "x", "a"]).tolist() == [1, 0]
    assert vocabulary.rows([]).dtype == np.int64


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_raises(row):
    with pytest.raises(IndexError):
        Vocabulary(["a", "b"]).id(row)


def test_duplicate_ids_are_a_bug():
    with pytest.raises(AssertionError, match=r"duplicate ids in a vocabulary\. This is a bug\."):
        Vocabulary(["a", "a"])


@pytest.mark.parametrize("ids", [[], ["a"], ["10", "9", "ü", "a b"]])
def test_saving_and_loading_gives_the_same_vocabulary(ids, tmp_path):
    Vocabulary(ids).save(tmp_path / "ids.parquet")
    assert list(Vocabulary.load(tmp_path / "ids.parquet")) == ids


@pytest.mark.parametrize(("rows", "ids"), [([0, 2], ["a", "b"]), ([0, 1], ["a", "a"])])
def test_a_file_with_gaps_or_repeats_is_refused(rows, ids, tmp_path):
    path = tmp_path / "ids.parquet"
    pl.DataFrame({"row": rows, "id": ids}).write_parquet(path)
    with pytest.raises(CorruptArtifactError) as refusal:
        Vocabulary.load(path)
    assert str(refusal.value) == f"{path} is not a vocabulary: rows must be 0, 1, 2, … and ids distinct."


def test_ids_that_follow_have_the_next_rows_and_of_one_that_comes_again_the_newest_counts(tmp_path):
    first = Vocabulary(["a", "b"])
    both = first.followed_by(["c", "a"])
    assert (len(both), list(both), both.ids([0, 1, 2, 3])) == (4, ["a", "b", "c", "a"], ["a", "b", "c", "a"])
    assert both.rows(["a", "b", "c", "x"]).tolist() == [3, 1, 2, -1]
    assert both.known_rows(["x", "c"]).tolist() == [2]
    assert "c" in both and "x" not in both and both.row("x") == -1
    assert first.row("a") == 0 and "c" not in first
    again = first.followed_by(["c"]).followed_by(["d"])
    assert again.rows(["d", "b"]).tolist() == [3, 1]
    assert list(again.extended(["e"])) == ["a", "b", "c", "d", "e"]
    again.save(tmp_path / "ids.parquet")
    assert list(Vocabulary.load(tmp_path / "ids.parquet")) == ["a", "b", "c", "d"]
    with pytest.raises(IndexError):
        both.id(4)
