"""Items added to and removed from a Release while it is served: who is shown them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.changes import AddedItem, ChangeLog, Changes, NewItem, RemovedItem
from llmrec_ray.config import override_recipe
from llmrec_ray.data import Dataset, ingest
from llmrec_ray.errors import ArtifactMismatchError, RequestError
from llmrec_ray.recommend import Encoder, Filters, Pipeline, Request, Response, Snapshot
from llmrec_ray.release import Release
from llmrec_ray.signals import GrownItemItem, ItemKernel, NewItems, Propagation
from llmrec_ray.train.cold import ColdStart
from llmrec_ray.types import Histories
from tests.tiny_release import publish_tiny_release

N_ITEMS = 40
WITH_COLD = "retrieval.candidates={neural: 20, item_item: 20, text: 10, popularity: 10, cold: 10}"


@pytest.fixture(scope="module")
def release(tiny_recipe, tmp_path_factory) -> Release:
    recipe = override_recipe(tiny_recipe, [WITH_COLD, "fusion.cold_scale=3.0"])
    return publish_tiny_release(recipe, Workspace(str(tmp_path_factory.mktemp("snapshot"))))


@pytest.fixture(scope="module")
def encoder(release) -> Encoder:
    return Encoder(Snapshot.open(release).texts)


def item(name: str, colour: str, **fields) -> NewItem:
    return NewItem(item_id=name, text=f"thing {name[-1]}, painted {colour}", attributes={"colour": colour}, **fields)


def additions(encoder: Encoder, *items: NewItem) -> list[AddedItem]:
    vectors = encoder.encode_items([new.text for new in items])
    return [AddedItem.of(new, vector) for new, vector in zip(items, vectors, strict=True)]


@pytest.fixture(scope="module")
def black_and_white(encoder) -> Changes:
    """Two new items, and the removal of two of the Release's own."""
    added = additions(encoder, item("new 3", "black", title="Night"), item("new 4", "white"))
    return Changes.none().after([*added, RemovedItem(item_id="i002"), RemovedItem(item_id="i003")])


@pytest.fixture(scope="module")
def pipeline(release, black_and_white) -> Pipeline:
    return Pipeline.of_snapshot(Snapshot.open(release, black_and_white))


def ask(pipeline: Pipeline, recent=None, **fields) -> Response:
    [response] = pipeline.recommend([Request(**{"k": 40, "explain": True, **fields})], recent)
    return response


def ids(response: Response) -> list[str]:
    return [shown.item_id for shown in response.items]


def test_a_snapshot_is_named_by_its_release_and_the_number_of_changes(release, black_and_white):
    snapshot = Snapshot.open(release)
    assert snapshot.id == release.id
    assert snapshot.changed(black_and_white).id == f"{release.id}+1"


def test_people_are_shown_new_items_like_those_they_chose_by_their_text_alone(pipeline):
    for history, wanted, other in ((["i004", "i006"], "new 3", "new 4"), (["i005", "i007"], "new 4", "new 3")):
        response = ask(pipeline, history=history)
        shown = {found.item_id: found for found in response.items}
        assert shown[wanted].score > shown[other].score
        assert sum(shown[wanted].shares.values()) == pytest.approx(shown[wanted].score, abs=1e-5)
        assert "cold" in shown[wanted].sources
        assert shown[wanted].shares["item_item"] != 0.0
        assert response.release == pipeline.resolver.release_id


def test_a_query_finds_a_new_item(pipeline):
    response = ask(pipeline, query="thing 3, painted black", k=5, weights={"text": 1.0})
    assert [found.title for found in response.items if found.item_id == "new 3"] == ["Night"]


def test_filters_read_the_attributes_of_new_items(pipeline):
    response = ask(pipeline, history=["i004"], filters=Filters(attributes={"colour": "white"}))
    assert "new 4" in ids(response) and "new 3" not in ids(response)
    assert ids(ask(pipeline, history=["i004"], filters=Filters(allow=["new 3", "i002"]))) == ["new 3"]


