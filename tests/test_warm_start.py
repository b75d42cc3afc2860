"""Training that starts from an earlier Bundle after users and items have come and gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.cli.main import run
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError
from llmrec_ray.model import catalogue_vectors, user_matrix
from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.source import resolve_model
from llmrec_ray.stages import train_stage, tune_stage
from llmrec_ray.train import TextSpace, TrainingInputs, center_of, open_start, run_training, with_encoder_of
from llmrec_ray.train.inputs import build_module
from llmrec_ray.train.loop import train_epochs
from llmrec_ray.train.warm import ITEM_BIASES
from llmrec_ray.types import FloatArray, Histories
from tests.boards import board_recipe, write_board
from tests.tiny_release import write_tiny_bundle
from tests.train_boards import ALONE, Recorder

NEW_WHITE, NEW_BLACK, GONE_ITEM, GONE_USER = "a-white", "i010-black", "i003", "u001"


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """The board as it was."""
    folder = tmp_path_factory.mktemp("before")
    write_board(folder)
    return folder


@pytest.fixture(scope="module")
def after(tmp_path_factory, before) -> Path:
    """The board later: an item and a user are gone, two items and six users came; ids shift everybody's row."""
    folder = tmp_path_factory.mktemp("after")
    log = pl.read_csv(before / "log.csv").filter(pl.col("what") != GONE_ITEM, pl.col("who") != GONE_USER)
    white = [what for what in sorted(log["what"].unique()) if int(what[1:]) % 2]
    black = [what for what in sorted(log["what"].unique()) if not int(what[1:]) % 2]
    liked = [[NEW_WHITE, *white[3 * n : 3 * n + 4]] for n in range(3)] + [
        [NEW_BLACK, *black[3 * n : 3 * n + 4]] for n in range(3)
    ]
    new = [
        {"who": f"a-user-{n}", "what": what, "when": 2_000_000 + step}
        for n, whats in enumerate(liked) for step, what in enumerate(whats)
    ]
    pl.concat([log, pl.DataFrame(new)]).write_csv(folder / "log.csv")
    things = pl.read_csv(before / "things.csv").filter(pl.col("what") != GONE_ITEM)
    new_things = [{"what": NEW_WHITE, "name": "thing 77", "colour": "white"},
                  {"what": NEW_BLACK, "name": "thing 78", "colour": "black"}]
    pl.concat([things, pl.DataFrame(new_things)]).write_csv(folder / "things.csv")
    return folder


@pytest.fixture(scope="module")
def start(before, tiny_encoder, tmp_path_factory) -> Bundle:
    """A Bundle of the earlier board with random towers and random users."""
    folder = tmp_path_factory.mktemp("start")
    recipe = plain(before, tiny_encoder)
    dataset = Dataset(ingest(recipe, before, Workspace(str(folder)), use_ray=False))
    start = Bundle(write_tiny_bundle(recipe, dataset, str(folder / "bundles")))
    torch.nn.init.normal_(start.model.users.users.weight, std=0.1)
    return start


@pytest.fixture(scope="module")
def later(after, tiny_encoder, tmp_path_factory) -> Dataset:
    """The Dataset of the later board."""
    workspace = Workspace(str(tmp_path_factory.mktemp("later")))
    return Dataset(ingest(plain(after, tiny_encoder), after, workspace, use_ray=False))


def plain(folder: Path, encoder: Path, **train: object) -> Recipe:
    return board_recipe(
        folder, encoder={"model": str(encoder)}, model={"dropout": 0.0},
        train={"num_workers": 1, "sharding": "none", "epochs": 1, **train},
    )


def inputs_from(start: Bundle, recipe: Recipe, dataset: Dataset) -> TrainingInputs:
    recipe = with_encoder_of(recipe, start)
    encoder = TextEncoder.load(resolve_model(recipe.encoder.model), recipe.encoder)
    text = TextSpace.of(encoder.encode(dataset.item_texts), center_of(recipe, start))
    return TrainingInputs.of(recipe, dataset, text.vectors, text.center, start=start)


