"""The report of an evaluation: what it says, that it needs nothing else, and that no data can break out of it."""

import re
from importlib import resources

import numpy as np
import pytest

from llmrec_ray import __version__
from llmrec_ray.artifact import Workspace, open_artifact
from llmrec_ray.bundle import Bundle
from llmrec_ray.data import Dataset
from llmrec_ray.evaluate import Evaluation, evaluate
from llmrec_ray.evaluate.details import with_details
from llmrec_ray.evaluate.examples import Example, ExampleItem, make_examples
from llmrec_ray.evaluate.html import render_report
from llmrec_ray.metrics import ndcg_gains, paired_difference, summarise
from llmrec_ray.pages import Bar, Interval, grouped_bars, interval_chart, line_chart, stacked_bar
from llmrec_ray.recommend import Pipeline
from tests.pages import HOSTILE, Page, check_is_alone, colours, contrast

USERS = 60
CSS = (resources.files("llmrec_ray.pages") / "templates" / "page.css").read_text()


def made_evaluation(shift=8.0, **fields):
    """The served pipeline, a signal and a baseline whose ranks are `shift` worse, with everything filled in."""
    generator = np.random.default_rng(0)
    model = generator.integers(1, 30, USERS).astype(float)
    other = np.maximum(model + shift, 1.0)
    lead = paired_difference(ndcg_gains(model, 10), ndcg_gains(other, 10))
    beside = summarise(other, [5, 10], np.full(USERS, 90)) | {
        "lead": lead["mean"], "lead_low": lead["low"], "lead_high": lead["high"], "coverage@10": 0.25, "gini@10": 0.5,
    }
    evaluation = Evaluation(**{
        "protocol": "P: last event of each user", "protocol_hash": "abc123abc123", "split": "test", "recipe": "board",
        "seed": 3, "dataset": "data0", "bundle": "bundle0", "users": USERS, "items": 90, "main_k": 10,
        "model": summarise(model, [5, 10], np.full(USERS, 90)) | {"coverage@10": 0.5, "gini@10": 0.25},
        "signals": {"text": beside}, "baselines": {"ease": beside}, **fields,
    })
    return with_details(
        evaluation, {"model": model, "signal:text": other, "baseline:ease": other},
        history_lengths=generator.integers(1, 60, USERS), target_rows=generator.integers(0, 90, USERS),
        popularity=generator.integers(1, 40, 90), trained={"fusion_curve": [[0.0, 0.1], [0.5, 0.12], [1.0, 0.11]]},
    )


def made_example(title="A film", **fields):
    items = [
        ExampleItem(item_id=f"i{place}", title=title, score=1.5 - place, shares={"neural": 2.0, "text": -0.5 - place},
                    sources=["neural"], held_out=place == 0)
        for place in range(2)
    ]
    return Example(**{
        "user_id": "u1", "history": [title, "Another"], "history_length": 12, "held_out": title, "rank": 1.0,
        "items": items, **fields,
    })


@pytest.fixture(scope="module")
def evaluation():
    return made_evaluation()


@pytest.fixture(scope="module")
def page(evaluation):
    return render_report(evaluation, [made_example()])


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


@pytest.fixture(scope="module")
def parts(tiny_recipe, tiny_release):
    return (
        Dataset.open(tiny_release.dataset.uri), Bundle.open(tiny_release.bundle.uri), Pipeline.of_release(tiny_release)
    )


def test_the_page_needs_nothing_from_outside(page):
    check_is_alone(page)


@pytest.mark.parametrize("place", ["title", "history", "user_id", "signal", "recipe", "protocol", "baseline"])
def test_markup_in_data_is_shown_as_text(place, evaluation):
    example, changed = made_example(), evaluation
    if place == "title":
        example = made_example(title=HOSTILE)
    elif place == "history":
        example = made_example(history=[HOSTILE])
    elif place == "user_id":
        example = made_example(user_id=HOSTILE)
    elif place == "signal":
        item = example.items[0].model_copy(update={"shares": {HOSTILE: 1.0}, "sources": [HOSTILE]})
        example = example.model_copy(update={"items": [item]})
    elif place == "baseline":
        curves = evaluation.curves.model_copy(update={"at_k": {"ndcg": {"model": [0.1], f"baseline:{HOSTILE}": [0.1]}}})
        segments = {"popularity": {}}
        changed = evaluation.model_copy(update={
            "baselines": {HOSTILE: evaluation.baselines["ease"]}, "curves": curves, "segments": segments,
            "intervals": {f"baseline:{HOSTILE}": evaluation.intervals["baseline:ease"]},
        })
    else:
        changed = evaluation.model_copy(update={place: HOSTILE})
    page = render_report(changed, [example])
    assert "<script" not in page
    assert "script" not in {tag for tag, _ in Page(page).tags}
    assert HOSTILE in Page(page).text


