"""Importers: original files of public data sets become recipes that ingest them as they are."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_ray.artifact import Workspace
from llmrec_ray.cli.main import run
from llmrec_ray.config import Recipe, load_recipe
from llmrec_ray.data import Dataset, import_recipe, ingest
from llmrec_ray.errors import ConfigError, DataError, LlmrecError, MissingInputError
from llmrec_ray.text import TextTemplate
from tests.public_data import (
    LOG,
    START_S,
    write_1m,
    write_10m,
    write_100k,
    write_amazon,
    write_csv,
    write_recbole,
)


def imported(kind: str, folder: Path, **options: object) -> Recipe:
    out = folder.parent / "recipe.yaml"
    import_recipe(kind, folder, out=out, **options)
    return load_recipe(config=out, overrides=[f"workspace={folder.parent / 'work'}"])


def dataset_of(recipe: Recipe) -> Dataset:
    workspace = Workspace(recipe.workspace)
    made = ingest(recipe, workspace.local_folder("raw", make=False), workspace, use_ray=False)
    assert made.manifest.metrics["rows_quarantined"] == made.manifest.metrics["table_rows_quarantined"] == 0
    assert made.manifest.metrics["rows_kept"] == made.manifest.metrics["rows_read"] > 0
    return Dataset.open(made.uri)


def columns(dataset: Dataset, *ids: str, attribute: str) -> list:
    return [dataset.item_attributes[attribute][dataset.items.row(id_)] for id_ in ids]


def titles(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.items, dataset.item_titles, strict=True))


def texts(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.items, dataset.item_texts, strict=True))


def check_log(dataset: Dataset, *, values: set[float]) -> None:
    moments = dataset.interactions["timestamp"]
    assert len(moments) == len(LOG)
    assert moments.min() == datetime.fromtimestamp(START_S + 60 * 6, UTC)
    assert moments.max() == datetime.fromtimestamp(START_S + 60 * 30, UTC)
    assert set(dataset.interactions["value"].unique()) == values


def test_movielens_100k_reads_bars_flags_and_latin_1(tmp_path):
    write_100k(tmp_path / "ml-100k")
    recipe = imported("movielens", tmp_path / "ml-100k")
    assert recipe.name == "movielens-100k"
    dataset = dataset_of(recipe)
    check_log(dataset, values={1.0, 2.0, 3.0, 4.0, 5.0})
    assert titles(dataset) == {
        "1": "Toy Story", "2": "Misérables, Les", "3": "unknown",
        "4": "Land Before Time III: The Time of the Great Giving", "5": "Good Man in Africa, A",
    }
    assert texts(dataset)["1"] == "Toy Story (1995). Genres: Animation, Children's, Comedy"
    assert columns(dataset, "1", "3", "5", attribute="year") == [1995, None, 1994]
    assert columns(dataset, "2", "3", attribute="genres") == ["Drama, Musical", None]
    assert dataset.user_texts == [
        "24 years old, M, technician", "53 years old, F, other", "23 years old, M, writer",
        "24 years old, M, technician", "33 years old, F, other",
    ]


def test_movielens_1m_reads_colons_latin_1_and_codes(tmp_path):
    write_1m(tmp_path / "ml-1m")
    recipe = imported("movielens", tmp_path / "ml-1m")
    assert recipe.name == "movielens-1m"
    dataset = dataset_of(recipe)
    check_log(dataset, values={1.0, 2.0, 3.0, 4.0, 5.0})
    assert texts(dataset)["2"] == "Misérables, Les (1995). Genres: Drama, Musical"
    assert titles(dataset)["3"] == "Shanghai Triad (Yao a yao yao dao waipo qiao)"
    assert columns(dataset, "1", "5", attribute="year") == [1995, 1967]
    assert dataset.user_texts[dataset.users.row("1")] == "under 18 years old, F, school student"
    assert dataset.user_texts[dataset.users.row("5")] == "25 to 34 years old, M"


def test_movielens_10m_keeps_quotation_marks_and_half_stars(tmp_path):
    write_10m(tmp_path / "ml-10M100K")
    recipe = imported("movielens", tmp_path)
    assert recipe.name == "movielens-10m"
    dataset = dataset_of(recipe)
    check_log(dataset, values={0.5, 1.5, 2.5, 3.5, 4.5})
    assert titles(dataset)["2"] == "Misérables, Les"
    assert texts(dataset)["3"] == '"Great Performances" Cats (1998). Genres: Musical'
    assert texts(dataset)["5"] == "Pull My Daisy (1958)"
    assert recipe.data.users == ()


@pytest.mark.parametrize("archive", ["ml-20m", "ml-25m", "ml-32m", "ml-latest", "ml-latest-small"])
def test_newer_movielens_are_named_after_their_folder(tmp_path, archive):
    write_csv(tmp_path / archive)
    assert imported("movielens", tmp_path / archive).name == archive.replace("ml-", "movielens-")


def test_newer_movielens_read_csv(tmp_path):
    write_csv(tmp_path / "films")
    recipe = imported("movielens", tmp_path / "films")
    assert recipe.name == "movielens-csv"
    dataset = dataset_of(recipe)
    check_log(dataset, values={4.5})
    assert texts(dataset)["2"] == "Misérables, Les (1995). Genres: Drama, War"
    assert texts(dataset)["3"] == '"Great Performances" Cats (1998). Genres: Musical'
    assert titles(dataset)["4"] == "Fawlty Towers"
    assert columns(dataset, "4", "5", attribute="year") == [1975, None]
    assert texts(dataset)["5"] == "Pull My Daisy"


def test_one_category_of_amazon_reviews_2023(tmp_path):
    write_amazon(tmp_path / "amazon", "All_Beauty")
    recipe = imported("amazon-reviews-2023", tmp_path / "amazon")
    assert recipe.name == "amazon-all-beauty"
    dataset = dataset_of(recipe)
    assert list(dataset.items) == ["B0001", "B0002", "B0003", "B0004", "B0005"]
    assert dataset.interactions["timestamp"][0] == datetime.fromtimestamp(START_S + 360.923, UTC)
    assert texts(dataset)["B0001"] == (
        "All_Beauty thing 1. Store: Howard Products. Categories: Beauty, Hair Care. Features: Soft, Vegan. "
        "Description: A thing., For hair."
    )
    assert texts(dataset)["B0003"] == "All_Beauty thing 3"
    assert columns(dataset, "B0001", "B0003", attribute="categories") == ["Beauty, Hair Care", None]
    assert dataset.item_attributes.columns == ["main_category", "categories", "store"]


def test_categories_of_amazon_reviews_2023_are_domains_with_the_same_people(tmp_path):
    write_amazon(tmp_path / "amazon" / "raw", "Books", packed=False)
    write_amazon(tmp_path / "amazon" / "raw", "All_Beauty", first_item=6)
    recipe = imported("amazon-reviews-2023", tmp_path / "amazon")
    assert recipe.name == "amazon-reviews"
    assert [log.domain for log in recipe.data.interactions] == ["All_Beauty", "Books"]
    dataset = dataset_of(recipe)
    assert len(dataset.users) == 5
    assert list(dataset.items)[::5] == ["All_Beauty:B0006", "Books:B0001"]
    assert titles(dataset)["Books:B0001"] == "Books thing 1"


def test_the_small_form_of_amazon_reviews_is_taken_and_two_of_a_kind_are_refused(tmp_path):
    folder = tmp_path / "amazon"
    write_amazon(folder / "raw", "Books")
    small = folder / "0core" / "Books.csv"
    small.parent.mkdir()
    rows = "".join(f"AE{u},B0{i:03},4.0,{t}923\n" for u, i, t in LOG)
    small.write_text("user_id,parent_asin,rating,timestamp\n" + rows)
    recipe = imported("amazon-reviews-2023", folder)
    assert recipe.data.interactions[0].paths == (str(small),)
    assert len(dataset_of(recipe).interactions) == len(LOG)
    other = folder / "5core" / "Books.csv"
    other.parent.mkdir()
    other.write_text(small.read_text())
    with pytest.raises(DataError) as refusal:
        import_recipe("amazon-reviews-2023", folder)
    assert str(refusal.value) == f"There are two files of Books, {small} and {other}: name the folder of one of them."


def test_an_older_edition_of_amazon_reviews_is_told_apart(tmp_path):
    record = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1355616000}
    (tmp_path / "Beauty.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    with pytest.raises(DataError) as refusal:
        import_recipe("amazon-reviews-2023", tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}/Beauty.jsonl.gz has no parent_asin, rating, timestamp, user_id, only asin, overall, reviewerID, "
        "unixReviewTime: it is none of Amazon Reviews 2023; fetch that edition, or describe these files in a recipe "
        "of your own."
    )


def test_atomic_files_of_recbole(tmp_path):
    write_recbole(tmp_path / "ml-100k")
    recipe = imported("recbole", tmp_path / "ml-100k")
    assert recipe.name == "ml-100k"
    dataset = dataset_of(recipe)
    check_log(dataset, values={3.0})
    assert texts(dataset)["1"] == "Toy Story. Release year: 1995. Class: Animation Children's Comedy"
    assert texts(dataset)["3"] == '"Great Performances" Cats. Release year: 1998. Class: Musical'
    assert texts(dataset)["5"] == "Release year: 1967"
    assert titles(dataset)["5"] == "5"
    assert columns(dataset, "2", "4", attribute="release_year") == [1995, None], "a V for video is no year"
    assert dataset.item_attributes.columns == ["release_year", "class"]
    assert dataset.user_texts[:2] == [
        "Age: 24. Gender: M. Occupation: technician", "Age: 53. Gender: F. Occupation: other",
    ]


def test_atomic_files_without_tables_make_a_recipe_without_texts(tmp_path):
    folder = tmp_path / "clicks"
    folder.mkdir()
    rows = [f"s{u}\t{i}\t{t}.5" for u, i, t in LOG]
    (folder / "diginetica.inter").write_text("\n".join(["session_id:token\titem_id:token\ttimestamp:float", *rows]))
    recipe = imported("recbole", folder)
    assert (recipe.data.items, recipe.data.users, recipe.fusion.item_vector) == ((), (), "id")
    assert recipe.data.interactions[0].columns.value is None
    assert len(dataset_of(recipe).interactions) == len(LOG)


@pytest.mark.parametrize(("moment", "unit"), [
    ("1294800998", "s"), ("1588687728923", "ms"), ("1588687728923.0", "ms"), ("1588687728923456", "us"),
    ("1588687728923456789", "ns"), ("2013-05-01 10:00:00", "iso8601"),
])
def test_the_unit_of_times_follows_from_their_size(tmp_path, moment, unit):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.inter").write_text(f"item_id:token\tuser_id:token\ttimestamp:token\ni\tu\t{moment}\n")
    assert imported("recbole", tmp_path / "a").data.interactions[0].timestamp_unit == unit


def test_columns_of_ids_with_other_names_are_known_by_the_tables(tmp_path):
    folder = tmp_path / "lastfm"
    folder.mkdir()
    (folder / "lastfm.inter").write_text("listener:token\tartist:token\tweight:float\ttime:float\na\tb\t2\t5\n")
    (folder / "lastfm.item").write_text("artist:token\tname:token_seq\tplays:float\tvector:float_seq\n")
    (folder / "lastfm.user").write_text("listener:token\tzip_code:token\n")
    recipe = imported("recbole", folder)
    assert recipe.data.interactions[0].columns.model_dump(include={"user_id", "item_id", "timestamp", "value"}) == {
        "user_id": "listener:token", "item_id": "artist:token", "timestamp": "time:float", "value": "weight:float",
    }
    [items] = recipe.data.items
    assert (items.id, items.title, items.template, items.attributes) == (
        "artist", "name", "{name}. Plays: {plays}", ("plays",)
    )
    assert recipe.data.users == (), "an id and a zip code tell nothing"


@pytest.mark.parametrize(("header", "said"), [
    ("user_id:token\titem_id:token\trating:float",
     "names no column of times that is known (timestamp, time, date, datetime), only user_id:token, item_id:token, "
     "rating:float: describe the files in a recipe of your own."),
    ("user_id,item_id,timestamp",
     "is 'user_id,item_id,timestamp', but one of an atomic file names every column with its type (token, token_seq, "
     "float, float_seq), such as item_id:token, with tabs between: correct it."),
])
def test_a_header_that_is_not_understood_is_shown(tmp_path, header, said):
    (tmp_path / "x.inter").write_text(header + "\n")
    with pytest.raises(DataError) as refusal:
        import_recipe("recbole", tmp_path)
    assert str(refusal.value).endswith(said)
    assert str(tmp_path / "x.inter") in str(refusal.value)


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    write_recbole(tmp_path, "a")
    write_recbole(tmp_path, "b")
    with pytest.raises(DataError) as refusal:
        import_recipe("recbole", tmp_path)
    assert str(refusal.value) == f"{tmp_path} holds several data sets (a, b): put each into a folder of its own."


@pytest.mark.parametrize(("kind", "what"), [
    ("movielens", "MovieLens (u.data, ratings.dat or ratings.csv)"),
    ("amazon-reviews-2023", "Amazon Reviews 2023 (such as Books.jsonl.gz and meta_Books.jsonl.gz)"),
    ("recbole", "atomic files of RecBole (NAME.inter)"),
])
def test_a_folder_without_the_files_says_what_it_holds(tmp_path, kind, what):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MissingInputError) as missing:
        import_recipe(kind, tmp_path)
    assert str(missing.value) == (
        f"{tmp_path} holds no {what}, only notes.txt: name the folder with the original files."
    )


def test_an_archive_has_to_be_unpacked_first(tmp_path):
    (tmp_path / "ml-25m.zip").write_bytes(b"PK")
    with pytest.raises(MissingInputError) as missing:
        import_recipe("movielens", tmp_path)
    assert str(missing.value) == (
        f"{tmp_path} holds no MovieLens (u.data, ratings.dat or ratings.csv), only ml-25m.zip: unpack ml-25m.zip first."
    )


def test_a_folder_that_is_not_there_and_a_kind_that_nobody_knows_are_named(tmp_path):
    with pytest.raises(MissingInputError) as missing:
        import_recipe("movielens", tmp_path / "ml")
    assert str(missing.value) == f"There is no folder {tmp_path}/ml: name the one that holds the original files."
    with pytest.raises(ConfigError) as refusal:
        import_recipe("netflix", tmp_path)
    assert str(refusal.value) == (
        "There is no importer 'netflix': choose one of amazon-reviews-2023, movielens, recbole."
    )


@pytest.mark.parametrize(("name", "payload", "said"), [
    ("Books.jsonl.gz", gzip.compress(b'{"user_id": "A"}\n' * 99)[:20],
     "cannot be read (Compressed file ended before the end-of-stream marker was reached): fetch the original file"),
    ("Books.jsonl", b"user_id,parent_asin\n",
     "holds no JSON lines, its first line is 'user_id,parent_asin': fetch the original file again."),
    ("Books.jsonl", b"\xff\xfe\x00", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0"),
])
def test_a_file_that_is_damaged_is_named(tmp_path, name, payload, said):
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError) as refusal:
        import_recipe("amazon-reviews-2023", tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path / name} {said}")


@settings(max_examples=150, deadline=None)
@given(
    file=st.sampled_from([
        ("movielens", "ratings.dat"), ("movielens", "movies.dat"), ("amazon-reviews-2023", "Books.jsonl"),
        ("amazon-reviews-2023", "Books.jsonl.gz"), ("amazon-reviews-2023", "Books.csv"), ("recbole", "x.inter"),
        ("recbole", "x.item"),
    ]),
    payload=st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=40).map(gzip.compress).map(lambda packed: packed[:-3]),
        st.lists(st.sampled_from(["user_id:token", "item_id:token", "time:float", "a:b:token", "{x:token", "n:token",
                                  "\t", "\n", "1e999", "nan", "{", '"', "[" * 20_000, '{"user_id": 1}', "\ufeff"]))
        .map(lambda parts: "".join(parts).encode()),
    ),
)
def test_whatever_a_file_holds_the_answer_is_a_recipe_or_an_error_for_people(tmp_path_factory, file, payload):
    kind, name = file
    folder = tmp_path_factory.mktemp("any")
    write_1m(folder) if kind == "movielens" else write_recbole(folder, "x") if kind == "recbole" else None
    (folder / name).write_bytes(payload)
    try:
        import_recipe(kind, folder, out=folder / "recipe.yaml")
    except LlmrecError as error:
        assert str(folder) in str(error)
    else:
        for table in (*(recipe := load_recipe(config=folder / "recipe.yaml")).data.items, *recipe.data.users):
            TextTemplate(table.template)


def test_a_folder_whose_name_looks_like_a_glob_is_read(tmp_path):
    write_csv(tmp_path / "ml [1]*")
    recipe = imported("movielens", tmp_path / "ml [1]*")
    assert len(dataset_of(recipe).items) == 5


def test_the_command_writes_the_recipe_once_and_says_what_comes_next(tmp_path, capsys, monkeypatch):
    write_csv(tmp_path / "ml-32m")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(["data", "import", "movielens", "ml-32m", "--json"]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out.splitlines()[-1]) == {
            "recipe": "movielens-32m.yaml", "name": "movielens-32m", "form": "MovieLens 20M, 25M, 32M or latest",
            "files": {"interactions": [f"{tmp_path}/ml-32m/ratings.csv"], "items": [f"{tmp_path}/ml-32m/movies.csv"]},
        }
        assert shown.err.endswith(
            "The recipe is movielens-32m.yaml. Next: llmrec ingest --config movielens-32m.yaml\n"
        )
    written = (tmp_path / "movielens-32m.yaml").read_text(encoding="utf-8")
    assert written.startswith(
        f"# MovieLens 20M, 25M, 32M or latest, read where it is: {tmp_path}/ml-32m\nname: movielens-32m\ndata:\n"
    )
    (tmp_path / "movielens-32m.yaml").write_text("mine")
    assert run(["data", "import", "movielens", "ml-32m"]) == 2
    assert capsys.readouterr().err == (
        "llmrec data import: movielens-32m.yaml is there already: name another file with --out, or delete it.\n"
    )
    assert run(["data", "import", "movielens", "ml-32m", "--out", "films.yaml", "--name", "films"]) == 0
    assert load_recipe(config="films.yaml").workspace == "runs/films"
    assert run(["data", "import", "movielens", "ml-32m", "--out", "nowhere/films.yaml"]) == 2
    assert "nowhere/films.yaml cannot be written ([Errno 2]" in capsys.readouterr().err
    assert run(["data", "import", "movielens", "ml-32m", "--out", "."]) == 2
    assert ". cannot be written ([Errno 21] Is a directory: '.'): name another file" in capsys.readouterr().err


def test_a_folder_whose_name_has_several_lines_gives_a_recipe_that_can_be_read(tmp_path):
    folder = tmp_path / "one\nother: line"
    folder.mkdir()
    (folder / "u.data").write_text("1\t1\t3\t881250949\n")
    import_recipe("movielens", folder, out=tmp_path / "recipe.yaml")
    assert load_recipe(config=str(tmp_path / "recipe.yaml")).data.interactions[0].paths == (f"{folder}/u.data",)
