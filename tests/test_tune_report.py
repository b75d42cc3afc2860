"""The page of a campaign: its words, its charts, and campaigns of which little is known."""

import math
import re
from dataclasses import replace
from importlib import resources

import pytest

from llmrec_ray.config import Choice, IntRange, LogUniform, Uniform, override_recipe
from llmrec_ray.tune.axes import axis_of, value_scale
from llmrec_ray.tune.charts import Pair, Trace, learning_curves, pair_chart, parallel_coordinates, slice_chart
from llmrec_ray.tune.importance import parameter_importance
from llmrec_ray.tune.outcome import Confirmation, Finalist, Finals
from llmrec_ray.tune.page import render_page
from llmrec_ray.tune.records import Part
from tests.outcomes import METRIC, full_outcome, made_finals, made_outcome, made_record, searched_recipe
from tests.pages import HOSTILE, Page, check_is_alone, colours, contrast

SPACE = searched_recipe().tune.search
CSS = [
    (resources.files(package) / "templates" / name).read_text()
    for package, name in (("llmrec_ray.pages", "page.css"), ("llmrec_ray.tune", "report.css"))
]


def text_of(outcome) -> str:
    return " ".join(Page(render_page(outcome, "name: x\n")).text.split())


def failed(record, reason="It broke.", epochs=0):
    return record.model_copy(update={"status": "failed", "reason": reason, "epochs": record.epochs[:epochs]})


@pytest.fixture(scope="module")
def outcome():
    return full_outcome()


@pytest.fixture(scope="module")
def page(outcome):
    return render_page(outcome, "name: <movielens>\n")


def test_the_page_needs_nothing_from_outside(page):
    check_is_alone(page)


def test_charts_have_titles_and_descriptions_that_their_ids_lead_to(page):
    parsed = Page(page)
    ids = [attrs["id"] for _, attrs in parsed.tags if attrs.get("id")]
    assert len({*ids}) == len(ids)
    charts = [attrs for attrs in parsed.all("svg") if attrs.get("role") == "img"]
    assert len(charts) == 1 + 1 + 1 + 1 + 5 + 2
    for chart in charts:
        assert {*chart["aria-labelledby"].split()} <= {*ids}


def test_the_best_value_its_lead_and_whether_it_is_luck_stand_at_the_top(outcome):
    text = text_of(outcome)
    best, recipe = outcome.winner, outcome.records[0]
    lead = max(e[METRIC] for e in best.epochs) - max(e[METRIC] for e in recipe.epochs)
    said = f"Trial {best.number} is the best of 16: {outcome.label} 0.1138, the recipe as it is "
    assert f"{said}{max(e[METRIC] for e in recipe.epochs):.4f}: +{lead:.4f}" in text
    assert "On fresh seeds: better" in text
    assert "The winner is better on 3 of 3 fresh seeds, by +0.0039 NDCG@10 on average, 0.1119 against 0.1080 (" in text
    assert "The search saw 0.1142 NDCG@10 for the winner, fresh seeds give 0.1119 on the same split (−0.0023)" in text
    assert "0.1043 on test (−0.0075)" in text


def finals_of(outcome, mode="late"):
    """The outcome as it is when its finalists chose the winner."""
    finals = made_finals(outcome, mode)
    winner = next(record for record in outcome.records if record.number == finals.trial)
    return replace(outcome, finals=finals, winner=winner)


def test_finalists_and_why_one_of_them_won_stand_on_the_page(outcome):
    chosen = finals_of(outcome)
    text, (second, first, third) = text_of(chosen), (each.trial for each in chosen.finals.finalists)
    assert (
        f"Trial {second} won: NDCG@10 0.1121 on validation, as served with fusion.mode late, on average over seeds "
        "11 and 12. It was one of the 3 best of 16 trials, which were trained again with these seeds."
    ) in text
    rows = re.findall(r"<tr.*?</tr>", render_page(chosen, "name: x\n").partition("Who won, and why")[2])[1:7]
    assert [re.sub(r"<[^>]+>", " ", row).split() for row in rows] == [
        [f"{second}", "winner", "late", "0.1118", "0.1124", "0.1121"],
        [f"{first}", "learned", "0.1112", "0.1108", "0.1110"],
        [f"{second}", "learned", "0.1102", "0.1106", "0.1104"],
        [f"{first}", "late", "0.1101", "0.1095", "0.1098"],
        [f"{third}", "learned", "0.1104", "–", "–"],
        [f"{third}", "late", "0.1099", "–", "–"],
    ]
    assert f"No figure of trial {third}, seed 12 It broke with 12." in text
    assert "Winner in the search" in text and "Best in the search" not in text
    assert "The best ones were trained again with other seeds and judged as served, with each fusion mode that" in text
    assert "within 0.2 % of its best the recipe's own or else the cheapest to serve was taken; the best mean of" in text
    assert "Its seeds as a finalist gave 0.1121 NDCG@10 for the winner, fresh seeds give 0.1119" in text
    check_is_alone(render_page(chosen, "name: x\n"))


