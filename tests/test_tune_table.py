"""The table of a campaign, its recipe and its figures, from records made by arithmetic."""

import json
import math
from dataclasses import replace

import polars as pl
import pytest

from llmrec_ray.config import Choice, load_recipe, override_recipe
from llmrec_ray.tune.outcome import Confirmation
from llmrec_ray.tune.records import Part
from llmrec_ray.tune.report import best_yaml, outcome_figures, write_outcome
from llmrec_ray.tune.table import results_table
from llmrec_ray.tune.written import recipe_yaml, setting_of, setting_text
from tests.outcomes import METRIC, full_outcome, made_finals, made_outcome, made_record, searched_recipe

SPACE = searched_recipe().tune.search


def test_a_row_stands_for_a_trial_and_an_epoch_with_columns_typed_by_their_domain():
    table = results_table([made_record(1), made_record(0, epochs=3)], SPACE, METRIC)
    assert table["trial"].to_list() == [0] * 3 + [1] * 9
    assert table["epoch"].to_list() == [1, 2, 3, *range(1, 10)]
    assert table.columns[:7] == ["trial", "status", "reason", "retried", "started_at", "trial_s", "training_s"]
    kinds = {name: table.schema[name] for name in SPACE}
    assert kinds == {
        "train.learning_rate": pl.Float64, "model.dropout": pl.Float64, "train.batch_size": pl.Int64,
        "train.loss": pl.String, "model.embedding_size": pl.Int64,
    }
    assert table["value"].to_list() == table[METRIC].to_list()
    assert table.schema["fused_curve"] == pl.List(pl.List(pl.Float64))


def test_the_best_epoch_of_each_trial_is_marked_once():
    best = results_table([made_record(n) for n in range(5)], SPACE, METRIC).filter("is_best")
    assert best["trial"].to_list() == [0, 1, 2, 3, 4]
    first = made_record(0)
    assert best["value"][0] == max(entry[METRIC] for entry in first.epochs)


def test_a_trial_that_failed_before_its_first_epoch_has_one_row_with_its_reason():
    failed = made_record(0, epochs=0).model_copy(update={"status": "failed", "reason": "out of memory"})
    [row] = results_table([failed], SPACE, METRIC).to_dicts()
    assert (row["epoch"], row["value"], row["is_best"]) == (None, None, False)
    assert (row["status"], row["reason"]) == ("failed", "out of memory")
    assert row["train.learning_rate"] == failed.settings["train.learning_rate"]


def test_a_value_that_is_not_a_number_is_no_value_and_never_the_best():
    record = made_record(0, epochs=3)
    record.epochs[1][METRIC] = math.nan
    table = results_table([record], SPACE, METRIC)
    assert table["value"].to_list()[1] is None
    assert table["is_best"].sum() == 1 and not table["is_best"][1]


def test_settings_that_population_based_training_changed_stand_at_their_epochs():
    record = made_record(2, epochs=4)
    changed = record.settings | {"model.dropout": 0.11}
    record.parts.append(Part(after_epoch=2, taken_from=7, checkpoint="x", settings=changed, reason="among the worst"))
    table = results_table([record], SPACE, METRIC)
    assert table["model.dropout"].to_list() == [record.settings["model.dropout"]] * 2 + [0.11] * 2
    assert table["taken_from"].to_list() == [None, None, 7, None]


@pytest.mark.parametrize(("values", "kind"), [
    ((True, False), pl.Boolean), ((1, 2), pl.Int64), ((1, 0.5), pl.Float64), (("a", None), pl.String),
    ((None, 3), pl.Int64), ((1, "a"), pl.String), (({"neural": 1.0}, None), pl.String), ((None,), pl.String),
])
def test_choices_of_any_kind_get_one_column_type(tmp_path, values, kind):
    space = {"some.key": Choice(choice=values)}
    records = [made_record(n, epochs=1, some__key=value) for n, value in enumerate(values)]
    table = results_table(records, space, METRIC)
    assert table.schema["some.key"] == kind
    table.write_parquet(tmp_path / "results.parquet")
    assert pl.read_parquet(tmp_path / "results.parquet").equals(table)


def test_a_recipe_is_written_as_a_person_would_and_loads_as_an_equal_one(tmp_path):
    recipe = searched_recipe(
        "train.learning_rate=1e-5", "fusion.weights={neural: 0.6, text: 0.4}", "tune.scheduler=pbt", "tune.pbt={}",
        "tune.search={train.learning_rate: {loguniform: [1e-5, 1e-2]}}",
    )
    text = recipe_yaml(recipe, ["first\nsecond", "  indented"])
    (tmp_path / "best.yaml").write_text(text)
    assert load_recipe(config=tmp_path / "best.yaml") == recipe
    assert text.startswith("# first second\n#   indented\n\nname: movielens-100k\n")
    assert "paths: ['{raw}/interactions.tsv']" in text
    assert "serve:" not in text and "workspace:" not in text


