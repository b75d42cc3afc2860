"""Search spaces: what is searched by default, at which level, and what settings make of a recipe."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.config import Choice, IntRange, LogUniform, Recipe, Uniform, load_recipe, override_recipe
from llmrec_ray.errors import ConfigError
from llmrec_ray.tune.shared import fuses
from llmrec_ray.tune.space import (
    current_settings,
    default_search,
    grid,
    is_possible,
    overrides_of,
    readable,
    split_levels,
    trial_count,
    with_settings,
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("movielens-100k", overrides=overrides)


def test_rates_and_what_keeps_from_learning_by_heart_are_searched_first_and_candidates_for_free():
    needs_training, free = split_levels(recipe())
    assert [*needs_training] == ["train.learning_rate", "train.weight_decay", "model.dropout", "model.id_dropout"]
    sources = ("neural", "item_item", "text", "popularity")
    assert [*free] == ["fusion.mode", *(f"retrieval.candidates.{source}" for source in sources)]
    assert free["fusion.mode"] == Choice(choice=("late", "gated", "learned"))


@pytest.mark.parametrize(("overrides", "key", "there"), [
    (["encoder.tuning=lora"], "encoder.learning_rate", True),
    (["encoder.tuning=frozen"], "encoder.learning_rate", False),
    (["fusion.item_vector=id"], "model.id_dropout", False),
    (["fusion.item_vector=text"], "model.id_dropout", False),
    (["data.split=cold_items"], "fusion.cold_scale", True),
    ([], "fusion.cold_scale", False),
    (["fusion.mode=late"], "fusion.mode", False),
    (["data.items=null", "fusion.item_vector=id"], "retrieval.candidates.text", False),
    (["retrieval.candidates={neural: 9}"], "retrieval.candidates.text", False),
])
def test_only_what_has_an_effect_is_searched_by_default(overrides, key, there):
    assert (key in default_search(recipe(*overrides))) is there


@pytest.mark.parametrize("overrides", [
    [], ["train.learning_rate=0.2"], ["train.weight_decay=0"], ["encoder.tuning=top_layers"], ["encoder.tuning=full"],
    ["encoder.tuning=lora"], ["data.split=cold_items"], ["data.items=null", "fusion.item_vector=id"],
    ["fusion.weights={neural: 1}"], ["tune.scheduler=pbt"], ["retrieval.candidates={neural: 1}"],
    ["train.learning_rate=1e-7"],
])
def test_the_default_search_is_one_that_a_recipe_may_name_and_holds_its_own_rates(overrides):
    given = recipe(*overrides)
    search = default_search(given)
    tree = {key: domain.model_dump(mode="json") for key, domain in search.items()}
    assert recipe(*overrides, f"tune.search={tree}").tune.search == search
    low, high = search["train.learning_rate"].loguniform
    assert low <= given.train.learning_rate <= high


@pytest.mark.parametrize(("overrides", "judged_fused"), [
    ([], True), (["tune.objective=neural"], False), (["fusion.signals=[neural]"], False),
    (["fusion.signals=[item_item]"], False), (["fusion.mode=feature"], False),
    (["fusion.mode=feature", "tune.search={fusion.mode: {choice: [late, feature]}}"], True),
])
def test_trials_are_judged_by_what_will_rank(overrides, judged_fused):
    assert fuses(recipe(*overrides)) is judged_fused


def test_a_search_that_is_named_replaces_the_default_and_is_split_into_levels():
    named = recipe("tune.search={train.loss: {choice: [bpr, bce]}, fusion.mode: {choice: [late, gated]}}")
    assert split_levels(named) == (
        {"train.loss": Choice(choice=("bpr", "bce"))}, {"fusion.mode": Choice(choice=("late", "gated"))}
    )


def test_choices_are_kept_as_a_recipe_holds_them_not_as_yaml_reads_them():
    space, _ = split_levels(recipe(
        "tune.search={train.learning_rate: {choice: [1e-4, 1]}, model.ncf_hidden: {choice: [[64, '32']]}}"
    ))
    assert space["train.learning_rate"].choice == (1e-4, 1.0)
    assert space["model.ncf_hidden"].choice == ([64, 32],)


def test_settings_change_their_keys_and_nothing_else():
    before = recipe("tune.search.model.dropout={uniform: [0, 0.5]}")
    after = with_settings(before, {"train.learning_rate": 0.01, "retrieval.candidates.text": 7})
    assert (after.train.learning_rate, after.retrieval.candidates["text"]) == (0.01, 7)
    own = {"train.learning_rate": before.train.learning_rate, "retrieval.candidates.text": 50}
    assert with_settings(after, own) == before


def test_settings_that_do_not_go_together_are_refused_with_what_the_recipe_says():
    chosen = {"train.loss": "full_softmax", "train.negative_sampling": "popularity", "train.learning_rate": 1e-5}
    with pytest.raises(ConfigError) as caught:
        with_settings(recipe(), chosen)
    assert str(caught.value) == (
        "recipe movielens-100k with train.loss=full_softmax train.negative_sampling=popularity "
        "train.learning_rate=1.0e-05 is not a valid recipe:\n  train: full_softmax compares with every item, so "
        "negative_sampling popularity would do nothing: leave it out, or set train.loss to sampled_softmax"
    )
    assert not is_possible(recipe(), chosen)
    assert is_possible(recipe(), {"train.loss": "full_softmax"})


def test_the_seed_of_a_fresh_training_is_no_matter_of_the_search():
    assert with_settings(recipe(), {"seed": 101}).seed == 101
    assert override_recipe(recipe("tune.search.model.dropout={uniform: [0, 0.5]}"), ["seed=101"]).seed == 101


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(),
    st.sampled_from(["on", "1e-4", "~"]), st.lists(st.integers() | st.none(), max_size=3),
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_an_override_written_for_a_value_reads_as_that_value(value):
    import yaml

    [override] = overrides_of({"train.x": value})
    assert "\n" not in override or isinstance(value, str)
    assert yaml.safe_load(override.removeprefix("train.x=")) == value


def test_overrides_of_settings_give_the_recipe_that_the_settings_give():
    chosen = {"train.learning_rate": 1e-5, "item_item.recency": None, "model.ncf_hidden": [32], "train.loss": "bpr"}
    assert override_recipe(recipe(), overrides_of(chosen)) == with_settings(recipe(), chosen)


def test_current_settings_are_the_recipe_s_own_and_none_where_a_source_is_not_asked():
    space, free = split_levels(recipe())
    given = recipe("model.dropout=0.3", "retrieval.candidates={neural: 9}")
    assert current_settings(given, space | free) == {
        "train.learning_rate": 4e-3, "train.weight_decay": 0.01, "model.dropout": 0.3, "model.id_dropout": 0.2,
        "fusion.mode": "learned", "retrieval.candidates.neural": 9, "retrieval.candidates.item_item": None,
        "retrieval.candidates.text": None, "retrieval.candidates.popularity": None,
    }


@pytest.mark.parametrize(("search", "expected"), [
    ("{train.learning_rate: {uniform: [0.001, 0.002]}}", 16),
    ("{train.loss: {choice: [bpr, bce]}}", 3),
    ("{train.loss: {choice: [bpr, sampled_softmax]}}", 2),
    ("{fusion.mode: {choice: [late, gated]}}", 1),
    ("{train.negatives: {int: [1, 5]}, train.loss: {choice: [bpr, bce]}}", 11),
    ("{train.loss: {choice: [full_softmax, bpr]}, train.negative_sampling: {choice: [uniform, popularity]}}", 4),
    ("{train.negatives: {int: [1, 5000]}}", 16),
])
def test_there_are_no_more_trials_than_different_settings_to_train(search, expected):
    assert trial_count(recipe(f"tune.search={search}")) == expected


def test_a_grid_lists_every_combination_unless_there_are_too_many():
    small = {"a": Choice(choice=(1, 2)), "b": IntRange(int=(5, 6))}
    assert [*grid(small)] == [{"a": 1, "b": 5}, {"a": 1, "b": 6}, {"a": 2, "b": 5}, {"a": 2, "b": 6}]
    assert grid(small | {"c": Uniform(uniform=(0, 1))}) is None
    assert grid(small | {"c": IntRange(int=(1, 999))}) is None
    assert [*grid({})] == [{}]


def test_readable_values_have_four_digits_and_stay_in_their_range():
    assert readable(0.00123456, LogUniform(loguniform=(1e-4, 1e-2))) == 0.001235
    assert readable(0.123456, Uniform(uniform=(0, 0.12346))) == 0.12346
