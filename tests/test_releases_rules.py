"""What the Releases deployment decides, in one process: a real log of changes, and snapshots without vectors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec_ray.changes import AddedItem, ChangeLog, Changes, NewItem, RemovedItem
from llmrec_ray.config import FollowConfig
from llmrec_ray.errors import RequestError
from llmrec_ray.recommend import Catalogue
from llmrec_ray.serve import releases as module
from llmrec_ray.serve import replicas
from llmrec_ray.serve.releases import Releases
from llmrec_ray.serve.switch import Report, SnapshotKey
from llmrec_ray.types import Histories
from llmrec_ray.vocab import Vocabulary

STAGES = ("ingress", "retriever")
FIRST, SECOND = (SimpleNamespace(id=letter * 16) for letter in "ab")
CATALOGUE = Catalogue(
    Vocabulary([]), Vocabulary(["x", "y"]), ["X", "Y"], pl.DataFrame(), Histories.from_lists([])
)


@dataclass
class Shown:
    """As much of a Snapshot as the deployment looks at."""

    release: Any
    changes: Changes
    takes_items: bool = True
    texts: None = None

    @property
    def id(self) -> str:
        return SnapshotKey(self.release, self.changes.version).id

    @property
    def catalogue(self) -> Catalogue:
        return CATALOGUE.changed(self.changes)

    @property
    def bundle(self) -> SimpleNamespace:
        return SimpleNamespace(item_vectors=self.catalogue.items)

    @property
    def index(self) -> Vocabulary:
        return self.catalogue.items

    def changed(self, changes: Changes) -> Shown:
        return replace(self, changes=changes)

    def check_additions(self, items) -> None:
        self.catalogue.check_additions(items, has_encoder=self.takes_items)


class Lengths:
    """An encoder."""

    def __init__(self, _: None) -> None:
        pass

    def encode_items(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text)] for text in texts], np.float32)


@pytest.fixture
def releases(tmp_path, monkeypatch) -> Releases:
    uri = str(tmp_path / "current.json")

    def open_snapshot(release_uri: str, key: SnapshotKey, _: Shown | None) -> Shown:
        return Shown(key.release, ChangeLog.of(release_uri, key.release.id).read(key.version))

    monkeypatch.setattr(module, "open_snapshot", open_snapshot)
    monkeypatch.setattr(module, "_check_answers", lambda _: None)
    monkeypatch.setattr(module, "Encoder", Lengths)
    monkeypatch.setattr(module, "load_release", lambda _: FIRST)
    monkeypatch.setattr(module, "POLL_S", 0.001)
    return Releases(uri, FollowConfig(pointer_s=60.0, sync_s=0.01), STAGES)


def new(item_id: str, text: str = "a thing") -> NewItem:
    return NewItem(item_id=item_id, text=text)


def log_of(releases: Releases, release: Any) -> ChangeLog:
    return ChangeLog.of(releases._uri, release.id)


def shown(releases: Releases, release: Any) -> set[str]:
    catalogue = CATALOGUE.changed(log_of(releases, release).read())
    return {item_id for item_id in catalogue.items if catalogue.shown(item_id) >= 0}


async def report_all(releases: Releases, active: str, *held: str, failed: dict[str, str] | None = None) -> str:
    for stage in STAGES:
        orders = await releases.report(Report(stage, stage, (active, *held), active, (active,), failed or {}))
    return orders.active


async def served(releases: Releases, change: Any) -> str:
    """Run a change while both stages load whatever they are told to."""
    waiting = asyncio.ensure_future(change)
    while not waiting.done():
        pending = releases._switch.pending
        active = await report_all(releases, releases._switch.active.id, *([pending.id] if pending else []))
        await report_all(releases, active)
        await asyncio.sleep(0.001)
    return await waiting


def test_items_that_were_kept_but_refused_do_not_stand_in_the_way_of_the_next(releases):
    async def run() -> None:
        await report_all(releases, FIRST.id)
        kept = asyncio.ensure_future(releases.remove_items(["x"]))
        while releases._switch.pending is None:
            await asyncio.sleep(0.001)
        await report_all(releases, FIRST.id, failed={f"{FIRST.id}+1": "OSError: no"})
        with pytest.raises(RequestError, match=r"were kept, but are not served yet: ingress: OSError: no\."):
            await kept
        with pytest.raises(RequestError, match="'x' was removed already"):
            await releases.remove_items(["x"])
        assert await served(releases, releases.remove_items(["y"])) == f"{FIRST.id}+2"

    asyncio.run(run())
    assert shown(releases, FIRST) == set()


def test_after_a_restart_changes_that_were_kept_but_not_served_are_taken_up(releases):
    log_of(releases, FIRST).append([RemovedItem(item_id="x")], after=0)

    async def run() -> None:
        await report_all(releases, FIRST.id)
        assert releases._switch.active.id == FIRST.id
        assert releases._switch.pending.id == f"{FIRST.id}+1"

    asyncio.run(run())


def test_texts_that_another_release_has_read_are_not_kept(releases):
    async def run() -> None:
        await report_all(releases, FIRST.id)
        with pytest.raises(RequestError) as caught:
            await releases.add_items([new("z")], np.ones((1, 1)), f"{SECOND.id}+3")
        assert (caught.value.code, caught.value.field, str(caught.value)) == (
            "conflict", "items",
            f"Release {FIRST.id} has come to be served while the texts were read: send the items again.",
        )
        added = releases.add_items([new("z")], np.ones((1, 1)), f"{FIRST.id}+7")
        assert await served(releases, added) == f"{FIRST.id}+1"

    asyncio.run(run())
    assert shown(releases, FIRST) == {"x", "y", "z"}


def test_no_item_is_changed_while_another_release_is_still_being_loaded(releases):
    async def run() -> None:
        await report_all(releases, FIRST.id)
        releases._switch.propose(SnapshotKey(SECOND), 0.0)
        with pytest.raises(RequestError) as caught:
            await releases.remove_items(["x"])
        assert (caught.value.code, str(caught.value)) == (
            "conflict",
            f"Release {SECOND.id} is being loaded and would lack this change: send it again when GET /v1/admin/status "
            "names nothing pending.",
        )
        assert releases._switch.pending.release is SECOND

    asyncio.run(run())
    assert log_of(releases, FIRST).version() == 0


def test_what_was_removed_stays_so_however_often_releases_are_exchanged(releases):
    def verified(release: Any, before: Any) -> set[str]:
        releases._verify(release, log_of(releases, before).read())
        return shown(releases, release)

    vector = np.ones(1)
    log_of(releases, FIRST).append([AddedItem.of(new("z"), vector), AddedItem.of(new("v"), vector)], after=0)
    assert verified(SECOND, FIRST) == {"x", "y", "z", "v"}
    log_of(releases, SECOND).append([RemovedItem(item_id="x"), RemovedItem(item_id="z")], after=1)
    assert verified(FIRST, SECOND) == {"y", "v"}
    log_of(releases, FIRST).append([AddedItem.of(new("x", "x again"), vector)], after=2)
    assert verified(SECOND, FIRST) == {"x", "y", "v"}
    before = log_of(releases, SECOND).version()
    assert verified(SECOND, FIRST) == {"x", "y", "v"}
    assert log_of(releases, SECOND).version() == before, "nothing is left to carry over"
    assert log_of(releases, SECOND).read().live[-1].vector.tolist() == [len("x again")]


def test_a_release_that_takes_no_items_is_served_without_those_that_were_added(releases, caplog):
    before = Changes.none().after([AddedItem.of(new("z"), np.ones(1)), RemovedItem(item_id="x")])
    carried = module._carried_over(before, Shown(SECOND, Changes.none(), takes_items=False))
    assert carried == [RemovedItem(item_id="x")]
    assert "1 added items are not carried over" in caplog.text


def test_a_snapshot_of_fewer_changes_is_not_made_from_one_of_more(tmp_path, monkeypatch):
    monkeypatch.setattr(replicas.Snapshot, "open", lambda release: SimpleNamespace(
        release=release, changes=Changes.none(), changed=lambda changes: changes
    ))
    uri = str(tmp_path / "current.json")
    log = ChangeLog.of(uri, FIRST.id)
    log.append([RemovedItem(item_id="x")], after=0)
    log.append([RemovedItem(item_id="y")], after=1)
    later = SimpleNamespace(release=FIRST, changes=log.read())
    assert replicas.open_snapshot(uri, SnapshotKey(FIRST, 1), later).removed == {"x"}
    assert replicas.open_snapshot(uri, SnapshotKey(FIRST, 2), later) is later
