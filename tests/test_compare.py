"""Comparing evaluations by their stored ranks: who is better, and when that cannot be said."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec_ray.artifact import create_artifact
from llmrec_ray.cli.main import run
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, ConfigError, CorruptArtifactError
from llmrec_ray.evaluate import Evaluation, compare
from llmrec_ray.metrics import ndcg, paired_bootstrap, summarise

USERS = 200


def saved(root, ranks, *, user_ids=None, item_ids=None, ks=(5, 10), cold=None, **fields):
    """URI of an evaluation artifact that holds these ranks by system."""
    n = len(ranks["model"])
    evaluation = Evaluation(**{
        "protocol": "P: last event of each user", "protocol_hash": "abc123abc123", "split": "test", "recipe": "board",
        "seed": 0, "dataset": "data0", "bundle": "bundle0", "users": n, "items": 50, "main_k": 10,
        "model": summarise(ranks["model"], ks), "signals": {}, "baselines": {}, **fields,
    })

    def write(folder):
        (folder / "evaluation.json").write_text(evaluation.model_dump_json())
        pl.DataFrame({
            "user_id": user_ids or [f"u{row:03}" for row in range(n)], "item_id": item_ids or ["i0"] * n,
            "history_length": [3] * n, "item_count": [2] * n, **ranks,
        }).write_parquet(folder / "ranks.parquet")
        if cold is not None:
            pl.DataFrame(cold).write_parquet(folder / "cold_ranks.parquet")

    return create_artifact(str(root), "evaluation", write, config={}).uri


@pytest.fixture(scope="module")
def ranks():
    generator = np.random.default_rng(0)
    good = generator.integers(1, 40, USERS).astype(float)
    return {"model": good, "worse": good + 5, "baseline:ease": generator.permutation(good)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def good(root, ranks):
    return saved(root, ranks)


@pytest.fixture(scope="module")
def worse(root, ranks):
    return saved(root, {"model": ranks["worse"]}, recipe="slow")


def test_a_clear_difference_has_a_better_side_whichever_comes_first(good, worse):
    for pair, verdict in (((good, worse), "A is better"), ((worse, good), "B is better")):
        comparison = compare([pair[0]], [pair[1]])
        assert set(comparison.metrics) == {f"{name}@{k}" for name in ("ndcg", "hr", "mrr") for k in (5, 10)}
        assert {compared.verdict for compared in comparison.metrics.values()} == {verdict}


def test_figures_are_those_of_the_metrics(good, worse, ranks):
    found = compare([good], [worse]).metrics["ndcg@10"]
    assert (found.a, found.b) == pytest.approx((ndcg(ranks["model"], 10), ndcg(ranks["worse"], 10)))
    assert found.difference == pytest.approx(found.a - found.b)
    assert found.low < found.difference < found.high


def test_two_systems_of_one_evaluation_can_be_compared(good):
    comparison = compare([good], [good], ("model", "baseline:ease"))
    assert (comparison.a.system, comparison.b.system) == ("model", "baseline:ease")
    assert comparison.metrics["hr@10"].verdict == "no difference shown"
    assert comparison.metrics["hr@10"].difference == 0.0


def test_the_same_ranks_show_no_difference(good, root, ranks):
    again = saved(root, {"model": ranks["model"]}, seed=1)
    comparison = compare([good], [again])
    assert {compared.verdict for compared in comparison.metrics.values()} == {"no difference shown"}


def test_users_are_paired_by_id_in_whatever_order_they_are_stored(good, root, ranks):
    order = np.random.default_rng(1).permutation(USERS)
    shuffled = saved(root, {"model": ranks["worse"][order]}, user_ids=[f"u{row:03}" for row in order])
    straight = saved(root, {"model": ranks["worse"]})
    assert compare([good], [shuffled]).metrics == compare([good], [straight]).metrics


def test_several_seeds_are_averaged_per_user(root, ranks):
    generator = np.random.default_rng(2)
    runs = [{"model": np.maximum(ranks["model"] + generator.integers(-3, 4, USERS), 1)} for _ in range(3)]
    uris = [saved(root, run, seed=seed) for seed, run in enumerate(runs)]
    other = saved(root, {"model": ranks["worse"]})
    comparison = compare(uris, [other])
    gains = np.mean([(run["model"] <= 10) for run in runs], axis=0)
    expected = paired_bootstrap(gains, (ranks["worse"] <= 10).astype(float))
    found = comparison.metrics["hr@10"]
    assert (found.difference, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert comparison.a.seeds == [0, 1, 2]
    assert "(board, seeds 0, 1, 2)" in comparison.table()


def test_a_user_with_several_targets_is_drawn_with_all_of_them(root, ranks):
    users = [f"u{row // 10}" for row in range(USERS)]
    items = [f"i{row % 10}" for row in range(USERS)]
    a, b = (saved(root, {"model": ranks[name]}, user_ids=users, item_ids=items) for name in ("model", "worse"))
    comparison = compare([a], [b])
    assert (comparison.users, comparison.targets) == (20, USERS)
    gains = [(ranks[name] <= 10).astype(float) for name in ("model", "worse")]
    clustered = paired_bootstrap(*gains, np.arange(USERS) // 10)
    found = comparison.metrics["hr@10"]
    assert (found.low, found.high) == pytest.approx((clustered.low, clustered.high))
    assert found.difference == pytest.approx(gains[0].mean() - gains[1].mean())


def test_ranks_of_held_out_items_are_compared_by_their_own_names(root, ranks):
    pairs = {"user_id": [f"u{row // 5}" for row in range(150)], "item_id": [f"i{row % 5}" for row in range(150)]}
    on, off = ranks["model"][:150], ranks["worse"][:150] + 5
    uri = saved(root, {"model": ranks["model"]}, cold=pairs | {"all": on, "all_scale_off": off})
    comparison = compare([uri], [uri], ("cold:all", "cold:all_scale_off"))
    assert (comparison.users, comparison.targets) == (30, 150)
    found = comparison.metrics["hr@10"]
    assert (found.a, found.b) == pytest.approx((np.mean(on <= 10), np.mean(off <= 10)))
    assert found.verdict == "A is better"
    with pytest.raises(ConfigError) as error:
        compare([uri], [uri], ("model", "cold:all"))
    assert str(error.value) == (
        "'model' and 'cold:all' rank different targets, known items and held-out ones: compare two systems with cold: "
        "before their names, or two without."
    )


def test_the_table_names_the_protocol_both_sides_and_the_result(good, worse):
    lines = compare([good], [worse]).table().splitlines()
    assert lines[0] == "Protocol P: last event of each user [abc123abc123]."
    assert lines[1] == f"A: model of evaluation {good.rpartition('-')[2]} (board, seed 0)"
    assert lines[2] == f"B: model of evaluation {worse.rpartition('-')[2]} (slow, seed 0)"
    assert lines[4].split() == ["A", "B", "A", "−", "B", "95", "%", "interval", "200", "users"]
    assert lines[5].startswith("ndcg@5 ")
    assert lines[5].endswith("A is better")
    assert lines[-1].startswith("A is better in ndcg@10: A − B is +0.")
    assert lines[-1].endswith("paired bootstrap over 200 users).")


def test_a_handful_of_users_shows_no_difference_and_is_said_to_be_few(root):
    a, b = (saved(root, {"model": np.full(5, rank)}, recipe="few") for rank in (1.0, 9.0))
    comparison = compare([a], [b])
    assert comparison.metrics["ndcg@10"].verdict == "no difference shown"
    assert comparison.sentence().endswith("So few users (under 20) can show no difference.")


def test_evaluations_of_different_protocols_are_refused_and_both_are_named(good, root, ranks):
    other = saved(
        root, {"model": ranks["model"]}, protocol="C2: items of two folds held out", protocol_hash="def456def456",
        dataset="data1", items=60,
    )
    with pytest.raises(ArtifactMismatchError) as error:
        compare([good], [other])
    assert str(error.value) == (
        f"{good} and {other} measured different things, so their figures cannot be compared. The first: P: last event "
        "of each user [abc123abc123], test split of dataset data0, 200 users, 50 items. The second: C2: items of two "
        "folds held out [def456def456], test split of dataset data1, 200 users, 60 items. Evaluate both by one "
        "protocol on one dataset."
    )


def test_seeds_of_different_protocols_are_refused_too(good, worse, root, ranks):
    other = saved(root, {"model": ranks["model"]}, protocol_hash="def456def456", seed=3)
    with pytest.raises(ArtifactMismatchError, match="measured different things"):
        compare([good, other], [worse])


def test_an_evaluation_of_an_older_version_has_no_hash_and_is_refused(good, root, ranks):
    old = saved(root, {"model": ranks["model"]}, protocol_hash="")
    with pytest.raises(ArtifactMismatchError) as error:
        compare([good], [old])
    assert str(error.value) == (
        f"{old} says no protocol hash, since an older version made it, so nobody can tell what it may be compared "
        "with: evaluate its bundle again."
    )


def test_a_system_that_is_not_there_is_refused_with_those_that_are(good, worse):
    with pytest.raises(ConfigError) as error:
        compare([good], [worse], ("model", "baseline:ease"))
    assert str(error.value) == (
        f"There is no system 'baseline:ease' in {worse}; it has model: name one of these with --systems."
    )


def test_a_system_is_not_compared_with_itself(good):
    with pytest.raises(ConfigError) as error:
        compare([good], [good])
    assert str(error.value) == (
        f"A and B are both 'model' of {good}: give two evaluations, or two systems of one with --systems, such as "
        "--systems model baseline:ease_recency."
    )


def test_evaluations_without_a_common_k_are_refused(good, root, ranks):
    other = saved(root, {"model": ranks["worse"]}, ks=(20,))
    with pytest.raises(ConfigError) as error:
        compare([good], [other])
    assert str(error.value) == (
        f"The evaluations share no cut-off k: {good} at 5, 10; {other} at 20. Evaluate both with a common evaluate.ks."
    )


def test_ranks_of_other_targets_than_the_hash_stands_for_are_refused(good, root, ranks):
    other = saved(root, {"model": ranks["model"]}, item_ids=["i1"] * USERS)
    with pytest.raises(CorruptArtifactError) as error:
        compare([good], [other])
    assert str(error.value) == (
        f"The ranks of model in {other} are of other targets than its protocol hash abc123abc123 stands for: evaluate "
        "again."
    )


def test_an_evaluation_that_cannot_be_read_is_named(good, root):
    def write(folder):
        (folder / "evaluation.json").write_text('{"protocol": 3}')

    broken = create_artifact(str(root), "evaluation", write, config={}).uri
    with pytest.raises(CorruptArtifactError) as error:
        compare([good], [broken])
    assert str(error.value) == f"evaluation.json in {broken} cannot be read by this version: evaluate again."


def test_the_command_line_compares_without_a_recipe(capsys, good, worse):
    assert run(["evaluate", "--compare", good, worse, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result == compare([good], [worse]).to_dict()
    assert "A is better in ndcg@10" in captured.err


def test_the_command_line_takes_seeds_as_a_list_and_systems_by_name(capsys, good, worse):
    both = f"{good},{worse}"
    assert run(["evaluate", "--compare", both, good, "--systems", "model", "baseline:ease", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["a"]["evaluations"]) == 2
    assert result["b"]["system"] == "baseline:ease"


@pytest.mark.parametrize(("arguments", "said"), [
    (("--compare", "a", "b", "--recipe", "movielens-100k", "seed=1"),
     "--compare only reads two evaluations that are there: leave out --recipe, seed=1."),
    ((), "There is no recipe to evaluate: name one with --recipe or --config, or give --compare A B."),
    (("--recipe", "movielens-100k", "--systems", "model", "signal:text"),
     "--systems names what --compare A B compares: give both, or neither."),
])
def test_options_that_do_not_belong_together_exit_with_2(capsys, arguments, said):
    assert run(["evaluate", *arguments]) == 2
    assert capsys.readouterr().err == f"llmrec evaluate: {said}\n"


def test_comparing_what_is_not_there_exits_with_1_and_names_the_uri(capsys, good, tmp_path):
    missing = str(tmp_path / "nothing")
    assert run(["evaluate", "--compare", good, missing]) == 1
    assert f"There is no artifact at {missing}" in capsys.readouterr().err
    with pytest.raises(ArtifactNotFoundError):
        compare([good], [missing])


def test_a_bundle_is_not_an_evaluation(good, root):
    bundle = create_artifact(str(root), "bundle", lambda folder: (folder / "x").write_text("x"), config={}).uri
    with pytest.raises(ArtifactMismatchError, match=f"{Path(bundle).name} is a bundle, not an evaluation"):
        compare([good], [bundle])