def test_finalists_of_which_none_has_a_mean_leave_the_choice_to_the_search(outcome):
    broken = {n: replace(each, failed={12: "It broke."}) for n, each in enumerate(made_finals(outcome).finalists)}
    finals = Finals((11, 12), (*broken.values(),), outcome.winner.number, None)
    text = text_of(replace(outcome, finals=finals))
    assert f"Trial {outcome.winner.number} is the best of 16" in text and "Best in the search" in text
    assert "with some seed each of them failed, so the best trial of the search is the winner." in text


def test_one_finalist_with_one_seed_is_not_called_the_best_of_many():
    outcome = made_outcome([made_record(0)])
    finals = Finals((11,), (Finalist(0, 0.1, {"learned": {11: 0.11}}),), 0, "learned", {0: "learned"})
    text = text_of(replace(outcome, finals=finals))
    assert "Trial 0, the recipe as it is, won: NDCG@10 0.1100" in text
    assert "with fusion.mode learned, on average over seed 11." in text and "best of 1" not in text
    assert "The best one was trained again with other seeds and judged as served." in text
    other = replace(finals, finalists=(Finalist(0, 0.1, {"late": {11: 0.11}}),), mode="late", modes={0: "late"})
    assert "Trial 0 won:" in text_of(replace(outcome, finals=other))


def test_a_mode_that_a_finalist_has_no_value_of_is_named_with_the_reason(outcome):
    chosen = finals_of(outcome)
    first, *others = chosen.finals.finalists
    known = replace(first, left_out={"gated": "Too few events."})
    text = text_of(replace(chosen, finals=replace(chosen.finals, finalists=(known, *others))))
    assert f"No figure of trial {first.trial} with fusion.mode gated Too few events." in text


def test_how_trials_ended_is_said_with_reasons(outcome):
    text = text_of(outcome)
    assert "2 failed, 5 finished, 9 stopped" in text
    assert "The loss is not finite in step 104: lower train.learning_rate." in text
    assert "Tried again in smaller pieces: ran out of memory with encoder.max_batch_tokens 4096" in text
    assert "rung 2: not among the best third of 7 trials" in text


def test_settings_that_need_no_training_are_shown_with_what_they_were_chosen_for(outcome):
    text = text_of(outcome)
    assert "The choice, fusion.mode=late, retrieval.candidates.text=20, has NDCG@10 0.1142" in text
    assert "against 0.1121 before, with the winner's settings" in text
    assert "Weight0.5200.3100.1100.0600.000" in text
    assert "0.1140 at 0.55" in text
    assert "The curve of two signals ranks all items by these alone; what is served weighs all of them" in text
    assert "fusion.cold_scale: validation holds no items that nobody had met" in text


def test_a_search_that_changed_nothing_is_said_so(outcome):
    kept = replace(outcome.policy, overrides=[], value=0.1121)
    text = text_of(replace(outcome, policy=kept))
    assert "The winner's own stay, NDCG@10 0.1121 on validation: none was better by more than the tolerance" in text
    text = text_of(replace(outcome, policy=replace(kept, table=kept.table[:1])))
    assert "only the weights of its signals were searched, in 1.8 s: NDCG@10 0.1121 on validation." in text


def test_long_reasons_are_folded_and_long_names_lose_their_middle():
    records = [made_record(n) for n in range(4)]
    records[1] = failed(records[1], "word " * 60)
    space = {"train.loss": Choice(choice=("bpr", "a_choice_whose_name_goes_on_and_on_and_on"))}
    for record in records:
        record.settings["train.loss"] = space["train.loss"].choice[record.number % 2]
    page = render_page(made_outcome(records, space=space), "name: x\n")
    assert page.count("<details><summary>word word") == 1
    assert re.search(r">a_choice[\w]*…[\w]*on<", page)