def same_users(start: Bundle, dataset: Dataset) -> tuple[Histories, Histories]:
    """Train histories of users known to both, of items known to both, in the rows of the one and of the other."""
    events = dataset.histories("train")
    users = [row for row, user in enumerate(dataset.users) if user in start.users]
    pasts = [[item for item in dataset.items.ids(events[row]) if item in start.items] for row in users]
    return (
        Histories.from_lists([start.items.rows(past) for past in pasts], start.users.rows(dataset.users.ids(users))),
        Histories.from_lists([dataset.items.rows(past) for past in pasts], users),
    )


def neural(model, vectors: FloatArray, histories: Histories) -> FloatArray:
    return user_matrix(model, vectors, histories) @ vectors.T


def test_rows_are_kept_by_id_and_newcomers_have_none(start, later, after, tiny_encoder):
    initial = inputs_from(start, plain(after, tiny_encoder), later).initial
    weights = {name: tensor.numpy() for name, tensor in start.model.state_dict().items()}
    for table, old, new in (("items.ids", start.items, later.items), ("users.users", start.users, later.users)):
        for row, id_ in enumerate(new):
            kept = initial[f"{table}.weight"][row]
            np.testing.assert_array_equal(kept, weights[f"{table}.weight"][old.row(id_)] if id_ in old else 0.0 * kept)
    assert GONE_ITEM not in later.items and GONE_USER not in later.users and NEW_WHITE not in start.items
    assert later.items.row("i012") != start.items.row("i012"), "rows have shifted"
    for name in weights.keys() - {"items.ids.weight", "users.users.weight", ITEM_BIASES}:
        np.testing.assert_array_equal(initial[name], weights[name], err_msg=name)


def test_a_new_items_bias_is_that_of_an_old_one_as_popular(start, later, after, tiny_encoder):
    counts = np.bincount(later.histories("train").item_rows, minlength=len(later.items))
    parameter = start.model.get_parameter(ITEM_BIASES)
    parameter.data = 0.5 + torch.tensor(start.signals["popularity"].log_counts).float()
    biases = inputs_from(start, plain(after, tiny_encoder), later).initial[ITEM_BIASES]
    parameter.data.zero_()
    old = later.items.rows(start.items)
    np.testing.assert_array_equal(biases[old[old >= 0]], 0.5 + start.signals["popularity"].log_counts[old >= 0])
    kept = [row for row, item in enumerate(later.items) if item in start.items and counts[row]]
    shift = np.mean(biases[kept] - np.log1p(counts[kept]))
    for item in (NEW_WHITE, NEW_BLACK):
        row = later.items.row(item)
        assert biases[row] == pytest.approx(np.log1p(counts[row]) + shift, abs=1e-5)


def test_before_any_step_it_scores_as_the_bundle_it_starts_from(start, later, after, tiny_encoder):
    recipe = plain(after, tiny_encoder, learning_rate=1e-12, warm_start=start.uri)
    inputs = inputs_from(start, recipe, later)
    model = build_module(recipe, inputs, inputs.windows(recipe)).model
    vectors = catalogue_vectors(model, inputs.text_vectors)
    old, new = same_users(start, later)
    columns = later.items.rows(start.items)
    expected = neural(start.model, start.item_vectors, old)[:, columns >= 0]
    np.testing.assert_allclose(neural(model, vectors, new)[:, columns[columns >= 0]], expected, atol=2e-5)
    assert np.std(expected) > 0.01
    recorder = Recorder()
    train_epochs(recipe, inputs, ALONE, recorder)
    at_start, after_an_epoch = recorder.reports
    assert (at_start["epoch"], at_start["step"], after_an_epoch["epoch"]) == (0, 0, 1)
    assert after_an_epoch["ndcg@10"] == pytest.approx(at_start["ndcg@10"], abs=1e-6)


