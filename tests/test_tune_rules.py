"""Who goes on: successive halving against the paper's algorithm by hand, and population-based training."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.config import Choice, IntRange, LogUniform, TuneConfig, Uniform
from llmrec_ray.tune.asha import milestones, promotable, reason
from llmrec_ray.tune.pbt import Exploit, next_step
from llmrec_ray.tune.records import Part, TrialRecord

METRIC = "fused_ndcg@10"
HALF, THIRD = TuneConfig(), TuneConfig(reduction_factor=3)
PBT = TuneConfig(scheduler="pbt")
scores = st.lists(st.integers(0, 6).map(lambda place: place / 10), min_size=1, max_size=14)


@pytest.mark.parametrize(("grace", "factor", "epochs", "expected"), [
    (2, 3, 14, [2, 6, 14]), (2, 3, 6, [2, 6]), (1, 2, 9, [1, 2, 4, 8, 9]), (5, 3, 5, [5]), (9, 3, 5, [5]),
    (2, 3, 1, [1]),
])
def test_rungs_lie_so_many_times_further_apart_and_end_with_the_last_epoch(grace, factor, epochs, expected):
    assert milestones(TuneConfig(grace_epochs=grace, reduction_factor=factor), epochs) == expected


def by_the_paper(values: dict[int, float], promoted: set[int], factor: int) -> set[int]:
    """Lines 11 to 13 of Algorithm 2 (Li et al. 2018): those of the top 1/factor that were not promoted."""
    top: set[int] = set()
    while len(top) < math.floor(len(values) / factor):
        rest = [number for number in values if number not in top]
        best = max(values[number] for number in rest)
        top.add(min(number for number in rest if values[number] == best))
    return top - promoted


@given(scores, st.sampled_from([2, 3, 4]), st.randoms(use_true_random=False))
def test_promotions_while_trials_come_in_are_those_of_asynchronous_successive_halving(given_values, factor, random):
    config = TuneConfig(reduction_factor=factor)
    order = [*range(len(given_values))]
    random.shuffle(order)
    values: dict[int, float] = {}
    ours: set[int] = set()
    papers: set[int] = set()
    for number in order:
        values[number] = given_values[number]
        for one in promotable(values, ours, config, complete=False):
            ours.add(one)
        papers |= by_the_paper(values, papers, factor)
        assert ours == papers


@given(scores, st.sampled_from([2, 3, 4]))
def test_a_rung_that_is_complete_promotes_as_successive_halving_does_but_at_least_one(given_values, factor):
    values = dict(enumerate(given_values))
    going = promotable(values, [], TuneConfig(reduction_factor=factor), complete=True)
    by_hand = sorted(values, key=lambda number: (-values[number], number))
    assert going == by_hand[:max(1, len(values) // factor)]


@given(scores, st.data())
def test_those_that_failed_are_never_promoted_and_leave_their_place_to_the_next(given_values, data):
    values = dict(enumerate(given_values))
    failed = data.draw(st.sets(st.sampled_from([*values])))
    going = promotable(values, [], HALF, complete=True, failed=failed)
    alive = sorted(values.keys() - failed, key=lambda number: (-values[number], number))
    assert going == alive[:max(1, len(values) // 2)]


def test_nobody_goes_on_before_there_are_enough_to_compare():
    assert promotable({0: 0.1, 1: 0.2}, [], THIRD, complete=False) == []
    assert promotable({0: 0.1, 1: 0.2, 2: 0.15}, [], THIRD, complete=False) == [1]
    assert promotable({0: 0.1, 1: 0.2, 2: 0.15}, [1], THIRD, complete=False) == []
    assert promotable({}, [], THIRD, complete=True) == []


def test_one_that_was_promoted_too_early_keeps_what_it_got_and_the_better_ones_follow():
    values = {0: 0.1, 1: 0.2}
    assert promotable(values, [], HALF, complete=False) == [1]
    assert promotable(values | {2: 0.3, 3: 0.4}, [1], HALF, complete=False) == [3, 2]


def test_why_a_trial_was_stopped_is_said_with_its_place_and_what_it_would_have_taken():
    values = {0: 0.12, 1: 0.1012, 2: 0.0931, 3: 0.09, 4: 0.08, 5: 0.07, 6: 0.1012}
    assert reason(2, values, THIRD, 2) == (
        "epoch 2: 0.0931 is 4th of 7 trials; the best third have 0.1012 or more"
    )
    assert reason(6, values, THIRD, 2) == (
        "epoch 2: 0.1012 is 3rd of 7 trials; the best third have 0.1012 or more, ties going to the earlier "
        "trial"
    )
    assert reason(0, values, THIRD, 6) == (
        "epoch 6: 0.1200 is 1st of 7 trials, and the campaign ended before it went on"
    )
    assert reason(5, values, TuneConfig(reduction_factor=5), 2).endswith("the best 1 in 5 have 0.1200 or more")
    assert reason(0, {0: 0.1}, THIRD, 2) == (
        "epoch 2: 0.1000 is 1st of 1 trial, and the campaign ended before it went on"
    )


def test_a_trial_without_a_value_is_said_to_have_none():
    assert reason(3, {0: 0.1}, THIRD, 2) == "epoch 2: it has no finite value"


@pytest.mark.parametrize(("place", "ordinal"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"),
                                                (12, "12th"), (21, "21st")])
def test_places_are_written_as_people_write_them(place, ordinal):
    values = {number: 1.0 - number / 100 for number in range(30)}
    assert f" is {ordinal} of 30 trials" in reason(place - 1, values, THIRD, 2)


def population(*values: float | None, epoch: int = 2, **changes: Any) -> list[TrialRecord]:
    """Trials at one epoch, whose learning rate tells which one it is."""
    return [
        TrialRecord(
            number=number, settings={"train.learning_rate": 0.01 + number / 1000} | changes, until=epoch,
            status="paused", started_at="", epochs=[{"epoch": epoch - 1, METRIC: 0.9}, {"epoch": epoch, METRIC: value}],
        )
        for number, value in enumerate(values)
    ]


RATE = {"train.learning_rate": LogUniform(loguniform=(1e-3, 1.0))}


def step(records: list[TrialRecord], number: int, space: Any = None, **rest: Any) -> Exploit | None:
    return next_step(records[number], 2, records, PBT, space or RATE, 7, METRIC, **rest)


def test_the_worst_quarter_takes_over_from_the_best_quarter_and_the_others_go_on():
    records = population(*(number / 10 for number in range(8)))
    steps = [step(records, number) for number in range(8)]
    assert [one is not None for one in steps] == [True, True] + [False] * 6
    assert all(one.donor in {6, 7} for one in steps[:2])
    assert steps[0].reason == (
        f"epoch 2: 0.0000 is among the worst 2 of 8 trials; goes on from trial {steps[0].donor} with "
        f"0.{steps[0].donor}000"
    )


def test_what_counts_is_the_value_of_the_weights_that_would_be_taken_not_the_best_before():
    records = population(0.1, 0.5, 0.2, 0.3)
    records[0].epochs[0][METRIC] = 0.99
    assert step(records, 0).donor == 1


def test_a_trial_that_diverged_is_the_worst_and_takes_over():
    records = population(0.1, 0.5, math.nan, 0.3)
    assert step(records, 2).reason == (
        "epoch 2: no finite value is among the worst 1 of 4 trials; goes on from trial 1 with 0.5000"
    )
    assert step(population(0.1, 0.5, None, 0.3), 2).donor == 1
    assert step(population(None, math.nan), 1) is None


def test_equals_and_single_trials_go_on_as_they_are():
    assert step(population(0.1, 0.1, 0.1, 0.1), 3) is None
    assert step(population(0.1), 0) is None


def test_trials_that_failed_or_have_not_got_there_are_no_rivals():
    records = population(0.1, 0.2, 0.9, 0.8)
    records[2].status, records[3].epochs = "failed", records[3].epochs[:1]
    assert step(records, 0).donor == 1
    assert step(records, 1) is None


def test_settings_are_those_that_the_donor_had_in_that_epoch_changed_by_a_fifth():
    records = population(0.1, 0.2, 0.3, 0.9)
    records[3].parts = [
        Part(after_epoch=1, taken_from=0, checkpoint="", settings={"train.learning_rate": 0.5}, reason=""),
        Part(after_epoch=2, taken_from=0, checkpoint="", settings={"train.learning_rate": 0.7}, reason=""),
    ]
    assert step(records, 0).settings["train.learning_rate"] in {0.4, 0.6}


def test_a_step_is_the_same_whenever_it_is_asked_for_and_another_for_another_trial():
    records = population(*(number / 100 for number in range(40)))
    worst = [step(records, number) for number in range(10)]
    assert worst == [step(records, number) for number in range(10)]
    assert len({(one.donor, one.settings["train.learning_rate"]) for one in worst}) > 3


numbers = st.floats(0.001, 1.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), numbers, st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_changed_settings_stay_in_their_domains_and_numbers_do_change(values, rate, layers, seed):
    space = {
        "rate": LogUniform(loguniform=(0.001, 1.0)), "dropout": Uniform(uniform=(0.0, 0.5)), "n": IntRange(int=(1, 9)),
        "loss": Choice(choice=("a", "b", "c")), "fixed": Choice(choice=(1,)),
    }
    records = population(*values, rate=rate, dropout=0.0, n=layers, loss="b", fixed=1, other=3)
    for record in records:
        taken = next_step(record, 2, records, PBT, space, seed, METRIC)
        if taken is None:
            continue
        found = taken.settings
        assert found["rate"] in {float(f"{min(1.0, rate * 1.2):.4g}"), max(0.001, float(f"{rate * 0.8:.4g}"))}
        assert found["dropout"] in {0.0, 0.01}
        assert 1 <= found["n"] <= 9 and (abs(found["n"] - layers) in {1, 2} or found["n"] in {1, 9})
        assert (found["loss"] in {"a", "b", "c"}, found["fixed"], found["other"]) == (True, 1, 3)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.05, 0.5))
@settings(deadline=None)
def test_no_more_take_over_than_the_quantile_says_and_only_from_better_ones(values, quantile):
    config = TuneConfig.model_validate({"scheduler": "pbt", "pbt": {"quantile": quantile}})
    records = population(*values)
    steps = [next_step(record, 2, records, config, RATE, 0, METRIC) for record in records]
    taken = {number: one.donor for number, one in enumerate(steps) if one is not None}
    assert len(taken) <= max(1, math.floor(len(values) * quantile))
    assert all(values[donor] > values[number] for number, donor in taken.items())
    assert not taken.keys() & set(taken.values())


def test_a_choice_moves_to_a_neighbour_at_most_and_one_from_outside_into_the_list():
    space = {"size": Choice(choice=(8, 16, 32, 64))}
    records = population(0.1, 0.9, size=16)
    found = {next_step(records[0], 2, records, PBT, space, seed, METRIC).settings["size"] for seed in range(40)}
    assert found == {8, 16, 32}
    records = population(0.1, 0.9, size=99)
    assert next_step(records[0], 2, records, PBT, space, 0, METRIC).settings["size"] in {8, 16, 32, 64}


def test_settings_that_cannot_be_trained_are_drawn_again_or_left_as_the_donor_had_them():
    records = population(0.1, 0.9)
    assert step(records, 0, is_possible=lambda s: s["train.learning_rate"] > 0.011).settings == {
        "train.learning_rate": 0.0132
    }
    assert step(records, 0, is_possible=lambda s: False).settings == records[1].settings


def test_a_setting_that_must_stay_does_not_keep_the_others_from_changing():
    space = {"train.learning_rate": LogUniform(loguniform=(1e-4, 1.0)), "gamma": Uniform(uniform=(0.0, 5.0))}
    records = population(0.1, 0.9, gamma=2.0)
    found = next_step(records[0], 2, records, PBT, space, 0, METRIC, is_possible=lambda s: s["gamma"] == 2.0)
    assert found.settings["gamma"] == 2.0 and found.settings["train.learning_rate"] in {0.0132, 0.0088}
