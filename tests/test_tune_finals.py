"""The best trials again on several seeds: by real trainings on the checkerboard, and who wins by arithmetic."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.config import Recipe, override_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ClusterError, DataError, DiskFullError
from llmrec_ray.evaluate import validation_value
from llmrec_ray.storage import read_json
from llmrec_ray.train import train_bundle
from llmrec_ray.tune import finals as finals_module
from llmrec_ray.tune import fresh
from llmrec_ray.tune.finals import _decide, _said, choose_finalist, searched_modes
from llmrec_ray.tune.fresh import FreshJob, FreshRun, Texts, run_jobs
from llmrec_ray.tune.outcome import Finalist, Finals, in_words
from llmrec_ray.tune.records import TrialRecord
from tests.outcomes import METRIC, made_record, searched_recipe
from tests.test_tune_confirm import recipe_of

SEEDS = (11, 12)
DIVERGES = 1e30


@pytest.fixture(scope="module")
def recipe(board_folder, tmp_path_factory) -> Recipe:
    plain = recipe_of(
        board_folder, tmp_path_factory.mktemp("finals"), train={"gradient_clip": 1e30, "warmup_steps": 0}
    )
    search = {"train.learning_rate": {"loguniform": [1e-3, 1e30]}, "fusion.mode": {"choice": ["late", "feature"]}}
    finals = ("tune.finalists=2", "tune.finalist_seeds=[11, 12]")
    return override_recipe(plain, [f"tune.search={json.dumps(search)}", *finals])


@pytest.fixture(scope="module")
def dataset(recipe, board_folder) -> Dataset:
    return Dataset.open(ingest(recipe, board_folder, Workspace(recipe.workspace), use_ray=False).uri)


def record(number: int, learning_rate: float, value: float) -> TrialRecord:
    return TrialRecord(
        number=number, settings={"train.learning_rate": learning_rate}, until=1, status="finished",
        epochs=[{"epoch": 1, METRIC: value}], started_at="2026-03-01T09:00:00+00:00",
    )


def chosen(recipe: Recipe, dataset: Dataset, root: Path, *records: TrialRecord) -> Finals | None:
    workspace = Workspace(recipe.workspace)
    return choose_finalist(recipe, METRIC, records, dataset, workspace, str(root), concurrent=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def finals(recipe, dataset, root, ray_session) -> Finals | None:
    """The best of the search diverges with other seeds; the third trial is not among the finalists."""
    return chosen(recipe, dataset, root, record(0, 0.01, 0.5), record(1, DIVERGES, 0.9), record(2, 0.03, 0.4))


def test_a_trial_that_fails_with_other_seeds_does_not_win_however_good_it_was_in_the_search(finals):
    assert [each.trial for each in finals.finalists] == [0, 1]
    assert finals.trial == 0 and finals.finalists[0].value == 0.5
    assert {*finals.finalists[1].failed} == {*SEEDS}
    assert all("The loss was not finite at" in reason for reason in finals.finalists[1].failed.values())


def test_a_finalist_is_measured_as_it_would_be_served_with_every_mode_that_is_searched(
    recipe, dataset, finals, tmp_path
):
    values = finals.finalists[0].modes
    assert {mode: {*by_seed} for mode, by_seed in values.items()} == {"late": {*SEEDS}, "feature": {*SEEDS}}
    for mode in ("late", "feature"):
        alone = override_recipe(recipe, [f"seed={SEEDS[0]}", f"fusion.mode={mode}"])
        bundle = train_bundle(alone, dataset, None, Workspace(str(tmp_path / mode)), show_progress=False)
        assert values[mode][SEEDS[0]] == pytest.approx(
            validation_value(alone, dataset, Bundle.open(bundle.uri), "ndcg@10")
        )


def test_what_was_trained_goes_and_what_came_of_it_stays(root, finals):
    assert sorted(path.name for path in (root / "finals").iterdir()) == [
        f"trial-{trial}-{seed}.json" for trial in (0, 1) for seed in SEEDS
    ]
    assert read_json(f"{root}/finals/trial-1-11.json")["reason"] == finals.finalists[1].failed[11]


def test_a_campaign_that_is_shown_again_trains_only_what_is_new_and_removes_what_a_killed_process_left(
    recipe, dataset, root, finals, tmp_path, monkeypatch
):
    copied = shutil.copytree(root, tmp_path / "campaign")
    (copied / "finals" / "trial-0-11" / "bundles").mkdir(parents=True)
    tried: list[str] = []

    def noted(jobs, *_, judges):
        assert judges
        tried.extend(job.name for job in jobs)
        for job in jobs:
            found = {"value": 0.1, "modes": {"late": 0.1}}
            yield job, FreshRun(arm=job.arm, seed=job.recipe.seed, identity=job.identity, **found)

    monkeypatch.setattr(finals_module, "run_jobs", noted)
    records = (record(0, 0.01, 0.5), record(1, DIVERGES, 0.9), record(2, 0.03, 0.4))
    assert chosen(recipe, dataset, copied, *records) == finals and tried == []
    assert [*chosen(recipe, dataset, copied, *records).finalists[0].modes] == [*finals.finalists[0].modes]
    assert not (copied / "finals" / "trial-0-11").exists()
    wider = ("tune.finalists=3", "tune.finalist_seeds=[11, 12, 13]", "tune.policy_tolerance=0.1")
    more = override_recipe(recipe, [*wider])
    chosen(more, dataset, copied, *records)
    assert tried == ["trial-2-11", "trial-2-12", "trial-1-13", "trial-0-13", "trial-2-13"]
    tried.clear()
    chosen(recipe, dataset, copied, record(0, 0.02, 0.5), record(1, DIVERGES, 0.9))
    assert tried == ["trial-0-11", "trial-0-12"], "another recipe by the same number"


@pytest.mark.parametrize(("overrides", "why"), [
    (["tune.finalist_seeds=[]"], "no seeds"),
    (["tune.finalists=1", "tune.search={train.learning_rate: {loguniform: [1e-3, 0.1]}}"], "one trial in one mode"),
])
def test_where_there_is_nothing_to_choose_nothing_is_trained(recipe, dataset, tmp_path, overrides, why):
    assert chosen(override_recipe(recipe, overrides), dataset, tmp_path, record(0, 0.01, 0.5)) is None, why
    assert not [*tmp_path.iterdir()]


def finalist(trial: int, value: float, **modes: tuple[float, ...]) -> Finalist:
    by_seed = {mode: dict(zip(SEEDS, values, strict=False)) for mode, values in modes.items()}
    return Finalist(trial, value, by_seed)


def decided(*finalists: Finalist, **overrides: object) -> Finals:
    """By a recipe whose own mode is learned."""
    recipe = searched_recipe(*(f"tune.{key}={value}" for key, value in overrides.items()))
    assert recipe.fusion.mode == "learned"
    return _decide(recipe, SEEDS, finalists)


def test_the_mean_over_seeds_decides_and_not_the_search():
    found = decided(finalist(4, 0.16, learned=(0.14, 0.15)), finalist(2, 0.15, learned=(0.15, 0.151)))
    assert (found.trial, found.mode, found.mean) == (2, "learned", pytest.approx(0.1505))
    assert [each.trial for each in found.finalists] == [2, 4]
    assert _said(found) == (
        "trial 2 is the winner, with the best mean over seeds 11 and 12: trial 2 0.1505 (learned), trial 4 0.1450 "
        "(learned)"
    )


def test_trials_are_compared_in_the_mode_that_each_would_be_served_with():
    one, two = finalist(1, 0.16, gated=(0.16, 0.16), learned=(0.1597, 0.1597)), finalist(2, 0.15, learned=(0.1599,) * 2)
    found = decided(one, two, policy_tolerance=0.01)
    assert (found.trial, found.mode, found.modes) == (2, "learned", {1: "learned", 2: "learned"})
    assert decided(one, two, policy_tolerance=0.0).trial == 1


def test_of_equals_the_better_of_the_search_wins():
    assert decided(finalist(4, 0.16, learned=(0.14, 0.15)), finalist(2, 0.15, learned=(0.15, 0.14))).trial == 4


@pytest.mark.parametrize(("tolerance", "modes", "mode"), [
    (0.0, {"late": (0.15, 0.15), "gated": (0.16, 0.16), "learned": (0.1599, 0.1599)}, "gated"),
    (0.01, {"late": (0.15, 0.15), "gated": (0.16, 0.16), "learned": (0.1599, 0.1599)}, "learned"),
    (0.01, {"late": (0.1595, 0.1595), "gated": (0.16, 0.16), "learned": (0.1, 0.1)}, "late"),
    (0.0, {"late": (0.14, 0.14), "gated": (0.2,), "learned": (0.13, 0.13)}, "late"),
], ids=["the best", "the recipe's own", "the cheapest", "only modes with all seeds"])
def test_the_mode_is_the_best_or_nearly_as_good_and_cheaper(tolerance, modes, mode):
    assert decided(finalist(4, 0.16, **modes), policy_tolerance=tolerance).mode == mode


def test_when_every_finalist_failed_the_best_of_the_search_wins():
    failed = [Finalist(n, value, {"learned": {11: 0.2}}, {12: "It broke."}) for n, value in ((4, 0.16), (2, 0.15))]
    found = decided(*failed)
    assert (found.trial, found.mode, found.mean) == (4, None, None)
    assert _said(found) == "every finalist failed with some seed, so the best trial of the search is the winner"
    one = decided(failed[0], finalist(2, 0.15, learned=(0.1, 0.1)))
    assert _said(one).endswith(", trial 4 failed") and one.trial == 2


def test_modes_are_those_that_are_searched_or_the_recipes_own():
    assert searched_modes(searched_recipe()) == ("learned",)
    assert searched_modes(searched_recipe("tune.search={fusion.mode: {choice: [late, gated]}}")) == ("late", "gated")


@pytest.mark.parametrize(("numbers", "said"), [((11,), "11"), ((11, 5), "11 and 5"), ((1, 2, 3), "1, 2 and 3")])
def test_numbers_are_listed_as_people_do(numbers, said):
    assert in_words(numbers) == said


def test_trials_with_equal_settings_are_one_finalist(recipe, dataset, tmp_path):
    alone = override_recipe(recipe, ["tune.search={train.learning_rate: {loguniform: [1e-3, 0.1]}}"])
    assert chosen(alone, dataset, tmp_path, record(0, 0.01, 0.5), record(1, 0.01, 0.6)) is None


def job_of(recipe: Recipe, dataset: Dataset, folder: Path, *modes: str) -> FreshJob:
    seeded = recipe.model_copy(update={"seed": 11})
    return FreshJob("trial-0", seeded, dataset.uri, "0" * 16, str(folder), "ndcg@10", f"{folder}/run", modes)


def full_disk(*_: object) -> None:
    raise DiskFullError("The disk of /x is full: make room.")


def dies(*_: object) -> None:
    os._exit(1)


@pytest.mark.parametrize(("ends", "kind", "message"), [
    (full_disk, DiskFullError, r"The disk of /x is full: make room\."),
    (dies, ClusterError, r"The process that trained trial-0-11 was lost again and again \(.*\): look what kills it, "
                         r"such as too little memory for trials at once\."),
], ids=["disk", "process"])
def test_what_says_nothing_of_a_trial_does_not_count_as_its_failure(
    recipe, dataset, tmp_path, monkeypatch, ray_session, ends, kind, message
):
    job, texts = job_of(recipe, dataset, tmp_path, "late"), Texts(dataset, Workspace(recipe.workspace))
    monkeypatch.setattr(fresh, "_train_and_measure", ends)
    with pytest.raises(kind, match=f"^{message}$"):
        next(run_jobs([job], texts, 1, judges=True))
    if ends is full_disk:
        [(_, run)] = run_jobs([job], texts, 1)
        assert (run.value, run.reason) == (None, "The disk of /x is full: make room.")


def test_modes_that_do_not_go_with_a_trial_or_cannot_be_fitted_are_left_out_with_the_reason(
    recipe, dataset, tmp_path, monkeypatch, ray_session
):
    plain = override_recipe(recipe, ["fusion.signals=[neural]", "tune.search={}", "train.learning_rate=0.01"])
    bundle = Bundle.open(train_bundle(plain, dataset, None, Workspace(str(tmp_path)), show_progress=False).uri)
    real = fresh.fit_modes

    def too_few(recipe, dataset, bundle, modes):
        if "learned" in modes:
            raise DataError("There is nothing to learn from.")
        return real(recipe, dataset, bundle, modes)

    monkeypatch.setattr(fresh, "fit_modes", too_few)
    values, left_out = fresh._values_of_modes(
        job_of(plain, dataset, tmp_path, "late", "feature", "learned", "cascade"), dataset, bundle
    )
    assert {*values} == {"late", "feature"}
    assert left_out["learned"] == "There is nothing to learn from." and "item_item" in left_out["cascade"]


def test_a_failed_trial_is_no_finalist(recipe, dataset, tmp_path):
    alone = override_recipe(recipe, ["tune.search={train.learning_rate: {loguniform: [1e-3, 0.1]}}"])
    failed = made_record(1).model_copy(update={"status": "failed"})
    assert chosen(alone, dataset, tmp_path, record(0, 0.01, 0.5), failed) is None
