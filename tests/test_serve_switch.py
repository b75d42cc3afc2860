"""All replicas hold a new snapshot before any answers with it, and a bad one changes nothing."""

from __future__ import annotations

import pytest

from llmrec_ray.release import ArtifactRef, Release
from llmrec_ray.serve.switch import ALIVE_S, GRACE_S, PATIENCE_S, Report, SnapshotKey, Switch
from llmrec_ray.signals import FusionPolicy

STAGES = ("ingress", "retriever")


def key(name: str, version: int = 0) -> SnapshotKey:
    part = ArtifactRef(uri="/nowhere", id="0" * 16)
    policy = FusionPolicy(weights={"neural": 1.0}, candidates={"neural": 10})
    release = Release(id=name, name="t", created_at="now", dataset=part, bundle=part, index=part, policy=policy)
    return SnapshotKey(release, version)


OLD, NEW = key("old"), key("new")


def ingress(*held: str, using: tuple[str, ...] = ("old",), name: str = "i", **more) -> Report:
    return Report(name, "ingress", held, using=using, **more)


def retriever(*held: str, name: str = "r", **more) -> Report:
    return Report(name, "retriever", held, **more)


@pytest.fixture
def switch() -> Switch:
    switch = Switch(OLD, STAGES)
    switch.report(ingress("old"), 0.0)
    switch.report(retriever("old"), 0.0)
    return switch


def held_ids(orders) -> list[str]:
    return [one.id for one in orders.hold]


def test_nothing_is_switched_before_every_replica_holds_the_new_snapshot(switch):
    switch.report(retriever("old", name="r2"), 0.0)
    switch.propose(NEW, 0.0)
    assert held_ids(switch.report(ingress("old", "new"), 1.0)) == ["old", "new"]
    assert switch.report(retriever("old", "new"), 1.0).active == "old"
    assert switch.report(retriever("old", "new", name="r2"), 2.0).active == "new"
    assert switch.pending is None


def test_the_old_snapshot_is_kept_until_no_ingress_answers_with_it(switch):
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new"), 1.0)
    assert held_ids(switch.report(retriever("old", "new"), 1.0)) == ["new", "old"]
    late = 1.0 + GRACE_S + 1
    assert held_ids(switch.report(ingress("old", "new", using=("old", "new")), late)) == ["new", "old"]
    assert held_ids(switch.report(ingress("old", "new", using=("new",)), late)) == ["new"]


def test_a_call_on_its_way_finds_the_old_snapshot_for_a_while(switch):
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new"), 1.0)
    switch.report(retriever("old", "new"), 1.0)
    assert held_ids(switch.report(ingress("old", "new", using=("new",)), 1.0 + GRACE_S / 2)) == ["new", "old"]


def test_a_snapshot_that_a_replica_cannot_load_is_refused_and_the_old_stays(switch):
    switch.propose(NEW, 0.0)
    orders = switch.report(retriever("old", failed={"new": "CorruptArtifactError: broken"}), 1.0)
    assert (orders.active, held_ids(orders)) == ("old", ["old"])
    assert switch.refused == {"new": "retriever: CorruptArtifactError: broken"}


def test_a_refused_snapshot_can_be_proposed_again(switch):
    switch.propose(NEW, 0.0)
    switch.report(retriever("old", failed={"new": "broken"}), 1.0)
    switch.propose(NEW, 2.0)
    assert switch.refused == {}
    switch.report(ingress("old", "new"), 2.0)
    assert switch.report(retriever("old", "new"), 2.0).active == "new"


def test_a_replica_that_died_is_not_waited_for(switch):
    switch.report(retriever("old", name="r2"), 0.0)
    switch.propose(NEW, 1.0)
    late = ALIVE_S + 0.5
    switch.report(ingress("old", "new"), late)
    assert switch.report(retriever("old", "new"), late).active == "new"


def test_a_stage_without_replicas_is_waited_for(switch):
    switch.propose(NEW, 1.0)
    late = ALIVE_S + 1.5
    assert switch.report(ingress("old", "new"), late).active == "old"
    assert switch.pending is NEW


def test_a_replica_that_starts_during_a_switch_is_waited_for(switch):
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new"), 1.0)
    assert held_ids(switch.report(retriever(name="fresh"), 1.0)) == ["old", "new"]
    assert switch.report(retriever("old", "new"), 1.0).active == "old"
    assert switch.report(retriever("old", "new", name="fresh"), 2.0).active == "new"


def test_going_back_before_the_switch_drops_what_was_pending(switch):
    switch.propose(NEW, 0.0)
    switch.propose(OLD, 1.0)
    assert held_ids(switch.report(retriever("old", "new"), 1.0)) == ["old"]


def test_a_snapshot_that_never_loads_is_refused_at_last(switch):
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new"), PATIENCE_S)
    switch.report(retriever("old"), PATIENCE_S + 1)
    assert switch.refused == {"new": "after 300 s only 1 of 2 replicas held it"}
    assert switch.active is OLD


def test_changes_to_items_are_snapshots_of_their_own(switch):
    changed = key("old", 3)
    assert changed.id == "old+3"
    switch.propose(changed, 0.0)
    switch.report(ingress("old", "old+3"), 1.0)
    assert switch.report(retriever("old", "old+3"), 1.0).active == "old+3"


def test_a_snapshot_is_everywhere_once_every_replica_has_heard_of_it(switch):
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new", active="old"), 1.0)
    switch.report(retriever("old", "new", active="old"), 1.0)
    assert not switch.is_everywhere()
    switch.report(ingress("old", "new", active="new"), 1.1)
    assert not switch.is_everywhere()
    switch.report(retriever("old", "new", active="new"), 1.1)
    assert switch.is_everywhere()


def test_two_switches_in_quick_succession_keep_both_old_snapshots_for_calls_on_their_way(switch):
    newest = key("newest")
    switch.propose(NEW, 0.0)
    switch.report(ingress("old", "new"), 1.0)
    switch.report(retriever("old", "new"), 1.0)
    switch.propose(newest, 1.1)
    switch.report(ingress("old", "new", "newest", using=("old", "new")), 1.2)
    assert set(held_ids(switch.report(retriever("old", "new", "newest"), 1.2))) == {"old", "new", "newest"}
    late = 1.2 + GRACE_S
    switch.report(ingress("old", "new", "newest", using=("newest",)), late)
    assert held_ids(switch.report(retriever("old", "new", "newest"), late)) == ["newest"]