def test_the_best_recipe_stands_on_the_page_as_it_is_written(page):
    assert "name: &lt;movielens&gt;\n</pre>" in page


def test_how_the_campaign_was_made_is_said(outcome):
    text = text_of(outcome)
    for said in ("Optuna's TPE", "ASHA: from epoch 2, one in 2 goes on", "101, 102, 103", "5 min 12 s", "4.0 s a trial",
                 "Finalistsnone",
                 "of 144 with every trial to its end", "llmrec_ray 0."):
        assert said in text


@pytest.mark.parametrize("place", ["reason", "choice", "name", "label", "test_uri", "failed", "policy"])
def test_markup_in_data_is_shown_as_text(place, outcome):
    changed = outcome
    if place == "reason":
        changed = replace(outcome, records=[failed(outcome.records[1], HOSTILE), *outcome.records[2:]])
    elif place == "choice":
        changed = replace(outcome, space={"train.loss": Choice(choice=("bpr", HOSTILE))}, records=[
            record.model_copy(update={"settings": {"train.loss": HOSTILE if record.number % 2 else "bpr"}})
            for record in outcome.records
        ])
    elif place in {"name", "label"}:
        changed = replace(outcome, **{place: HOSTILE})
    elif place == "policy":
        changed = replace(outcome, policy=replace(outcome.policy, weights={HOSTILE: 1.0}))
    else:
        value = HOSTILE if place == "test_uri" else {HOSTILE: HOSTILE}
        changed = replace(outcome, confirmation=replace(outcome.confirmation, **{place: value}))
    page = render_page(changed, "name: x\n")
    assert "<script" not in page
    assert "&lt;script" in page
    check_is_alone(page)


def test_a_campaign_of_one_trial_makes_a_page():
    text = text_of(made_outcome([made_record(0)]))
    assert "There was one trial: validation NDCG@10 of the fused signals 0.0" in text
    assert "nobody knows how much of its value is luck. Name seeds in tune.fresh_seeds" in text
    assert "others, worst to best fifth" not in text and "stopped or not finished" not in text


def test_a_campaign_of_which_all_trials_but_one_failed_makes_a_page():
    records = [failed(made_record(n), f"Reason {n}.", epochs=n % 2) for n in range(4)] + [made_record(4)]
    text = text_of(made_outcome(records))
    assert "Trial 4 is the best of 5" in text
    assert "The recipe as it is gave no value to compare with." in text
    assert "1 trial with a value cannot tell which setting mattered: that takes at least 8." in text


def test_that_nothing_was_better_than_the_recipe_is_said_first():
    records = [made_record(0, train__learning_rate=4e-3, model__dropout=0.2)] + [
        made_record(n, train__learning_rate=2e-4) for n in (1, 2)
    ]
    text = text_of(made_outcome(records))
    assert "No configuration was better than the recipe as it is" in text
    assert "against 2 others." in text


def test_a_recipe_that_was_stopped_is_compared_with_what_the_winner_had_by_then():
    records = [made_record(0, epochs=2).model_copy(update={"status": "stopped"}), made_record(1), made_record(2)]
    outcome = made_outcome(records)
    early, best = (max(e[METRIC] for e in outcome.winner.epochs[:n]) for n in (2, 9))
    lead = early - max(e[METRIC] for e in records[0].epochs)
    text = text_of(outcome)
    assert early < best and f"is the best of 3: {outcome.label} {best:.4f}. After 2 epochs, since the" in text
    figures = f"{early:.4f} against {early - lead:.4f}: {lead:+.4f} (".replace("-", "−")
    assert f"the recipe as it is was trained no further, it had {figures}" in text


@pytest.mark.parametrize(("best", "said"), [
    (2, "No configuration was better than the recipe as it is"), (4, "Trial 0 is the best of 2"),
])
def test_a_trial_that_took_over_from_another_is_the_recipe_only_before(best, said):
    record = made_record(0, epochs=4)
    part = Part(after_epoch=2, taken_from=1, checkpoint="x", settings=record.settings, reason="behind")
    record.parts, record.epochs[best - 1][METRIC] = [part], 1.0
    text = text_of(made_outcome([record, made_record(1)]))
    assert said in text
    taken = "Trial 0 began as the recipe and went on with weights and settings of others" in text
    assert taken is (best == 4)


