"""The command line: exit statuses, messages on stderr, one JSON object as the last line of stdout."""

import json
import re

import pytest
import yaml

from llmrec_ray.cli.main import run
from tests.boards import board_recipe


@pytest.fixture
def board_file(board_folder, tiny_encoder, tmp_path):
    """The checkerboard recipe as a YAML file with a workspace of its own."""
    recipe = board_recipe(
        board_folder, encoder={"model": str(tiny_encoder)}, workspace=str(tmp_path / "work")
    )
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def failure(capsys, *argv: str) -> tuple[int, str]:
    status = run(argv)
    return status, capsys.readouterr().err


def test_an_unknown_key_exits_with_2_and_names_the_key(capsys):
    status, message = failure(capsys, "train", "--recipe", "movielens-100k", "train.epoch=3")
    assert status == 2
    assert "llmrec train: The override train.epoch=3 is not valid for recipe movielens-100k:" in message
    assert "did you mean 'epochs'?" in message


@pytest.mark.parametrize(
    ("verb", "kind", "made_by"),
    [("embed", "dataset", "ingest"), ("train", "dataset", "ingest"), ("tune", "dataset", "ingest"),
     ("index", "bundle", "train"), ("evaluate", "dataset", "ingest"), ("publish", "bundle", "train")],
)
def test_a_stage_without_its_input_exits_with_1_and_names_the_stage_before_it(
    capsys, board_file, tmp_path, verb, kind, made_by
):
    status, message = failure(capsys, verb, "--config", str(board_file))
    assert status == 1
    assert message.endswith(
        f"llmrec {verb}: There is no {kind} in {tmp_path / 'work'} yet: run `llmrec {made_by}` with the same "
        "recipe first.\n"
    )


@pytest.mark.parametrize("verb", ["serve", "recommend"])
def test_serving_without_a_release_names_publish(capsys, board_file, tmp_path, verb, ray_session):
    arguments = ["--query", "black"] if verb == "recommend" else []
    status, message = failure(capsys, verb, "--config", str(board_file), *arguments)
    assert status == 1
    assert f"There is no Release at {tmp_path / 'work'}/releases/current.json: run `llmrec publish` first." in message


def test_fetch_takes_the_recipe_of_the_data_sets_name_and_overrides(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec_ray.stages.fetch", lambda name, folder: folder / name)
    assert run(["data", "fetch", "movielens-100k", f"workspace={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"raw": str(tmp_path / "raw" / "movielens-100k")}


def test_fetch_for_a_recipe_that_names_no_public_data_set_is_refused(capsys, board_file):
    status, message = failure(capsys, "data", "fetch", "movielens-100k", "--config", str(board_file))
    assert status == 2
    assert "llmrec data fetch: The recipe board names no public data set in data.fetch" in message


def test_embed_for_a_recipe_without_item_texts_is_refused(capsys, board_file):
    arguments = ("embed", "--config", str(board_file), "data.items=null", "fusion.item_vector=id")
    status, message = failure(capsys, *arguments)
    assert status == 1
    assert "llmrec embed: The recipe board has no item texts to embed: describe data.items" in message


def test_every_stage_runs_from_the_command_line_and_ends_with_one_json_object(capsys, board_file, ray_session):
    def result(*argv: str) -> dict:
        assert run([*argv, "--config", str(board_file), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert result("ingest")["metrics"]["rows_kept"] == 800
    assert result("embed") == {"texts": 40, "size": 32}
    assert result("train", "train.epochs=3")["metrics"]["best_epoch"] >= 1
    assert result("index")["metrics"]["items"] == 40
    evaluation = result("evaluate")
    assert evaluation["model"]["ndcg@10"] > 0.9
    assert set(evaluation["baselines"]) == {"popularity", "ease_recency"}
    release = result("publish")
    answer = result("recommend", "--user", "u000", "-k", "3")
    assert answer["release"] == release["id"]
    assert answer["user"] == "known"
    for item in answer["items"]:
        assert sum(item["shares"].values()) == pytest.approx(item["score"], abs=1e-4)
    bolder = result("publish", "fusion.cold_scale=0.7")
    assert bolder["id"] != release["id"]
    assert bolder["policy"] == release["policy"] | {"cold_scale": 0.7}
    assert result("publish", "--rollback")["id"] == release["id"]


@pytest.mark.parametrize(("arguments", "said"), [
    (("--user", "u000", "-k", "0"), "k: Input should be greater than or equal to 1 (got 0)."),
    (("--user", ""), "user_id: String should have at least 1 character (got '')."),
])
def test_recommend_refuses_a_bad_request_by_field(capsys, board_file, arguments, said):
    status, message = failure(capsys, "recommend", "--config", str(board_file), *arguments)
    assert (status, message) == (1, f"llmrec recommend: {said}\n")


def test_recommend_shows_titles_and_shares_and_needs_something_to_go_by(capsys, tiny_release, board_file, tmp_path):
    release = tmp_path / "release.json"
    release.write_text(tiny_release.model_dump_json())
    common = ("recommend", "--config", str(board_file), "--release", str(release))
    status, shown = failure(capsys, *common, "--user", "u000", "-k", "2")
    assert status == 0
    assert re.search(r"thing \d+ \(i\d{3}\)  -?\d\.\d\d = .*item_item [+-]\d", shown)
    assert "left out of the history" not in shown
    _, shown = failure(capsys, *common, "--history", "i001", "none", "nil")
    assert "Not in the catalogue, so left out of the history: none, nil" in shown
    status, message = failure(capsys, *common)
    assert (status, message) == (
        1,
        "llmrec recommend: The request says nothing about who asks or what for: give at least one of user_id, "
        "history, query and profile.\n",
    )


def test_rolling_back_without_an_earlier_release_is_refused(capsys, board_file, tmp_path):
    status, message = failure(capsys, "publish", "--rollback", "--config", str(board_file))
    assert status == 1
    assert f"There is no Release at {tmp_path / 'work'}/releases/current.json: run `llmrec publish` first." in message