def test_what_training_only_makes_worse_is_kept_as_epoch_0_and_a_resumed_run_knows_it(
    start, later, after, tiny_encoder, tmp_path
):
    recipe = plain(after, tiny_encoder, learning_rate=0.01, epochs=2, warm_start=start.uri)
    inputs = inputs_from(start, recipe, later)
    inputs = replace(inputs, targets=favourites(recipe, inputs))
    recorder = Recorder(tmp_path)
    state = train_epochs(recipe, inputs, ALONE, recorder)
    assert state.stopping.best_epoch == 0 and state.stopping.best == 1.0 > recorder.reports[1]["ndcg@10"]
    again = Recorder(tmp_path / "again")
    resumed = train_epochs(recipe, inputs, ALONE, again, tmp_path / "0")
    assert [report["epoch"] for report in again.reports] == [1, 2]
    assert again.losses == [report["loss"] for report in recorder.reports[1:]]
    assert (resumed.stopping, len(resumed.epochs)) == (state.stopping, 3)


def favourites(recipe: Recipe, inputs: TrainingInputs):
    """Everybody's best unseen item by the initial weights: no training can rank these better."""
    model = build_module(recipe, inputs, inputs.windows(recipe)).model
    scores = neural(model, catalogue_vectors(model, inputs.text_vectors), inputs.histories)
    for user, past in enumerate(inputs.histories):
        scores[user, past] = -np.inf
    return scores.argmax(axis=1)


def test_another_architecture_is_refused_with_both_values(start, after, tiny_encoder):
    assert open_start(plain(after, tiny_encoder)) is None
    recipe = plain(after, tiny_encoder, warm_start=start.uri)
    assert open_start(recipe).id == start.id
    other = board_recipe(
        after, encoder={"model": "intfloat/e5-small", "pooling": "cls"}, train={"warm_start": start.uri},
        model={"embedding_size": 32, "time_constants": [1.0, None], "user_embedding": False},
    )
    with pytest.raises(ArtifactMismatchError) as caught:
        open_start(other)
    assert str(caught.value) == (
        f"Training cannot start from {start.uri} (train.warm_start), a Bundle of another architecture: "
        "model.embedding_size is 16 there and 32 here, model.time_constants is (1.0, 4.0, 16.0, None) there and "
        "(1.0, None) here, model.user_embedding is True there and False here, "
        f"encoder.model is '{tiny_encoder}' there and 'intfloat/e5-small' here, encoder.pooling is 'mean' there and "
        "'cls' here. Set these as they are there, or leave train.warm_start empty to start anew."
    )
    with pytest.raises(ArtifactMismatchError, match=r"fusion\.item_vector is 'feature' there and 'id' here\. Set"):
        open_start(board_recipe(after, fusion={"item_vector": "id"}, train={"warm_start": start.uri}))
    with pytest.raises(ArtifactNotFoundError, match=r"There is no artifact at /nowhere/bundle-1 \(no manifest\.json\)"):
        open_start(plain(after, tiny_encoder, warm_start="/nowhere/bundle-1"))


def test_the_encoder_of_a_bundle_is_found_by_path_and_by_uri(start, after, tiny_encoder):
    recipe = plain(after, tiny_encoder, warm_start=start.uri)
    assert resolve_model(with_encoder_of(recipe, start).encoder.model) == start.artifact.path / "encoder"
    assert resolve_model(f"file://{start.artifact.path}/encoder") == start.artifact.path / "encoder"
    assert with_encoder_of(recipe, None) is recipe


@pytest.fixture
def workspace(tmp_path) -> str:
    return str(tmp_path / "work")


def grown(before: Path, after: Path, workspace: str, **sections: object) -> tuple[Bundle, Bundle]:
    """A Bundle of two epochs on the earlier board, and one that two workers went on to train from it on the later."""
    recipe = board_recipe(before, workspace=workspace, **{**sections, "train": {**sections["train"], "epochs": 2}})
    ingest(recipe, before, Workspace(workspace), use_ray=False)
    one = Bundle(train_stage(recipe))
    recipe = board_recipe(after, workspace=workspace, **{
        **sections, "train": {**sections["train"], "warm_start": one.uri, "epochs": 8},
    })
    ingest(recipe, after, Workspace(workspace), use_ray=False)
    return one, Bundle(train_stage(recipe))