def test_what_is_like_a_new_item_can_be_asked_for(pipeline):
    similar = pipeline.similar("new 3", 5)
    assert len({found.item_id for found in similar} - {"new 3"}) == 5
    assert {"new 3", "new 4"} <= {found.item_id for found in pipeline.similar("i004", 41)}


def test_a_new_item_in_a_history_counts_and_is_not_shown_again(pipeline):
    for response in (ask(pipeline, history=["new 3"]), ask(pipeline, {"nobody": ["new 3"]}, user_id="nobody")):
        assert not response.cold and not response.ignored_items
        assert "new 3" not in ids(response)
        assert all(found.shares["item_item"] for found in response.items if found.item_id == "i004")
        assert {because.item_id for found in response.items for because in found.because} == {"new 3"}


def test_removed_items_never_come_back(pipeline):
    asked = [
        {"user_id": "u000", "exclude_seen": False}, {"user_id": "nobody"}, {"history": ["i002"], "exclude_seen": False},
        {"query": "thing 2, painted black"}, {"history": ["i004"], "weights": {"popularity": 1.0}},
        {"user_id": "u001", "exclude_seen": False, "filters": Filters(allow=["i002", "i003"])},
    ]
    for fields in asked:
        assert not {"i002", "i003"} & set(ids(ask(pipeline, **fields)))
    assert not {"i002", "i003"} & {found.item_id for found in pipeline.similar("i004", 41)}
    assert len(pipeline.similar("i004", 41)) == 39
    with pytest.raises(RequestError) as caught:
        pipeline.similar("i002")
    assert caught.value.code == "not_found"


def test_k_items_come_back_though_some_were_removed(release, encoder):
    added = additions(encoder, *(item(f"new {n}", "black") for n in range(6)))
    removed = [RemovedItem(item_id=f"i{n:03}") for n in range(0, 40, 2)] + [RemovedItem(item_id="new 5")]
    pipeline = Pipeline.of_snapshot(Snapshot.open(release, Changes.none().after([*added, *removed])))
    response = ask(pipeline, history=["i004"], k=25)
    assert set(ids(response)) == {f"i{n:03}" for n in range(1, 40, 2)} | {f"new {n}" for n in range(5)}


def test_after_a_restart_everything_is_as_it_was(release, pipeline, black_and_white, tmp_path):
    log = ChangeLog(str(tmp_path / "log"))
    removed = [RemovedItem(item_id=name) for name in ("i002", "i003")]
    log.append(black_and_white.added[:1], after=0)
    log.append([*black_and_white.added[1:], *removed], after=1)
    again = Pipeline.of_snapshot(Snapshot.open(release, ChangeLog(log.uri).read()))
    for fields in ({"history": ["i004", "i006"]}, {"user_id": "u001"}, {"query": "white"}):
        assert [(found.item_id, found.score) for found in ask(again, **fields).items] == [
            (found.item_id, found.score) for found in ask(pipeline, **fields).items
        ]