def test_trials_that_came_out_alike_make_a_page():
    twin = made_record(0)
    records = [twin.model_copy(update={"number": n}) for n in range(12)]
    text = text_of(made_outcome(records))
    assert "All trials had the same settings." in text
    for record in records:
        record.settings = record.settings | {"model.dropout": record.number / 20}
    assert "All trials came out alike, so no setting made a difference." in text_of(made_outcome(records))


def test_values_that_are_not_numbers_leave_gaps(outcome):
    record = made_record(1, epochs=4)
    record.epochs[0][METRIC] = math.nan
    record.epochs[2][METRIC] = None
    found = Confirmation({101: math.nan, 102: 0.1}, {101: 0.1}, failed={"winner-101": "It diverged."})
    page = render_page(made_outcome([made_record(0), record], confirmation=found), "name: x\n")
    assert "nan" not in Page(page).text.lower()
    assert "No figure of winner-101" in Page(page).text


def test_a_campaign_of_two_hundred_trials_folds_most_of_its_table():
    page = render_page(full_outcome(200), "name: x\n")
    assert "The other 176" in page
    assert page.count('class="across dense"') == 2
    assert len(page) < 600_000


def test_a_trial_of_population_based_training_says_whose_weights_it_took():
    record = made_record(1, epochs=4)
    record.parts.append(Part(
        after_epoch=2, taken_from=0, checkpoint="x", settings=record.settings | {"model.dropout": 0.4321},
        reason="among the worst quarter",
    ))
    text = text_of(made_outcome([made_record(0), record]))
    assert "After epoch 2 went on with the weights of trial 0: among the worst quarter" in text
    assert "0.4321" in text


def test_a_campaign_that_searched_nothing_by_training_makes_a_page():
    recipe = searched_recipe("tune.search={fusion.mode: {choice: [late, learned]}}")
    best = override_recipe(recipe, ["fusion.mode=late"])
    outcome = made_outcome([made_record(0)], recipe, space={}, overrides=["fusion.mode=late"], best_recipe=best)
    text = text_of(outcome)
    assert "Setting by setting" not in text
    assert "fusion.modelearnedlate" in text


def test_that_every_training_on_fresh_seeds_failed_is_not_called_a_lack_of_seeds(outcome):
    found = Confirmation({}, {}, failed={"winner-101": "It broke.", "recipe-101": "It broke too."})
    text = text_of(replace(outcome, confirmation=found))
    assert "Every training on fresh seeds failed" in text and "llmrec tune --resume spring tries again." in text
    assert "tune.fresh_seeds" not in text and "It broke too." in text


@pytest.mark.parametrize(("found", "verdict"), [
    (Confirmation({101: 0.1}, {101: 0.09}), "one seed only"),
    (Confirmation({101: 0.1, 102: 0.09}, {101: 0.09, 102: 0.1}), "no difference shown"),
    (Confirmation({}, {101: 0.1}, failed={"winner-101": "It broke."}), "not compared"),
])
def test_what_fresh_seeds_say_stands_beside_the_best_value(found, verdict):
    records = [made_record(n) for n in range(3)]
    assert f"On fresh seeds: {verdict}" in text_of(made_outcome(records, confirmation=found))


def test_many_looks_at_the_test_split_are_warned_of(outcome):
    found = replace(outcome.confirmation, looks=4)
    assert "The test split has been scored 4 times" in text_of(replace(outcome, confirmation=found))
    assert "has been scored" not in text_of(outcome)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_points_stand_out_in_both_colour_schemes(scheme):
    """The worst fifth may be faint, since it is what one looks past; WCAG 2.2 asks for 3 to 1 of the rest."""
    panel = colours(CSS[0], scheme)["panel"]
    levels = colours(CSS[1], scheme)
    assert contrast(levels["winner"], panel) >= 4.5
    stand_out = [contrast(levels[f"l{level}"], panel) for level in range(5)]
    assert stand_out == sorted(stand_out)
    assert min(stand_out) >= 2.5 and min(stand_out[2:]) >= 3