def test_the_head_says_what_was_measured_on_what_with_what(parsed):
    version = f"llmrec_ray {__version__}"
    for said in ("board", "P: last event of each user", "abc123abc123", "data0", "bundle0", version):
        assert said in parsed.text


@pytest.mark.parametrize(("shift", "said"), [
    (8.0, "The served pipeline ranks better than the best baseline, ease"),
    (-8.0, "The baseline ease ranks better than the served pipeline"),
    (0.0, "There is no difference shown between the served pipeline and the best baseline, ease"),
])
def test_the_result_is_said_in_words(shift, said):
    text = " ".join(Page(render_report(made_evaluation(shift), [])).text.split())
    assert said in text


def test_sampled_candidates_are_said_to_be_sampled(evaluation, parsed):
    sampled = evaluation.model_copy(update={"protocol": "P-SAMPLED: among 99 items drawn"})
    assert "Candidates were sampled." in Page(render_report(sampled, [])).text
    assert "Candidates were sampled." not in parsed.text


def test_without_baselines_nothing_is_claimed():
    page = render_report(made_evaluation(baselines={}), [])
    assert "No baseline stands beside the served pipeline, so nothing here says how good it is." in page


def test_figures_intervals_and_leads_stand_in_the_table(evaluation, parsed):
    lead = evaluation.baselines["ease"]["lead"]
    low, high = evaluation.intervals["model"]["ndcg@10"]
    for said in (f"{evaluation.model['ndcg@10']:.4f}", f"{low:.4f}–{high:.4f}", f"{lead:+.4f}",
                 "served pipeline is better"):
        assert said in parsed.text


def test_every_chart_has_a_title_and_a_description(parsed, page):
    charts = [attrs for attrs in parsed.all("svg") if attrs.get("role") == "img"]
    assert len(charts) == 1 + 2 + 1 + 2
    identities = re.findall(r'id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    for chart in charts:
        assert set(chart["aria-labelledby"].split()) <= set(identities)
    assert all(attrs.get("aria-hidden") == "true" for attrs in parsed.all("svg") if attrs.get("role") != "img")


def test_every_header_cell_has_a_scope_and_every_table_scrolls_in_its_own_box(parsed, page):
    assert all(attrs.get("scope") for attrs in parsed.all("th"))
    boxes = [attrs for attrs in parsed.all("div") if attrs.get("class") == "scroll"]
    assert len(boxes) == len(parsed.all("table"))
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in boxes)


def test_an_example_shows_the_past_the_list_the_reasons_and_marks_the_hit(parsed):
    text = " ".join(parsed.text.split())
    assert "Next was A film, which the served pipeline ranked 1." in text
    assert "The newest 2 of 12 before that: Another A film" in text
    assert "A film held out" in text
    assert "neural +2.00, text -0.50" in text


@pytest.mark.parametrize(("rank", "said"), [(26.0, "ranked 26."), (812.5, "ranked around 812.")])
def test_a_miss_says_where_the_item_was(rank, said, evaluation):
    page = render_report(evaluation, [made_example(rank=rank)])
    assert said in " ".join(Page(page).text.split())


def test_an_empty_segment_is_shown_as_nobody(parsed):
    assert "nobody, so no figures" in parsed.text


def test_figures_of_held_out_items_have_a_table_of_their_own(evaluation):
    cold = {
        "cold_only": {"hr@10": 0.3125}, "all_scale_off": {"ndcg@10": 0.0125},
        "cold_only:signal:text": {"hr@10": 0.2875}, "cold_only:chance": {"hr@10": 0.0675},
    }
    text = Page(render_report(evaluation.model_copy(update={"cold": cold}), [])).text
    for said in ("Items nobody had seen", "among the held-out items0.3125–", "among all items, cold scale 0–0.0125",
                 "text signal0.2875", "chance0.0675"):
        assert said in text