def test_step_by_step_the_same_comes_out_as_at_once(release, encoder):
    new = additions(encoder, *(item(f"new {n}", ("black", "white")[n % 2]) for n in range(5)))
    steps = [Changes.none().after(new[:2])]
    steps.append(steps[-1].after([new[2], RemovedItem(item_id="new 1"), RemovedItem(item_id="i005")]))
    steps.append(steps[-1].after(new[3:]))
    snapshot = Snapshot.open(release)
    for changes in steps:
        assert snapshot.bundle.items is not None and snapshot.index is not None
        snapshot = snapshot.changed(changes)
    at_once = Snapshot.open(release, steps[-1])
    np.testing.assert_allclose(snapshot.bundle.item_vectors, at_once.bundle.item_vectors, atol=1e-6)
    np.testing.assert_allclose(snapshot.bundle.text_vectors, at_once.bundle.text_vectors, atol=1e-6)
    np.testing.assert_array_equal(snapshot.hidden_rows, at_once.hidden_rows)
    assert snapshot.hidden_rows.tolist() == [5, N_ITEMS + 1]
    histories = Histories.from_lists([[4, 6, 41], [5, 42], []])
    expected = at_once.bundle.score_all(histories)
    for name, scores in snapshot.bundle.score_all(histories).items():
        np.testing.assert_allclose(scores, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_item_that_is_removed_and_added_again_has_its_new_text_and_stays_seen(release, encoder):
    changes = Changes.none().after([RemovedItem(item_id="i004")])
    changes = changes.after(additions(encoder, item("i004", "white", title="repainted")))
    snapshot = Snapshot.open(release, changes)
    pipeline = Pipeline.of_snapshot(snapshot)
    assert snapshot.hidden_rows.tolist() == [4]
    [shown] = [found for found in ask(pipeline, history=["i005", "i007"]).items if found.item_id == "i004"]
    assert shown.title == "repainted"
    assert "i004" not in ids(ask(pipeline, user_id="u000"))
    assert N_ITEMS in snapshot.catalogue.history(snapshot.catalogue.users.row("u000"))


def test_a_change_copies_none_of_the_big_arrays(release, black_and_white):
    snapshot = Snapshot.open(release)
    before = snapshot.bundle
    after = snapshot.changed(black_and_white).bundle
    assert after.signals["item_item"]._base is before.signals["item_item"]
    assert after.model is before.model
    assert not before.item_vectors.flags.writeable and not after.item_vectors.flags.writeable
    assert after.item_vectors.base is not None and not after.item_vectors.flags.owndata
    assert snapshot.changed(black_and_white.after([RemovedItem(item_id="i009")])).bundle is not None


def test_a_removal_alone_leaves_the_bundle_as_it_is(release):
    snapshot = Snapshot.open(release)
    assert snapshot.changed(Changes.none().after([RemovedItem(item_id="i001")])).bundle is snapshot.bundle


def test_every_stage_loads_its_part_and_no_more(release, black_and_white):
    code = f"""
import sys
from llmrec_ray.recommend import Snapshot
from llmrec_ray.release import Release
snapshot = Snapshot.open(Release.model_validate_json({release.model_dump_json()!r}))
snapshot.catalogue, snapshot.signal_names, snapshot.has_encoder
assert not {{"bundle", "index", "texts"}} & vars(snapshot._parts).keys()
snapshot = Snapshot.open(snapshot.release)
snapshot.texts.center
assert vars(snapshot._parts).keys() == {{"release", "_verify", "texts"}}, vars(snapshot._parts).keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_what_content_says_is_the_same_for_items_that_come_later_as_for_cold_ones(tiny_recipe, tmp_path):
    recipe = override_recipe(tiny_recipe, ["data.split=cold_items", "data.cold_fold=0"])
    dataset = Dataset(ingest(recipe, Path(), Workspace(str(tmp_path)), use_ray=False))
    generator = np.random.default_rng(0)
    texts = generator.normal(size=(N_ITEMS, 6)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    vectors = generator.normal(size=(N_ITEMS, 5)).astype(np.float32)
    start = ColdStart.of(dataset, texts)
    cold = start.rows
    colours = dataset.item_attributes["colour"].to_list()
    later = NewItems.fit(texts, {"colour": colours}, start.counts, cold, vectors, item_item=True)
    similar = later.similarities(texts[cold], {"colour": [colours[row] for row in cold]})
    np.testing.assert_allclose(later.vectors(similar), start.propagation.rows(vectors), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(later.weights(similar), start.propagation.weights, rtol=1e-3, atol=1e-4)


def test_the_item_item_signal_of_later_items_is_that_of_a_matrix_filled_in(release):
    bundle = Bundle.open(release.bundle.uri)
    base = bundle.signals["item_item"]
    later, known = np.arange(30, 40), np.arange(30)
    weights = np.random.default_rng(0).normal(size=(30, 10)).astype(np.float32)
    whole = Propagation(known, later, weights).fill_item_item(base.weights)
    small = type(base)(base.l2, base.recency)
    small.weights = np.ascontiguousarray(base.weights[:30, :30])
    grown, filled = GrownItemItem(small, known, weights), type(base)(base.l2, base.recency)
    filled.weights = whole
    histories = Histories.from_lists([[1, 2, 35], [33, 31], [4, 5], []])
    rows = np.array([[0, 31, 35, -1]] * 4)
    np.testing.assert_allclose(grown.score(histories), filled.score(histories), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        grown.score_items(histories, rows), filled.score_items(histories, rows), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(grown.columns(np.array([3, 38])), whole[:, [3, 38]], rtol=1e-4, atol=1e-5)


def test_numbers_words_and_missing_values_of_other_items_are_compared_as_their_own_are():
    texts = np.eye(4, dtype=np.float32)
    columns = [[1990.0, 1991.0, None, 1960.0], ["a b", "b", None, "c d"]]
    kernel = ItemKernel(texts, columns)
    everyone = np.arange(4)
    np.testing.assert_allclose(kernel.of_others(texts, columns), kernel.between(everyone, everyone), rtol=1e-6)
    unknown = kernel.of_others(texts[:1], [["no number"], ["words of other kinds"]])
    np.testing.assert_allclose(unknown, ((1 + np.array([[0.5, 0, 0, 0]])) / 2) ** 2, rtol=1e-6)


@pytest.mark.parametrize("mode", ["gated", "learned", "cascade", "feature"])
def test_items_can_be_added_whatever_the_fusion_mode(release, black_and_white, monkeypatch, mode):
    from llmrec_ray.model.reranker import LearnedCorrection
    from llmrec_ray.signals import CascadeFusion, CorrectedFusion, GatedFusion, WeightedFusion
    from llmrec_ray.signals.gated import _Gates

    snapshot = Snapshot.open(release)
    bundle = snapshot.bundle
    weighted = WeightedFusion(bundle.calibration, {"neural": 0.5, "text": 0.5})
    correction = LearnedCorrection.untrained(
        ("neural",), bundle.item_vectors, np.zeros((N_ITEMS, 2), np.float32), (2.0, 1.0), 4
    )
    gates = _Gates(np.ones((1, 3)), np.zeros(2), np.ones(2))
    fusions = {
        "gated": GatedFusion(bundle.calibration, ["neural"], gates, np.zeros(N_ITEMS, np.float32)),
        "learned": CorrectedFusion(weighted, correction),
        "cascade": CascadeFusion(bundle.calibration, "text", 10, "neural"), "feature": None,
    }
    recipe = bundle.recipe.model_copy(update={"fusion": bundle.recipe.fusion.model_copy(update={"mode": mode})})
    for carried in (bundle.new_items, None):
        monkeypatch.setattr(bundle, "fusion", fusions[mode])
        monkeypatch.setattr(bundle, "new_items", carried)
        monkeypatch.setattr(bundle, "recipe", recipe)
        monkeypatch.setattr(bundle, "_added", type(bundle._added).none(bundle))
        pipeline = Pipeline.of_snapshot(snapshot.changed(black_and_white))
        response = ask(pipeline, history=["i004", "i006"])
        assert {"new 3", "new 4"} <= set(ids(response))
        assert np.isfinite([found.score for found in response.items]).all()


def refused(check, *arguments, **fields) -> tuple[str, str, str]:
    with pytest.raises(RequestError) as caught:
        check(*arguments, **fields)
    return caught.value.field, str(caught.value), caught.value.code


def test_items_that_cannot_be_added_are_refused_in_words(release, black_and_white):
    snapshot = Snapshot.open(release, black_and_white)
    catalogue = snapshot.catalogue
    fine = item("fresh 1", "black")
    snapshot.check_additions([fine, item("i002", "white")])

    def why(*items: NewItem) -> tuple[str, str]:
        return refused(snapshot.check_additions, list(items))[:2]

    assert why(fine, item("i004", "black")) == (
        "items.1.item_id",
        "There is an item 'i004' already: remove it first, or give the new one another id.",
    )
    assert why(item("new 3", "black"))[0] == "items.0.item_id"
    assert why(fine, fine) == ("items.1.item_id", "The item 'fresh 1' is given twice: send it once.")
    assert why(NewItem(item_id="x", text=" \t")) == (
        "items.0.text", "The text of item 'x' is empty: say what it is; that decides whom it is shown to.",
    )
    assert why(NewItem(item_id="x", text="a thing", attributes={"size": 3})) == (
        "items.0.attributes.size", "There is no item attribute 'size'; there are: colour.",
    )
    assert why(NewItem(item_id="x", text="a thing", attributes={"colour": 3})) == (
        "items.0.attributes.colour", "The attribute 'colour' is 3, but it must be text.",
    )
    assert refused(catalogue.check_additions, [fine], has_encoder=False) == (
        "items",
        "This release has no text encoder, and a new item is recommended by its text: train with item texts.",
        "not_supported",
    )


def test_items_that_cannot_be_removed_are_refused_in_words(release, black_and_white):
    catalogue = Snapshot.open(release, black_and_white).catalogue
    catalogue.check_removals(["i004", "new 3"])
    assert refused(catalogue.check_removals, ["i004", "i002"]) == (
        "item_ids.1", "The item 'i002' was removed already.", "not_found",
    )
    assert refused(catalogue.check_removals, ["none"]) == ("item_ids.0", "There is no item 'none'.", "not_found")
    assert refused(catalogue.check_removals, ["i004", "i004"])[:2] == (
        "item_ids.1", "The item 'i004' is given twice: send it once.",
    )


def test_text_vectors_of_another_encoder_are_refused(release):
    bundle = Bundle.open(release.bundle.uri)
    other = AddedItem.of(item("new 3", "black"), np.ones(3, np.float32))
    with pytest.raises(ArtifactMismatchError) as caught:
        bundle.changed(Changes.none().after([other]))
    assert str(caught.value) == (
        f"The added items have text vectors of size 3, but those of the Bundle {bundle.uri} have size "
        f"{len(bundle.text_center)}: they were made by the encoder of another Bundle; add the items again."
    )


def test_a_bundle_that_knows_no_content_takes_no_items(release, black_and_white, monkeypatch):
    snapshot = Snapshot.open(release)
    bundle = snapshot.bundle
    monkeypatch.setattr(bundle, "new_items", None)
    monkeypatch.setattr(bundle.model.items, "text", None)
    monkeypatch.setattr(bundle, "_added", type(bundle._added).none(bundle))
    with pytest.raises(ArtifactMismatchError) as caught:
        bundle.changed(black_and_white)
    assert str(caught.value) == (
        f"The Bundle {bundle.uri} keeps nothing by which new items could be told apart: train again with this version "
        "to add items while serving."
    )
    monkeypatch.setattr(type(snapshot._parts), "takes_items", False)
    assert refused(snapshot.check_additions, [item("fresh 1", "black")]) == (
        "items",
        f"Release {release.id} keeps nothing by which new items could be told apart: train again with this version to "
        "add items while serving.",
        "not_supported",
    )


def test_a_bundle_without_encoder_takes_no_items(release, black_and_white, monkeypatch):
    bundle = Bundle.open(release.bundle.uri)
    monkeypatch.setattr(bundle, "text_center", None)
    with pytest.raises(ArtifactMismatchError) as caught:
        bundle.changed(black_and_white)
    assert str(caught.value) == (
        f"The Bundle {bundle.uri} has no text encoder, and a new item is recommended by its text: train with item "
        "texts."
    )