def test_orders_of_magnitude_lie_evenly_on_an_axis_whose_ends_are_named():
    axis = axis_of("x", LogUniform(loguniform=(1e-4, 1e-1)), [1e-4, 1e-2, 1e-1, 0.0, None])
    assert axis.places == pytest.approx([0.0, 2 / 3, 1.0, 0.0, None])
    assert [label for _, label in axis.ticks] == ["0.0001", "0.001", "0.01", "0.1"]


def test_an_axis_reaches_values_outside_of_its_domain():
    axis = axis_of("x", Uniform(uniform=(0.0, 0.5)), [0.25, 1.0])
    assert axis.places == [0.25, 1.0]
    assert (axis.ticks[0][1], axis.ticks[-1][1]) == ("0", "1")
    assert axis_of("x", IntRange(int=(1, 3)), [2]).ticks == [(0.0, "1"), (0.5, "2"), (1.0, "3")]


def test_choices_have_bands_in_their_order_and_equal_ones_lie_beside_each_other():
    axis = axis_of("x", Choice(choice=("b", "a")), ["b", "a", "b", "other"])
    assert [label for _, label in axis.ticks] == ["b", "a", "other"]
    assert axis.places == pytest.approx([0.25 / 3, 0.5, 0.75 / 3, 2.5 / 3])


def test_one_value_far_below_the_rest_does_not_press_these_together():
    scale = value_scale([0.1, 0.101, 0.102, 0.103, 0.001, None])
    assert scale.is_cut and scale.low > 0.09
    assert scale.place(0.001) == 0.0
    assert not value_scale([0.1, 0.11, 0.12]).is_cut


def traces():
    return [
        Trace("w", "winner", 0.2, [(1, 0.1), (2, 0.2)], "finished"),
        Trace("r", "recipe", 0.1, [(1, 0.1)], "stopped"), Trace("f", "failed", None, [], "failed"),
        Trace("o", "level-2", 0.15, [(1, 0.1), (2, 0.15)], "finished"),
    ]


def test_lines_of_parallel_coordinates_cross_their_places_and_the_winner_lies_above_all():
    up = value_scale([0.2, 0.1, None, 0.15])
    axes = [axis_of("x", Uniform(uniform=(0.0, 1.0)), [0.0, 0.5, 1.0, 0.25]), up.axis("v", [0.2, 0.1, None, 0.15])]
    chart = parallel_coordinates("n", "t", "d", axes, traces())
    drawn = re.findall(r'class="trial ([\w-]+)" points="([^"]+)"', chart)
    assert [look for look, _ in drawn] == ["failed", "level-2", "recipe", "winner"]
    assert dict(drawn)["winner"] == "24,320 782,52"
    assert dict(drawn)["failed"] == "24,52 24,52"


def test_learning_curves_mark_how_trials_ended():
    cut_short = Trace("x", "failed", 0.1, [(1, 0.1)], "failed")
    up = value_scale([0.1, 0.2, 0.15])
    chart = learning_curves("n", "t", "d", up, [*traces(), cut_short], y_label="y")
    assert chart.count('class="end recipe"') == 1
    assert len(re.findall(r'class="end failed" d="M[\d.]+ [\d.]+L', chart)) == 1
    assert 'class="end winner"' not in chart
    [dot] = re.findall(r'class="trial recipe" points="([^"]+)"', chart)
    assert len({*dot.split()}) == 1 and len(dot.split()) == 2


def test_names_of_two_lines_that_end_together_are_moved_apart():
    both = [replace(trace, points=[(1, 0.1), (2, 0.2)]) for trace in traces()[:2]]
    chart = learning_curves("n", "t", "d", value_scale([0.1, 0.2]), both, y_label="y")
    first, second = map(float, re.findall(r'class="label halo \w+" x="[\d.]+" y="([\d.]+)"', chart))
    assert abs(first - second) >= 15


def test_slices_show_trials_that_were_not_trained_to_the_end_hollow():
    axis = axis_of("x", Uniform(uniform=(0.0, 1.0)), [0.0, 0.5, 1.0, 0.25])
    chart = slice_chart("n", "t", "d", axis, value_scale([0.2, 0.1]), traces(), y_label="y")
    assert re.findall(r'class="point ([\w -]+)"', chart) == ["level-2 whole", "recipe part", "winner whole"]