def assert_newcomers_are_placed_by_colour(start: Bundle, dataset: Dataset, recipe: Recipe) -> None:
    """Before any step, users of a colour prefer the new item of that colour to the other."""
    inputs = inputs_from(start, recipe, dataset)
    module = build_module(with_encoder_of(recipe, start), inputs, inputs.windows(recipe))
    scores = neural(module.model, catalogue_vectors(module.model, inputs.text_vectors), dataset.histories("train"))
    white_first = scores[:, dataset.items.row(NEW_WHITE)] > scores[:, dataset.items.row(NEW_BLACK)]
    old = [row for row, user in enumerate(dataset.users) if user.startswith("u")]
    likes_white = np.array([int(dataset.users.id(row)[1:]) % 2 == 1 for row in old])
    assert (white_first[old] == likes_white).mean() > 0.9


def test_two_workers_go_on_from_a_bundle_of_fewer_users_and_items(before, after, workspace, tiny_encoder, ray_session):
    one, two = grown(before, after, workspace, encoder={"model": str(tiny_encoder)}, train={"sharding": "ddp"})
    metrics = two.artifact.manifest.metrics
    at_start, *epochs = metrics["epochs"]
    earlier = one.artifact.manifest.metrics["validation_ndcg@10"]["neural"]
    assert at_start["epoch"] == 0 and "loss" not in at_start and len(epochs) == epochs[-1]["epoch"]
    assert at_start["ndcg@10"] > 0.8 * earlier > 0.4
    assert metrics["validation_ndcg@10"]["neural"] == max(epoch["ndcg@10"] for epoch in metrics["epochs"])
    assert epochs[-1]["loss"] < epochs[0]["loss"] < one.artifact.manifest.metrics["epochs"][0]["loss"]
    dataset = Dataset.open(Workspace(workspace).latest("dataset", made_by="ingest"))
    assert two.artifact.manifest.parents == {"dataset": dataset.id, "bundle": one.id}
    np.testing.assert_array_equal(two.text_center, one.text_center)
    assert two.recipe.encoder.model == str(tiny_encoder)
    assert_newcomers_are_placed_by_colour(one, dataset, two.recipe)


