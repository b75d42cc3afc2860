"""What is tried next: by chance and by Optuna's estimator, from records alone."""

import math
from typing import Any

import numpy as np
import pytest

from llmrec_ray.config import Recipe, load_recipe
from llmrec_ray.errors import ConfigError
from llmrec_ray.tune.records import Status, TrialRecord
from llmrec_ray.tune.space import current_settings, is_possible, split_levels, trial_count
from llmrec_ray.tune.suggest import suggest

METRIC = "fused_ndcg@10"
RATE = "{train.learning_rate: {loguniform: [1e-4, 1e-1]}, model.dropout: {uniform: [0, 0.7]}}"
CONDITIONAL = (
    "{train.loss: {choice: [sampled_softmax, full_softmax, focal]}, train.focal_gamma: {uniform: [0.5, 4]}, "
    "train.negative_sampling: {choice: [uniform, popularity]}, train.learning_rate: {loguniform: [1e-4, 1e-1]}}"
)


def campaign(search: str, *overrides: str, algorithm: str = "tpe", trials: int = 16) -> Recipe:
    tune = [f"tune.search={search}", f"tune.algorithm={algorithm}", f"tune.trials={trials}"]
    return load_recipe("movielens-100k", overrides=[*tune, *overrides])


def record(number: int, settings: dict[str, Any], value: float | None, status: Status = "finished") -> TrialRecord:
    epochs = [] if value is None else [{"epoch": 1, METRIC: value}]
    return TrialRecord(
        number=number, settings=settings, until=1, status=status, epochs=epochs, started_at="2026-01-01T00:00:00+00:00"
    )


def next_settings(recipe: Recipe, records: list[TrialRecord], number: int | None = None) -> dict[str, Any]:
    space, _ = split_levels(recipe)
    number = len(records) if number is None else number
    return suggest(recipe.tune, space, recipe.seed, number, records, METRIC, recipe)


def value_of(settings: dict[str, Any]) -> float:
    """Best at a rate of .004 and a dropout of .25."""
    rate = math.log(settings["train.learning_rate"] / 4e-3)
    return 0.15 - 0.006 * rate**2 - 0.1 * (settings["model.dropout"] - 0.25) ** 2


def run(recipe: Recipe, records: list[TrialRecord] | None = None) -> list[TrialRecord]:
    """The rest of a campaign, one trial after the other."""
    records = [*(records or [])]
    while len(records) < recipe.tune.trials:
        settings = next_settings(recipe, records)
        records.append(record(len(records), settings, value_of(settings)))
    return records


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_the_first_trial_is_the_recipe_as_it_is_even_outside_the_ranges(algorithm):
    recipe = campaign(RATE, "train.learning_rate=0.5", algorithm=algorithm)
    assert next_settings(recipe, []) == {"train.learning_rate": 0.5, "model.dropout": 0.2}


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_campaign_that_was_cut_anywhere_goes_on_with_the_same_settings(algorithm):
    recipe = campaign(RATE, algorithm=algorithm)
    whole = run(recipe)
    for cut in (1, 7, 13):
        stored = [TrialRecord.model_validate_json(one.model_dump_json()) for one in whole[:cut]]
        assert run(recipe, stored) == whole


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_the_order_in_which_a_recipe_names_keys_makes_no_difference(algorithm):
    turned = "{model.dropout: {uniform: [0, 0.7]}, train.learning_rate: {loguniform: [1e-4, 1e-1]}}"
    one, other = (run(campaign(search, algorithm=algorithm)) for search in (RATE, turned))
    assert [trial.settings for trial in one] == [trial.settings for trial in other]
    assert [*other[9].settings] == ["model.dropout", "train.learning_rate"]


def test_chance_follows_from_seed_and_number_whatever_became_of_the_others():
    recipe = campaign(RATE, algorithm="random")
    good = run(recipe)
    others = [record(one.number, one.settings, None, "failed") for one in good]
    assert [next_settings(recipe, others[:n]) for n in range(16)] == [one.settings for one in good]
    assert run(campaign(RATE, "seed=1", algorithm="random"))[1].settings != good[1].settings


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_settings_lie_in_their_domains_and_are_short_to_write(algorithm):
    search = RATE.replace("}}", "}, train.negatives: {int: [8, 11]}, item_item.recency: {choice: [null, 5, 20]}}")
    for one in run(campaign(search, algorithm=algorithm, trials=24))[1:]:
        rate, dropout = one.settings["train.learning_rate"], one.settings["model.dropout"]
        assert 1e-4 <= rate <= 1e-1 and rate == float(f"{rate:.4g}")
        assert 0.0 <= dropout <= 0.7
        assert one.settings["train.negatives"] in {8, 9, 10, 11} and type(one.settings["train.negatives"]) is int
        assert one.settings["item_item.recency"] in {None, 5.0, 20.0}


def test_the_first_trials_are_spread_evenly():
    recipe = campaign(RATE, algorithm="random", trials=17)
    rates = [math.log10(one.settings["train.learning_rate"]) for one in run(recipe)[1:]]
    assert np.bincount([int((rate + 4) / 3 * 4) for rate in rates], minlength=4).tolist() == [4, 4, 4, 4]


def test_the_estimator_learns_where_it_is_good_and_chance_does_not():
    def best(algorithm: str, seed: int) -> float:
        recipe = campaign(RATE, f"seed={seed}", "train.learning_rate=0.1", algorithm=algorithm, trials=30)
        return max(one.epochs[0][METRIC] for one in run(recipe))

    guided, blind = ([best(algorithm, seed) for seed in range(5)] for algorithm in ("tpe", "random"))
    assert np.mean(guided) > np.mean(blind)
    assert min(guided) > 0.149