def test_a_pair_of_which_one_is_missing_has_no_way_between_them():
    chart = pair_chart("n", "t", "d", [Pair("seed 1", 0.2, 0.1), Pair("seed 2", 0.2, None)], label="v")
    assert (chart.count('class="way"'), chart.count("<circle")) == (1, 3)


def test_shares_are_those_of_the_function_that_made_the_values():
    """Integrals over the space by hand: 1.9e-4 of the variance is the learning rate's, 3.0e-5 that of dropout."""
    found = parameter_importance([made_record(n) for n in range(150)], SPACE, METRIC)
    assert found.shares["train.learning_rate"] == pytest.approx(0.86, abs=0.06)
    assert found.shares["model.dropout"] == pytest.approx(0.14, abs=0.06)
    assert sum(found.shares.values()) + found.jointly == pytest.approx(1.0)
    assert found.fit > 0.8


def test_what_two_settings_do_only_together_is_the_share_of_neither():
    space = {"a": Choice(choice=("x", "y")), "b": Uniform(uniform=(0.0, 1.0))}
    records = []
    for n in range(64):
        record = made_record(n, epochs=1)
        settings = {"a": "xy"[n % 2], "b": (n // 2) / 31}
        value = 1.0 if (settings["a"] == "x") == (settings["b"] > 0.5) else 0.0
        records.append(record.model_copy(update={"settings": settings, "epochs": [{"epoch": 1, METRIC: value}]}))
    found = parameter_importance(records, space, METRIC)
    assert max(found.shares.values()) < 0.1 and found.jointly > 0.9


def test_shares_are_always_the_same_and_leave_out_what_never_changed():
    records = [made_record(n, model__dropout=0.2) for n in range(20)]
    found = parameter_importance(records, SPACE, METRIC)
    assert "model.dropout" not in found.shares
    assert parameter_importance(records, SPACE, METRIC) == found


def test_trials_are_compared_at_an_epoch_that_all_reached():
    records = [made_record(n, epochs=9 if n % 2 else 3) for n in range(20)]
    stopped = [r if len(r.epochs) == 9 else r.model_copy(update={"status": "stopped"}) for r in records]
    found = parameter_importance(stopped, SPACE, METRIC)
    assert found.epoch == 3
    same = [made_record(n, epochs=3) for n in range(20)]
    assert found.shares == parameter_importance(same, SPACE, METRIC).shares


def test_settings_that_foretell_nothing_are_called_so():
    records = [made_record(n) for n in range(30)]
    shuffled = [
        record.model_copy(update={"settings": made_record(n + 100).settings}) for n, record in enumerate(records)
    ]
    found = parameter_importance(shuffled, SPACE, METRIC)
    assert found.note.startswith("Take these with care: from the settings alone, values of trials left out")


@pytest.mark.parametrize("domain", [
    LogUniform(loguniform=(1.0, 5.0)), Uniform(uniform=(1.0, 5.0)), IntRange(int=(1, 5)), Choice(choice=(None, 2.0)),
])
def test_a_number_that_trials_left_empty_says_nothing_and_does_not_lose_the_page(domain):
    recipe = searched_recipe()
    space = {**SPACE, "train.positive_value": domain}
    records = [made_record(n, train__positive_value=None if n % 2 else 2.0) for n in range(20)]
    found = parameter_importance(records, space, METRIC)
    assert found.shares["train.positive_value"] < 0.1 < found.shares["train.learning_rate"]
    assert "train.positive_value" in text_of(made_outcome(records, recipe, space=space))


def test_recipes_own_values_outside_of_the_space_count():
    records = [made_record(n) for n in range(20)]
    records[0].settings |= {"train.learning_rate": 0.0, "train.loss": "focal", "model.embedding_size": 500}
    found = parameter_importance(records, SPACE, METRIC)
    assert found.trials == 20 and found.shares


def test_a_winner_that_is_the_recipe_itself_has_no_table_of_differences(outcome):
    text = text_of(replace(outcome, confirmation=Confirmation({101: 0.1, 102: 0.3}, {101: 0.1, 102: 0.3}, same=True)))
    assert "The winner is the recipe as it is, with 0.2000 NDCG@10 on 2 fresh seeds on average" in text
    assert "The winner was trained again with seeds that the search had not seen" in text
    assert "the recipe itself" in text
    assert "Over the recipe, fresh seeds" not in text and "Winner and recipe on fresh seeds" not in text
