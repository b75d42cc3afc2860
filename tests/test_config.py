"""Recipes: packaged names, files, dotted overrides, and the text of every refusal."""

import re
import subprocess
import sys
import textwrap

import pytest

from llmrec_ray.config import Recipe, load_recipe, overridden_workspace, override_recipe, recipe_names
from llmrec_ray.errors import ConfigError


def refusal(*overrides: str, **kwargs: object) -> str:
    arguments: dict = kwargs or {"name": "movielens-100k"}
    with pytest.raises(ConfigError) as caught:
        load_recipe(**arguments, overrides=overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_valid_and_named_after_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.workspace == f"runs/{name}"


def test_dotted_overrides_reach_their_section_and_scientific_notation_is_a_number():
    recipe = load_recipe("movielens-100k", overrides=["train.learning_rate=1e-4", "fusion.weights={neural: 1}"])
    assert recipe.train.learning_rate == pytest.approx(1e-4)
    assert recipe.fusion.weights == {"neural": 1.0}


def test_an_override_that_is_quoted_or_only_looks_like_a_number_stays_text():
    recipe = load_recipe("movielens-100k", overrides=["name=1e5", "data.interactions.columns.user_id='7'"])
    assert (recipe.name, recipe.data.interactions[0].columns.user_id) == ("1e5", "7")


def test_a_recipe_survives_the_round_trip_through_json():
    recipe = load_recipe("movielens-100k", overrides=["model.time_constants=[1, null]"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_an_unknown_key_is_refused_with_a_suggestion():
    assert "train.epoch: unknown key; did you mean 'epochs'?" in refusal("train.epoch=3")


def test_an_unknown_key_without_a_near_name_lists_the_known_ones():
    known = "build_threads, ef_construction, ef_search, hnsw_neighbors, kind"
    assert f"index.zzz: unknown key; known keys: {known}" in refusal("index.zzz=3")


def test_a_bad_value_is_shown_with_its_key():
    assert "train.epochs: Input should be greater than 0 (got -1)" in refusal("train.epochs=-1")


def test_an_unknown_name_in_a_mapping_is_refused_like_an_unknown_key():
    assert refusal("retrieval.candidates.nerual=3").endswith(
        "\n  retrieval.candidates.nerual: unknown key; did you mean 'neural'?"
    )
    assert refusal("fusion.weights={zzz: 1}").endswith(
        "\n  fusion.weights.zzz: unknown key; known keys: item_item, ncf, neural, popularity, text"
    )


@pytest.mark.parametrize(("overrides", "head"), [
    (["name=shop", "train.epochs=-1"], "The override train.epochs=-1 is not valid for recipe movielens-100k:"),
    (["fusion.mode=cascade", "name=shop", "fusion.cascade.keep=5"],
     "The overrides fusion.mode=cascade fusion.cascade.keep=5 are not valid for recipe movielens-100k:"),
    (["train.epochs=-1", "name=shop", "index.zzz=3"],
     "The overrides train.epochs=-1 index.zzz=3 are not valid for recipe movielens-100k:"),
    (["train.epochs=-1", "train.epochs=-1"],
     "The overrides train.epochs=-1 train.epochs=-1 are not valid for recipe movielens-100k:"),
    ([f"evaluate.zzz={'x' * 80}"],
     f"The override evaluate.zzz={'x' * 66}… is not valid for recipe movielens-100k:"),
])
def test_the_overrides_that_are_to_blame_are_named(overrides, head):
    assert refusal(*overrides).splitlines()[0] == head


def test_an_override_of_a_recipe_that_is_loaded_is_to_blame_too():
    with pytest.raises(ConfigError) as caught:
        override_recipe(load_recipe("movielens-100k"), ["seed=3", "train.epochs=-1"])
    assert str(caught.value).startswith("The override train.epochs=-1 is not valid for recipe movielens-100k:\n")


def test_a_file_that_is_wrong_by_itself_is_to_blame_unless_overrides_mend_it(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text("name: shop\ndata: {interactions: {paths: [a.csv]}}\nfusion: {item_vector: id}\nseed: -1\n")
    assert refusal("train.epochs=0", config=path) == (
        f"{path} is not a valid recipe:\n  seed: Input should be greater than or equal to 0 (got -1)\n  "
        "train.epochs: Input should be greater than 0 (got 0)"
    )
    assert refusal(config=path).startswith(f"{path} is not a valid recipe:\n  seed: ")
    assert load_recipe(config=path, overrides=["seed=1"]).seed == 1


@pytest.mark.parametrize(("overrides", "workspace"), [
    ([], None), (["seed=3"], None), (["workspace=a", "workspace='/b c'"], "/b c"), (["workspace=x/{name}"], "x/{name}"),
])
def test_a_workspace_is_read_from_overrides_alone(overrides, workspace):
    assert overridden_workspace(overrides) == workspace


@pytest.mark.parametrize(("override", "said"), [
    ("workspace=3", "Input should be a valid string"),
    ("workspace=w*", "the folder w* has * in its name, which stands for other names in paths: choose another folder"),
])
def test_a_workspace_that_is_none_is_refused_without_a_recipe_too(override, said):
    with pytest.raises(ConfigError) as caught:
        overridden_workspace([override])
    assert str(caught.value) == f"The override of workspace is not valid: {said}."


def test_rules_across_fields_name_the_remedy():
    assert "train.sharding to ddp, zero1, zero2 or zero3, or train.num_workers to 1" in refusal("train.sharding=none")
    assert "set data.min_user_interactions to 3 or more" in refusal("data.min_user_interactions=2")
    assert "describe data.items, or set fusion.item_vector to id" in refusal("data.items=null")


@pytest.mark.parametrize(("overrides", "message"), [
    (["fusion.signals=[]"],
     "fusion: fusion.signals is empty, so nothing would rank the items: name a signal"),
    (["fusion.weights={neural: 0}"],
     "fusion: every weight in fusion.weights is 0, so nothing would rank the items: give one a weight"),
    (["fusion.weights={neural: 1}", "fusion.mode=feature"],
     "fusion: fusion.weights has no effect with fusion.mode feature: set mode to late, or leave it out"),
    (["fusion.signals=[neural]", "retrieval.candidates={neural: 9}", "fusion.weights={neural: 1, item_item: 1}"],
     "recipe: fusion.weights names item_item, but there will be no such signal: text needs data.items, and item_item "
     "must be among fusion.signals; add it there, or leave the weight out"),
    (["fusion.weights={neural: 1}", "fusion.mode=cascade"],
     "fusion: fusion.weights has no effect with fusion.mode cascade: set mode to late, or leave it out"),
    (["fusion.weights={neural: 1}", "fusion.mode=gated"],
     "fusion: fusion.weights has no effect with fusion.mode gated: set mode to late, or leave it out"),
    (["fusion.mode=feature", "fusion.newcomer_events=3"],
     "fusion: fusion.newcomer_events has no effect with fusion.mode feature, since no weights are searched: leave it "
     "out"),
    (["fusion.weights={neural: 1}", "fusion.newcomer_events=3"],
     "fusion: fusion.newcomer_events has no effect with fixed fusion.weights, since no weights are searched: leave it "
     "out"),
    (["fusion.mode=feature", "fusion.cold_scale=1"],
     "fusion: fusion.cold_scale has no effect with fusion.mode feature, which carries nothing over to new items: set "
     "mode to late, or leave it out"),
    (["fusion.cascade.keep=50"],
     "fusion: fusion.cascade has no effect with fusion.mode learned: set mode to cascade, or leave it out"),
    (["fusion.mode=cascade", "fusion.cascade={first: neural, then: neural}"],
     "fusion.cascade: first and then are both neural, so nothing is narrowed: name two signals"),
    (["fusion.mode=cascade", "fusion.cascade={keep: 10}"],
     "recipe: fusion.cascade.keep is 10, less than the longest list that is measured, 20 (evaluate.ks): keep at least "
     "as many"),
    (["fusion.mode=cascade", "fusion.signals=[neural]", "retrieval.candidates={neural: 9}"],
     "recipe: fusion.cascade names item_item, but there will be no such signal: text needs data.items, and item_item "
     "must be among fusion.signals or retrieval.candidates; add it there, or name another signal"),
    (["fusion.mode=gated", "fusion.signals=[]"],
     "fusion: fusion.signals is empty, so nothing would rank the items: name a signal"),
    (["retrieval.candidates={cold: 9}"],
     "retrieval: candidates names only cold, so nothing would propose items with train events: name another source in "
     "retrieval.candidates, such as neural"),
    (["data.items=null", "fusion.item_vector=id", "retrieval.candidates={text: 9, cold: 9}"],
     "recipe: retrieval.candidates names only text, but data.items is not given, so there are no item texts: name "
     "another source, such as neural"),
    (["fusion.item_vector=id", "encoder.tuning=top_layers"],
     "recipe: encoder.tuning is top_layers, but fusion.item_vector is 'id', so training never reads a text: set "
     "encoder.tuning to frozen, or fusion.item_vector to feature"),
    (["encoder.attention=flash_attention_2"],
     "encoder: attention flash_attention_2 does not compute in fp32: set encoder.precision to bf16, or "
     "encoder.attention to sdpa"),
    (["encoder.attention=flash_attention_2", "encoder.precision=bf16", "encoder.tuning=lora"],
     "recipe: encoder.attention flash_attention_2 does not train in fp32: set train.precision to bf16, or "
     "encoder.attention to sdpa"),
    (["encoder.gradient_checkpointing=true"],
     "encoder: gradient_checkpointing is about training the encoder, but encoder.tuning is frozen: leave it out, or "
     "set tuning to top_layers, lora or full"),
    (["encoder.layer_decay=0.9"],
     "encoder: layer_decay is about training the encoder, but encoder.tuning is frozen: leave it out, or set "
     "tuning to top_layers, lora or full"),
    (["encoder.gradient_share=0.5"],
     "encoder: gradient_share is about training the encoder, but encoder.tuning is frozen: leave it out, or set "
     "tuning to top_layers, lora or full"),
    (["encoder.lora_targets=[q_proj]", "encoder.tuning=full"],
     "encoder: lora_targets is given, but encoder.tuning is full: leave it out, or set tuning to lora"),
    (["encoder.item_prompt=Represent this"],
     "encoder.item_prompt: the prompt 'Represent this' must have {text} exactly once: write it where the text goes"),
    (["encoder.query_prompt='{text} or {text}'"],
     "encoder.query_prompt: the prompt '{text} or {text}' must have {text} exactly once: write it where the text goes"),
    (["serve.encoder={min_replicas: 3, max_replicas: 2}"],
     "serve.encoder: min_replicas 3 is above max_replicas 2: raise max_replicas"),
])
def test_a_recipe_that_would_only_fail_or_do_nothing_later_is_refused_at_once(overrides, message):
    head, _, lines = refusal(*overrides).partition("\n  ")
    assert re.match(r"The overrides? .+ (is|are) not valid for recipe movielens-100k:$", head)
    assert lines == message


@pytest.mark.parametrize("override", [
    "retrieval.candidates={}", "evaluate.ks=[]", "model.time_constants=[]", "model.ncf_hidden=[]",
    "data.interactions.paths=[]",
])
def test_a_list_that_needs_an_entry_may_not_be_empty(override):
    assert f"{override.partition('=')[0]}: " in refusal(override)


def test_an_override_that_is_no_assignment_is_refused():
    assert refusal("train.epochs") == "The override 'train.epochs' is not of the form section.key=value."


def test_an_override_through_a_value_is_refused():
    assert refusal("name.x=1") == "The override 'name.x=1' sets a key below 'name', which is a value, not a section."


def test_an_override_that_is_not_yaml_is_refused():
    assert refusal("train.epochs=[1") == "The value of the override 'train.epochs=[1' is not valid YAML."


def test_an_unknown_recipe_lists_the_known_ones():
    assert refusal(name="nope") == (
        f"There is no recipe 'nope': choose one of {', '.join(recipe_names())}, or name a file with --config."
    )


def test_a_missing_config_file_is_named(tmp_path):
    path = tmp_path / "absent.yaml"
    assert refusal(config=path) == (
        f"There is no config file {path}: check the path, or use --recipe with one of {', '.join(recipe_names())}."
    )


def test_a_config_file_that_is_not_yaml_or_no_mapping_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    assert refusal(config=broken).startswith(f"{broken} is not valid YAML: ")
    broken.write_text("- 1")
    assert refusal(config=broken) == f"{broken} must hold a mapping of sections, not list."


def test_one_of_recipe_and_config_must_be_given():
    assert refusal(name=None, config=None) == "Give either --recipe NAME or --config FILE."


def test_loading_a_recipe_imports_neither_torch_nor_ray():
    script = textwrap.dedent("""
        import sys
        from llmrec_ray.config import load_recipe
        load_recipe("movielens-100k")
        assert not {"torch", "ray", "transformers"} & set(sys.modules)
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("override", [
    "workspace=s3://KEY:SECRET@bucket/work", "data.interactions.paths=['s3://bucket/log?access_key=KEY']",
])
def test_credentials_in_a_uri_are_refused_without_being_shown(override):
    message = refusal(override)
    assert "the URI carries credentials, which would be written into every artifact: take them out" in message
    assert "SECRET" not in message and "KEY" not in message
    assert message.startswith(f"The override {override.partition('=')[0]}=… is not valid for ")


@pytest.mark.parametrize("folder", ["runs/[a]", "/data/w*", "what?"])
def test_a_workspace_has_a_name_that_is_no_pattern(folder):
    message = refusal(f"workspace='{folder}'")
    assert f"workspace: the folder {folder} has " in message
    assert message.endswith("in its name, which stands for other names in paths: choose another folder")


@pytest.mark.parametrize("uri", ["s3://bucket/work", "gs://bucket/a@b", "/data/a:b@c", "s3://bucket/w?region=eu-1"])
def test_uris_without_credentials_are_accepted(uri):
    assert load_recipe("movielens-100k", overrides=[f"workspace={uri}"]).workspace == uri


def test_fusing_texts_alone_without_item_texts_is_refused_before_training():
    overrides = ("data.items=null", "fusion.item_vector=id", "fusion.signals=[text]")
    assert (
        "fusion.signals names only text, but data.items is not given, so there are no item texts: name another "
        "signal, such as neural"
    ) in refusal(*overrides)


def test_sampled_candidates_are_refused_where_every_held_out_item_is_ranked():
    with pytest.raises(ConfigError) as refused:
        load_recipe("movielens-100k", overrides=["data.split=cold_items", "evaluate.candidates=sampled"])
    assert (
        "evaluate.candidates sampled is for splits with one target per user, but data.split cold_items ranks every "
        "held-out item: set evaluate.candidates to all"
    ) in str(refused.value)