def test_settings_are_shown_on_one_line_as_yaml():
    shown = [setting_text(v) for v in (1e-5, 0.00312345, "late", None, True, "a\nb: c", {"neural": 0.6}, [1, 2])]
    assert shown == ["1e-05", "0.003123", "late", "null", "true", "'a b: c'", "{neural: 0.6}", "[1, 2]"]
    assert setting_of(searched_recipe(), "model.dropout") == searched_recipe().model.dropout
    assert setting_of(searched_recipe(), "fusion.weights.neural") is None


def test_a_campaign_is_written_as_a_table_a_page_a_recipe_and_figures(tmp_path):
    outcome = full_outcome()
    write_outcome(tmp_path, outcome)
    table = pl.read_parquet(tmp_path / "results.parquet")
    assert table["trial"].n_unique() == 16
    best = load_recipe(config=tmp_path / "best.yaml")
    assert best == override_recipe(outcome.best_recipe, ["tune.name=null"]), "so that it can be tuned again"
    figures = json.loads((tmp_path / "outcome.json").read_text())
    assert figures == json.loads(json.dumps(outcome_figures(outcome)))
    assert figures["statuses"] == {"failed": 2, "finished": 5, "stopped": 9}
    assert figures["confirmation"]["winner"]["101"] == 0.1118


def test_settings_of_a_winner_that_took_over_others_are_those_of_its_best_epoch():
    record = made_record(0, epochs=4)
    first = record.settings
    record.parts.append(Part(
        after_epoch=2, taken_from=1, checkpoint="x", settings=first | {"model.dropout": 0.4321}, reason="behind",
    ))
    for best, dropout in ((2, first["model.dropout"]), (3, 0.4321)):
        record.epochs[best - 1][METRIC] = 1.0 + best
        winner = outcome_figures(made_outcome([record]))["winner"]
        assert (winner["epoch"], winner["settings"]["model.dropout"]) == (best, dropout)


def test_the_recipe_says_above_it_where_it_comes_from_and_what_changed():
    outcome = made_outcome([made_record(0, epochs=2)])
    head = best_yaml(outcome).partition("\n\n")[0].splitlines()
    assert head[0] == "# The best recipe of campaign spring: trial 0, the best of 1,"
    assert head[1].startswith("# validation NDCG@10 of the fused signals 0.0")
    assert head[2] == "# Other than in the recipe that was searched around:"
    assert any(line.startswith("#   model.dropout: ") and line.endswith("(was 0.2)") for line in head)
    assert head[-1] == "# Train it with: llmrec train --config best.yaml"


def test_the_recipe_says_above_it_when_finalists_were_compared():
    outcome = full_outcome()
    chosen = replace(outcome, finals=made_finals(outcome))
    assert best_yaml(chosen).splitlines()[:2] == [
        f"# The best recipe of campaign spring: trial {outcome.winner.number} of 16, the best finalist,",
        "# validation ndcg@10 0.1121 as served, mean of seeds 11 and 12, before what needs no training was searched.",
    ]
    figures = outcome_figures(chosen)["finals"]
    assert (figures["mode"], figures["finalists"][0]["modes"]["late"]) == ("late", {11: 0.1118, 12: 0.1124})
    assert figures["finalists"][0]["means"]["late"] == pytest.approx(0.1121)


def test_a_search_space_that_the_winner_does_not_go_with_is_left_out_of_its_recipe(tmp_path):
    recipe = searched_recipe("tune.search={encoder.learning_rate: {loguniform: [1e-6, 1e-4]}}", "encoder.tuning=lora")
    frozen = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"tuning": "frozen"})})
    outcome = made_outcome([made_record(0)], recipe, overrides=["encoder.tuning=frozen"], best_recipe=frozen)
    (tmp_path / "best.yaml").write_text(best_yaml(outcome))
    loaded = load_recipe(config=tmp_path / "best.yaml")
    assert loaded.tune.search == {} and loaded.encoder == frozen.encoder


def test_figures_that_are_not_numbers_are_null_for_programs(tmp_path):
    outcome = made_outcome([made_record(0, epochs=2)], confirmation=Confirmation({101: math.nan}, {101: 0.1}))
    write_outcome(tmp_path, outcome)
    assert json.loads((tmp_path / "outcome.json").read_text())["confirmation"]["winner"] == {"101": None}