def test_a_guided_trial_depends_on_what_became_of_the_others():
    recipe = campaign(RATE)
    whole = run(recipe)
    turned = [record(one.number, one.settings, 0.2 - one.epochs[0][METRIC]) for one in whole]
    assert next_settings(recipe, whole[:12]) != next_settings(recipe, turned[:12])


ONE = "{train.learning_rate: {loguniform: [1e-4, 1e-1]}}"


def ladder(**statuses: Status) -> list[TrialRecord]:
    """13 rates evenly from 1e-4 to 1e-1, best at 1e-3; `low` and `high` say how those below and above 3e-3 ended."""
    powers = np.linspace(-4, -1, 13)
    return [
        record(
            number, {"train.learning_rate": float(10**power)}, 0.1 - 0.02 * abs(power + 3),
            statuses.get("low" if power < -2.5 else "high", "finished"),
        )
        for number, power in enumerate(powers)
    ]


def proposed(records: list[TrialRecord]) -> list[float]:
    """Powers of ten of 30 rates that could come next."""
    recipe = campaign(ONE, "train.learning_rate=1e-4")
    numbers = range(len(records), len(records) + 30)
    return [math.log10(next_settings(recipe, records, number)["train.learning_rate"]) for number in numbers]


def test_it_goes_where_values_are_good():
    assert all(-3.6 < power < -2.4 for power in proposed(ladder()))


def test_failed_trials_count_as_the_worst_whatever_they_had_reached():
    assert all(power > -2.75 for power in proposed(ladder(low="failed")))


@pytest.mark.parametrize("status", ["stopped", "paused"])
def test_trials_that_were_stopped_or_wait_come_after_all_that_are_complete(status):
    assert all(power > -2.75 for power in proposed(ladder(low=status)))
    assert all(-3.6 < power < -2.4 for power in proposed(ladder(low=status, high=status)))


def test_of_trials_that_were_stopped_those_that_came_far_are_better():
    records = ladder(low="stopped", high="stopped")
    for one in records:
        if one.number > 6:
            one.epochs.append({"epoch": 2, METRIC: 0.01})
    assert all(power > -2.75 for power in proposed(records))


def test_trials_that_run_are_kept_away_from():
    before = proposed(ladder())
    middle = float(np.median(before))
    running = [record(13 + n, {"train.learning_rate": 10**(middle + n / 100)}, None, "running") for n in range(-3, 4)]
    near = [sum(abs(power - middle) < 0.1 for power in some) for some in (before, proposed(ladder() + running))]
    assert near[1] < near[0] / 2


def test_a_value_that_is_not_a_number_is_none():
    recipe, records = campaign(ONE), ladder()
    broken = [*records[:12], record(12, records[12].settings, math.nan)]
    running = [*records[:12], record(12, records[12].settings, None, "running")]
    assert next_settings(recipe, broken) == next_settings(recipe, running)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_impossible_combinations_are_not_proposed_and_numbers_without_effect_stay_as_they_are(algorithm):
    recipe = campaign(CONDITIONAL, algorithm=algorithm, trials=24)
    records: list[TrialRecord] = []
    for number in range(24):
        settings = next_settings(recipe, records)
        records.append(record(number, settings, 0.1 + number / 1000))
        assert is_possible(recipe, settings)
        if settings["train.loss"] != "focal":
            assert settings["train.focal_gamma"] == 2.0
    assert {one.settings["train.loss"] for one in records} == {"sampled_softmax", "full_softmax", "focal"}
    assert any(one.settings["train.focal_gamma"] != 2.0 for one in records)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_nothing_is_tried_twice_and_a_small_space_is_tried_to_the_last(algorithm):
    recipe = campaign(
        "{train.loss: {choice: [full_softmax, bpr, bce]}, train.negative_sampling: {choice: [uniform, popularity]}}",
        algorithm=algorithm, trials=99,
    )
    records: list[TrialRecord] = []
    for number in range(trial_count(recipe)):
        records.append(record(number, next_settings(recipe, records), 0.1))
    tried = [tuple(one.settings.values()) for one in records]
    assert len({*tried}) == len(tried) == 1 + 3 * 2 - 1
    with pytest.raises(ConfigError) as caught:
        next_settings(recipe, records)
    assert str(caught.value) == (
        "Of tune.search (train.loss, train.negative_sampling) no settings are left that were not tried and go "
        "together, after 6 trials and 50 attempts: lower tune.trials to 6, or search wider ranges."
    )


def test_a_repeated_trial_does_not_depend_on_those_that_came_after_it():
    recipe = campaign("{train.loss: {choice: [full_softmax, bpr, bce, focal]}}", algorithm="random", trials=5)
    records: list[TrialRecord] = []
    for number in range(5):
        records.append(record(number, next_settings(recipe, records), 0.1))
    assert next_settings(recipe, records, 2) == records[2].settings


def test_a_search_of_many_trials_is_suggested_in_well_under_a_second():
    import time

    recipe = campaign(CONDITIONAL, trials=300)
    space, _ = split_levels(recipe)
    own = current_settings(recipe, space)
    records = [
        record(number, own | {"train.learning_rate": 1e-3 + number / 1e5}, 0.1 + number / 1e4) for number in range(200)
    ]
    next_settings(recipe, records)
    started = time.perf_counter()
    next_settings(recipe, records)
    assert time.perf_counter() - started < 1.0


def test_optuna_says_nothing(capfd):
    run(campaign(RATE, trials=12))
    assert capfd.readouterr() == ("", "")