def test_an_evaluation_of_an_older_version_still_makes_a_page(evaluation):
    kept = ("protocol", "split", "recipe", "seed", "dataset", "bundle", "users", "items", "main_k", "model", "signals",
            "baselines")
    old = Evaluation.model_validate({name: getattr(evaluation, name) for name in kept})
    text = Page(render_report(old, [])).text
    assert "Systems beside each other" in text
    assert "Curves" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_charts_stand_out_in_both_colour_schemes(scheme):
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what a chart is read by."""
    shown = colours(CSS, scheme)
    for paper in ("paper", "panel", "soft", "ours"):
        for ink in ("ink", "muted"):
            assert contrast(shown[ink], shown[paper]) >= 4.5, (ink, paper)
    assert contrast(shown["good"], shown["good-soft"]) >= 4.5
    for place in [*(f"c{n}" for n in range(8)), "other"]:
        assert contrast(shown[place], shown["panel"]) >= 3, place


def test_a_line_goes_from_the_left_to_the_right_and_up_with_its_values():
    chart = line_chart("n", "t", "d", {"a": [(1, 0.0), (2, 0.5), (3, 1.0)]}, x_label="x", y_label="y")
    [points] = re.findall(r'points="([^"]+)"', chart)
    assert points == "60,220 243,122 426,24"


def test_the_best_point_of_a_curve_is_named():
    chart = line_chart("n", "t", "d", {"a": [(0.0, 0.1), (0.5, 0.12), (1.0, 0.11)]}, x_label="x", y_label="y",
                       from_zero=False, mark_best=True)
    assert "0.1200 at 0.5" in chart


@pytest.mark.parametrize("points", [[(1.0, 0.0)], [(0.0, 0.1), (1.0, 0.1)], [(1, 0.0), (2, 0.0)]])
def test_curves_of_one_point_or_without_any_rise_are_drawn(points):
    for from_zero in (True, False):
        assert "NaN" not in line_chart("n", "t", "d", {"a": points}, x_label="x", y_label="y", from_zero=from_zero)


def test_bars_and_intervals_of_nothing_but_zeros_are_drawn():
    assert "<rect" in grouped_bars("n", "t", "d", {("g", "n = 1"): [Bar(0.0, 0.0, 0.0), Bar(0.0)]}, y_label="y")
    assert "<circle" in interval_chart("n", "t", "d", [Interval("a", 0.0, 0.0, 0.0, strong=True)], x_label="x")


def test_shares_above_and_below_zero_lie_on_their_sides_of_the_line():
    bar = stacked_bar({"a": 3.0, "b": -1.0}, ["a", "b"], -1.0, 3.0)
    assert '<rect class="bar series-0" x="50" y="0" width="150"' in bar
    assert '<rect class="bar series-1" x="0" y="0" width="50"' in bar
    assert 'class="zero" x1="50" x2="50"' in bar


def test_examples_are_real_lists_with_reasons_and_mark_what_was_held_out(parts):
    dataset, _, pipeline = parts
    histories, targets = dataset.histories("validation"), dataset.targets("test")
    lists = pipeline.recommend_rows(histories, 5)
    ranks = np.where((found := lists == targets[:, None]).any(axis=1), found.argmax(axis=1) + 1.0, 20.0)
    examples = make_examples(dataset, pipeline, histories, targets, ranks, 5)
    assert examples == make_examples(dataset, pipeline, histories, targets, ranks, 5)
    assert 1 <= len(examples) <= 5
    for example in examples:
        row = dataset.users.row(example.user_id)
        assert [item.item_id for item in example.items] == dataset.items.ids(lists[row])
        assert example.history[-1] == dataset.item_titles[histories[row][-1]]
        assert example.history_length == histories.lengths[row]
        assert any(item.held_out for item in example.items) == (example.rank <= 5)
        for item in example.items:
            assert sum(item.shares.values()) == pytest.approx(item.score, abs=1e-3)
            assert item.sources


def test_an_evaluation_keeps_its_report_and_the_examples(parts, tiny_recipe, tmp_path):
    result = evaluate(tiny_recipe, *parts, Workspace(str(tmp_path)))
    folder = open_artifact(result.uri, "evaluation").path
    text = Page((folder / "report.html").read_text()).text
    assert f"{result.model['ndcg@10']:.4f}" in text
    assert "thing " in text
    assert "held_out" in (folder / "examples.json").read_text()
    assert result.segments["warmth"]["warm"].users == result.users
    assert set(result.intervals) == {"model", *(f"signal:{n}" for n in result.signals),
                                     *(f"baseline:{n}" for n in result.baselines)}