@pytest.mark.drill
@pytest.mark.parametrize("tuning", ["top_layers", "lora"])
def test_a_tuned_encoder_goes_on_from_the_bundles_own(tuning, before, after, workspace, tiny_encoder, ray_session):
    encoder = {"model": str(tiny_encoder), "tuning": tuning, "top_layers": 1, "learning_rate": 1e-3}
    one, two = grown(before, after, workspace, encoder=encoder, train={"sharding": "zero3"})
    dataset = Dataset.open(Workspace(workspace).latest("dataset", made_by="ingest"))
    inputs = inputs_from(one, two.recipe, dataset)
    old = dataset.items.rows(one.items)
    np.testing.assert_allclose(inputs.text_vectors[old[old >= 0]], one.text_vectors[old >= 0], atol=1e-5)
    source = TextEncoder.load(tiny_encoder, two.recipe.encoder)
    tuned = TextEncoder.load(one.artifact.path / "encoder", two.recipe.encoder)
    assert source.fingerprint() != tuned.fingerprint()
    at_start, *epochs = two.artifact.manifest.metrics["epochs"]
    assert at_start["ndcg@10"] > 0.8 * one.artifact.manifest.metrics["validation_ndcg@10"]["neural"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    np.testing.assert_array_equal(two.text_center, one.text_center)
    assert_newcomers_are_placed_by_colour(one, dataset, two.recipe)
    frozen = board_recipe(after, workspace=workspace, encoder={"model": str(tiny_encoder)},
                          train={"warm_start": two.uri, "epochs": 1})
    three = Bundle(train_stage(frozen))
    np.testing.assert_allclose(three.text_vectors, two.text_vectors, atol=1e-5)


@pytest.mark.drill
def test_an_int8_bundle_is_gone_on_from_around_the_centre_it_was_trained_with(
    before, after, workspace, tiny_encoder, ray_session
):
    encoder = {"model": str(tiny_encoder), "precision": "int8"}
    one, two = grown(before, after, workspace, encoder=encoder, train={"sharding": "ddp"})
    assert not np.array_equal(one.trained_center, one.text_center)
    np.testing.assert_array_equal(two.trained_center, one.trained_center)
    dataset = Dataset.open(Workspace(workspace).latest("dataset", made_by="ingest"))
    old = dataset.items.rows(one.items)
    vectors = inputs_from(one, two.recipe, dataset).text_vectors[old[old >= 0]]
    np.testing.assert_allclose(vectors, one.text_vectors[old >= 0], atol=1e-5)
    at_start = two.artifact.manifest.metrics["epochs"][0]["ndcg@10"]
    assert at_start > 0.8 * one.artifact.manifest.metrics["validation_ndcg@10"]["neural"]


@pytest.mark.drill
def test_trials_start_from_the_bundle_too(start, after, tiny_encoder, workspace, ray_session):
    recipe = board_recipe(
        after, workspace=workspace, encoder={"model": str(tiny_encoder)},
        tune={"trials": 1, "epochs": 2, "fresh_seeds": [], "score_test": False},
        train={"num_workers": 1, "sharding": "none", "warm_start": start.uri},
    )
    ingest(recipe, after, Workspace(workspace), use_ray=False)
    campaign = tune_stage(recipe)
    assert pl.read_parquet(campaign.path / "results.parquet")["epoch"].to_list() == [0, 1, 2]


def test_the_command_line_refuses_another_architecture_in_one_line(capsys, start, after, tiny_encoder, workspace):
    recipe = board_recipe(after, workspace=workspace, encoder={"model": str(tiny_encoder)})
    ingest(recipe, after, Workspace(workspace), use_ray=False)
    config = Path(workspace) / "board.yaml"
    config.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    arguments = ["train", "--config", str(config), f"train.warm_start={start.uri}", "model.embedding_size=8"]
    assert run(arguments) == 1
    assert capsys.readouterr().err == (
        f"llmrec train: Training cannot start from {start.uri} (train.warm_start), a Bundle of another architecture: "
        "model.embedding_size is 16 there and 8 here. Set these as they are there, or leave train.warm_start empty to "
        "start anew.\n"
    )


@pytest.mark.parametrize("sharding", ["zero2", pytest.param("zero3", marks=pytest.mark.drill)])
def test_what_the_start_was_is_kept_whole_when_no_epoch_is_better(
    sharding, start, later, after, tiny_encoder, tmp_path, ray_session
):
    recipe = plain(after, tiny_encoder, learning_rate=0.01, warm_start=start.uri, num_workers=2, sharding=sharding)
    inputs = inputs_from(start, recipe, later)
    inputs = replace(inputs, targets=favourites(recipe, inputs))
    trained = run_training(recipe, inputs, str(tmp_path / "run"))
    assert (trained.best_epoch, trained.best["epoch"], [epoch["epoch"] for epoch in trained.epochs]) == (0, 0, [0, 1])
    for name, weights in inputs.initial.items():
        np.testing.assert_array_equal(trained.model_state[name].numpy(), weights, err_msg=name)
    with pytest.raises(ArtifactMismatchError, match=r"cannot be resumed, since train\.warm_start changed: use"):
        run_training(recipe, replace(inputs, start_id="another"), str(tmp_path / "run"), resume=True)
    again = run_training(recipe, inputs, str(tmp_path / "run"), resume=True)
    assert again.epochs == trained.epochs
