"""The `tune` section: domains, what may be searched, and the text of every refusal."""

import time

import pytest

from llmrec_ray.config import (
    Choice,
    IntRange,
    LogUniform,
    Recipe,
    Uniform,
    check_campaign,
    load_recipe,
    needs_no_training,
)
from llmrec_ray.errors import ConfigError

RATE, LOSS = "tune.search.train.learning_rate", "tune.search.train.loss"
FORMS = "give {loguniform: [low, high]}, {uniform: [low, high]}, {int: [low, high]} or {choice: [value, ...]}"
MUTABLE = (
    "train.learning_rate, train.weight_decay, train.gradient_clip, train.loss, train.focal_gamma, train.negatives, "
    "train.popularity_power, train.augment.crop, train.augment.mask, train.augment.substitute, model.dropout, "
    "model.id_dropout, encoder.learning_rate, encoder.layer_decay, encoder.gradient_share"
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("movielens-100k", overrides=overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("The override") and first.endswith(" not valid for recipe movielens-100k:")
    return "\n".join(line.strip() for line in lines)


def test_a_domain_is_set_by_an_override_as_a_whole_or_by_its_bounds():
    whole = recipe(f"{RATE}={{loguniform: [1e-4, 1e-2]}}", "tune.search.model.dropout.uniform=[0, 0.5]")
    assert whole.tune.search == {
        "train.learning_rate": LogUniform(loguniform=(1e-4, 1e-2)), "model.dropout": Uniform(uniform=(0.0, 0.5)),
    }


def test_an_override_replaces_the_domain_that_a_file_gives_and_search_as_a_whole_replaces_all(tmp_path):
    flat = "tune.search={train.learning_rate: {uniform: [1, 2]}, model.dropout: {uniform: [0, 0.5]}}"
    changed = recipe(flat, f"{RATE}={{loguniform: [1e-4, 1e-2]}}")
    assert changed.tune.search["train.learning_rate"] == LogUniform(loguniform=(1e-4, 1e-2))
    assert [*recipe(flat, "tune.search={train.loss: {choice: [bpr]}}").tune.search] == ["train.loss"]


def test_keys_of_a_search_may_be_nested_like_sections():
    nested = recipe("tune.search={train: {negatives: {int: [8, 64]}, augment: {crop: {uniform: [0, 0.5]}}}}")
    assert nested.tune.search == {
        "train.negatives": IntRange(int=(8, 64)), "train.augment.crop": Uniform(uniform=(0.0, 0.5)),
    }


def test_a_campaign_survives_the_round_trip_through_json():
    before = recipe(
        f"{RATE}={{loguniform: [1e-4, 1e-2]}}", "tune.search.model.ncf_hidden={choice: [[64, 32], [32]]}",
        "tune.search.item_item.recency={choice: [null, 10]}", "tune.scheduler=none",
    )
    assert Recipe.model_validate_json(before.model_dump_json()) == before
    assert before.tune.search["item_item.recency"] == Choice(choice=(None, 10))


@pytest.mark.parametrize(("written", "message"), [
    ("{loguniform: [1e-2, 1e-4]}", "the range is 0.01 to 0.0001: give the smaller bound first, then a larger one"),
    ("{uniform: [0.1, 0.1]}", "the range is 0.1 to 0.1: give the smaller bound first, then a larger one"),
    ("{int: [3, 1]}", "the range is 3 to 1: give the smaller bound first, then a larger one"),
    ("{loguniform: [0, 1]}", "loguniform takes two positive numbers, the smaller first, not [0, 1]"),
    ("{loguniform: [1, 2, 3]}", "loguniform takes two positive numbers, the smaller first, not [1, 2, 3]"),
    ("{uniform: [.nan, 1]}", "uniform takes two numbers, the smaller first, not [.nan, 1]"),
    ("{uniform: [0, .inf]}", "uniform takes two numbers, the smaller first, not [0, .inf]"),
    ("{uniform: 3}", "uniform takes two numbers, the smaller first, not 3"),
    ("{int: [1.5, 3]}", "int takes two whole numbers, the smaller first, not [1.5, 3]"),
    ("{choice: []}", "choice takes a list of at least one value, not []"),
    ("{choice: 0.1}", "choice takes a list of at least one value, not 0.1"),
    ("{choice: [0.1, 0.2, 0.1]}", "0.1 is there twice: name each value once"),
    ("0.1", f"0.1 does not say where values may lie: {FORMS}"),
    ("null", f"null does not say where values may lie: {FORMS}"),
    ("{}", f"{{}} does not say where values may lie: {FORMS}"),
    ("{uniform: [1, 2], int: [1, 2]}", f"{{int: [1, 2], uniform: [1, 2]}} does not say where values may lie: {FORMS}"),
])
def test_what_is_wrong_with_a_domain_is_said_once_under_its_key(written, message):
    assert refusal(f"{RATE}={written}") == f"{RATE}: {message}"


@pytest.mark.parametrize(("key", "written", "message"), [
    ("train.learning_rat", "{uniform: [0, 1]}", "unknown key; did you mean 'learning_rate'?"),
    ("train.loss.x", "{uniform: [0, 1]}", "unknown key"),
    ("retrieval.candidates.texts", "{int: [9, 99]}", "unknown key; did you mean 'text'?"),
    ("train.augment", "{choice: [{crop: 0.3}]}", "this key is a section: name a key of it"),
    ("name", "{choice: [a, b]}", "this key is not searched, since it is only a name"),
    ("workspace", "{choice: [a, b]}", "this key is not searched, since it only says where results are kept"),
    ("seed", "{int: [1, 9]}",
     "this key is not searched, since seeds are luck: tune.fresh_seeds says with which the winner is trained again"),
    ("data.split", "{choice: [leave_one_out]}",
     "this key is not searched, since trials on different data cannot be compared: start a campaign for each"),
    ("evaluate.batch_users", "{int: [1, 9]}", "this key is not searched, since it says how trials are measured"),
    ("index.ef_search", "{int: [1, 9]}", "this key is not searched, since trials rank all items exactly"),
    ("serve.port", "{int: [1, 9]}",
     "this key is not searched, since it is about answering requests, which trials do not"),
    ("encoder.query_prompt", "{choice: ['{text}']}",
     "this key is not searched, since it is about answering requests, which trials do not"),
    ("tune.trials", "{int: [1, 9]}", "this key is not searched, since it describes the campaign itself"),
    ("train.epochs", "{int: [1, 9]}", "this key is not searched, since all trials may train as long: set tune.epochs"),
    ("fusion.weights.neural", "{uniform: [0, 1]}",
     "this key is not searched, since weights of signals are always searched, on stored scores, where fusion.weights "
     "is left out"),
    ("train.patience", "{int: [1, 9]}", "this key is not searched, since tune.scheduler says when trials end"),
    ("train.num_workers", "{int: [1, 9]}",
     "this key is not searched, since it says how training is computed, not what is learned"),
    ("fusion.weights", "{choice: [{neural: 1}]}",
     "this key is not searched, since weights of signals are always searched, on stored scores, where fusion.weights "
     "is left out"),
    ("fusion.signals", "{choice: [[neural]]}",
     "this key is not searched, since trials are compared by what its signals give together: name all that may help"),
    ("fusion.cold_weights", "{choice: [{neural: 1}]}",
     "this key is not searched, since of what is about new items only fusion.cold_scale is searched"),
    ("fusion.cascade.keep", "{int: [50, 99]}",
     "this key is not searched, since fusion.mode may be searched, with fusion.cascade as the recipe has it"),
    ("retrieval.candidates", "{choice: [{neural: 3}]}",
     "this key is not searched, since the numbers of each source are: name one, such as retrieval.candidates.neural"),
    ("encoder.lora_rank", "{int: [4, 16]}",
     "it has no effect while encoder.tuning is frozen: set encoder.tuning to lora, or leave it out"),
    ("encoder.learning_rate", "{loguniform: [1e-5, 1e-3]}",
     "it has no effect while encoder.tuning is frozen: set encoder.tuning to full or lora or top_layers, or leave it "
     "out"),
    ("train.epochs.x", "{int: [1, 9]}", "unknown key"),
])
def test_a_key_that_is_not_searched_is_refused_with_the_reason(key, written, message):
    assert refusal(f"tune.search={{{key}: {written}}}") == f"tune.search.{key}: {message}"


@pytest.mark.parametrize(("key", "written", "message"), [
    ("model.dropout", "{uniform: [0, 1]}", "1.0 is not possible: Input should be less than 1"),
    ("train.weight_decay", "{uniform: [-1, 1]}",
     "-1.0 is not possible: Input should be greater than or equal to 0"),
    ("train.loss", "{choice: [bpr, hinge]}",
     "hinge is not possible: Input should be 'sampled_softmax', 'full_softmax', 'bpr', 'bce' or 'focal'"),
    ("train.focal_gamma", "{uniform: [1, 3]}",
     "1.0 is not possible: train: focal_gamma is about loss focal, but loss is sampled_softmax: leave it out, or set "
     "train.loss to focal"),
    ("train.batch_size", "{choice: [1, 16]}",
     "1 is not possible: train: batch_size 1 is less than num_workers x accumulation_steps (2 x 1), so some would "
     "never have work: raise train.batch_size"),
    ("retrieval.max_candidates", "{int: [50, 100]}",
     "50 is not possible: retrieval: max_candidates is 50, but merge all keeps every candidate: set retrieval.merge to "
     "reciprocal_rank or weights, or leave max_candidates out"),
])
def test_a_value_that_the_recipe_does_not_take_is_refused_with_what_the_recipe_says(key, written, message):
    assert refusal(f"tune.search={{{key}: {written}}}") == f"tune.search.{key}: {message}"


def test_a_range_with_fractions_is_refused_for_whole_numbers():
    message = refusal("tune.search.model.embedding_size={loguniform: [8, 64]}")
    assert message.startswith("tune.search.model.embedding_size: 25.8")
    assert message.endswith(
        " is not possible: Input should be a valid integer, got a number with a fractional part; "
        "{int: [low, high]} gives whole numbers"
    )


def test_a_value_that_goes_with_a_choice_of_another_key_is_possible():
    both = recipe("tune.search.train.focal_gamma={uniform: [1, 3]}", f"{LOSS}={{choice: [bpr, focal]}}")
    assert {*both.tune.search} == {"train.focal_gamma", "train.loss"}
    recipe("tune.search.retrieval.max_candidates={choice: [100, null]}",
           "tune.search.retrieval.merge={choice: [all, weights]}")
    recipe("tune.search.encoder.lora_rank={int: [4, 8]}", "tune.search.encoder.tuning={choice: [frozen, lora]}")


def test_every_wrong_key_of_a_search_has_a_line():
    lines = refusal("tune.search={seed: {int: [1, 2]}, name: {choice: [a]}, model.dropout: {uniform: [0, 0.5]}}")
    assert [line.partition(":")[0] for line in lines.splitlines()] == ["tune.search.seed", "tune.search.name"]


def test_population_based_training_only_searches_what_can_change_in_training():
    assert refusal("tune.scheduler=pbt", "tune.search.model.embedding_size={choice: [32, 64]}") == (
        "tune.search.model.embedding_size: population-based training changes settings in the middle of training, where "
        f"this one cannot change: set tune.scheduler to asha, or search only {MUTABLE}"
    )
    recipe("tune.scheduler=pbt", f"{RATE}={{loguniform: [1e-4, 1e-2]}}", "tune.search.fusion.mode={choice: [late]}")


@pytest.mark.parametrize(("overrides", "message"), [
    (["tune.scheduler=asha", "tune.pbt={quantile: 0.2}"],
     "tune: pbt has no effect with scheduler asha: set tune.scheduler to pbt, or leave it out"),
    (["tune.scheduler=none", "tune.grace_epochs=3"],
     "tune: grace_epochs is about asha, but scheduler is none: set tune.scheduler to asha, or leave it out"),
    (["tune.scheduler=pbt", "tune.reduction_factor=4"],
     "tune: reduction_factor is about asha, but scheduler is pbt: set tune.scheduler to asha, or leave it out"),
    (["tune.fresh_seeds=[1, 2, 1]"], "tune: fresh_seeds names a seed twice: give different ones"),
    (["tune.finalist_seeds=[11]", "tune.objective=neural"],
     "tune: finalist_seeds compares trials as they would be served, but objective is neural: set tune.objective to "
     "fused, or leave it out"),
    (["tune.finalist_seeds=[2, 2]"], "tune: finalist_seeds names a seed twice: give different ones"),
    (["tune.finalist_seeds=[11, 103, 101]"],
     "tune: fresh_seeds and finalist_seeds both name 101, 103, so the winner would be tried on what it was chosen by: "
     "name different ones"),
    (["tune.finalists=0"], "tune.finalists: Input should be greater than 0 (got 0)"),
    (["tune.metric=auc"], "tune.metric: 'auc' is no metric: give ndcg@k, hr@k or mrr@k, such as ndcg@10"),
    (["tune.name=a/b"], "tune.name: 'a/b' cannot name a folder: use letters, digits, '.', '_' and '-', a letter or "
                        "digit first"),
    (["tune.trials=0"], "tune.trials: Input should be greater than 0 (got 0)"),
    (["tune.reduction_factor=1"], "tune.reduction_factor: Input should be greater than or equal to 2 (got 1)"),
    (["tune.scheduler=pbt", "tune.pbt.quantile=0.6"],
     "tune.pbt.quantile: Input should be less than or equal to 0.5 (got 0.6)"),
    (["tune.search=3"], "tune.search: Input should be a valid dictionary (got 3)"),
])
def test_a_campaign_that_would_not_do_what_it_says_is_refused(overrides, message):
    assert refusal(*overrides) == message


@pytest.mark.parametrize(("overrides", "message"), [
    (["seed=102"],
     "tune.fresh_seeds names 102, which is the seed of the search, so the winner would be tried again on what chose "
     "it: name other seeds."),
    (["seed=12", "tune.finalist_seeds=[11, 12]"],
     "tune.finalist_seeds names 12, which is the seed of the search, so finalists would be tried again on what chose "
     "them: name other seeds."),
    (["tune.grace_epochs=5", "tune.epochs=5"],
     "tune.grace_epochs is 5, but a trial has 5 epochs, so asha would end none: set tune.grace_epochs lower, or "
     "tune.scheduler to none."),
    (["tune.scheduler=pbt", "tune.pbt.every_epochs=14"],
     "tune.pbt.every_epochs is 14, but a trial has 14 epochs, so none would take over from another: set "
     "tune.pbt.every_epochs lower, or tune.scheduler to none."),
    (["tune.scheduler=pbt", "tune.trials=1"],
     "tune.trials is 1, but population-based training compares trials: raise tune.trials, or set tune.scheduler to "
     "none."),
])
def test_what_only_a_campaign_minds_is_refused_when_it_starts_and_not_before(overrides, message):
    with pytest.raises(ConfigError) as caught:
        check_campaign(recipe(*overrides))
    assert str(caught.value) == message


@pytest.mark.parametrize("overrides", [[], ["train.epochs=1"], ["tune.scheduler=pbt"], ["seed=7"]])
def test_campaigns_with_defaults_are_accepted(overrides):
    check_campaign(recipe(*overrides))


def test_a_wide_search_is_checked_in_well_under_a_second():
    search = ", ".join([
        "train.negative_sampling: {choice: [uniform, popularity, in_batch]}",
        "train.loss: {choice: [sampled_softmax, full_softmax, bpr, bce, focal]}",
        "train.focal_gamma: {uniform: [1, 3]}", "train.popularity_power: {uniform: [0, 1]}",
        "model.user_tower: {choice: [decayed_means, transformer]}", "model.transformer_layers: {int: [1, 3]}",
        "model.dropout: {uniform: [0, 0.5]}", "train.batch_size: {choice: [8, 16, 32, 64]}",
        "train.learning_rate: {loguniform: [1e-4, 1e-2]}", "model.embedding_size: {choice: [32, 64, 128]}",
    ])
    started = time.perf_counter()
    assert len(recipe(f"tune.search={{{search}}}").tune.search) == 10
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(("key", "expected"), [
    ("fusion.mode", True), ("fusion.cold_scale", True), ("retrieval.candidates.text", True), ("retrieval.merge", True),
    ("retrieval.max_candidates", True), ("fusion.item_vector", False), ("train.learning_rate", False),
    ("item_item.l2", False),
])
def test_keys_that_need_no_training_are_known(key, expected):
    assert needs_no_training(key) is expected
