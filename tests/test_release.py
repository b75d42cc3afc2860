from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from llmrec_ray.artifact import Workspace, create_artifact
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from llmrec_ray.release import KEPT_PREVIOUS, Release, current_uri, load_release, point_at, publish, rollback
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.storage import read_json

POLICY = FusionPolicy(weights={"neural": 0.8, "item_item": 0.2}, candidates={"neural": 100})


@pytest.fixture
def workspace(tmp_path):
    return Workspace(str(tmp_path))


def artifact(workspace: Workspace, kind: str, content: str, parents: dict[str, str]) -> str:
    def write(folder):
        (folder / "content.txt").write_text(content)

    return create_artifact(workspace.root(kind), kind, write, config={}, parents=parents)


@pytest.fixture
def parts(workspace):
    """A Dataset, a Bundle made from it and an Index made from that."""
    dataset = artifact(workspace, "dataset", "rows", {})
    bundle = artifact(workspace, "bundle", "weights", {"dataset": dataset.id})
    index = artifact(workspace, "index", "vectors", {"bundle": bundle.id})
    return {"dataset_uri": dataset.uri, "bundle_uri": bundle.uri, "index_uri": index.uri}


def publish_parts(workspace, parts, policy=POLICY, name="first") -> Release:
    return publish(workspace, name=name, policy=policy, **parts)


def test_a_published_release_is_what_the_pointer_leads_to(workspace, parts):
    release = publish_parts(workspace, parts)
    assert load_release(current_uri(workspace)) == release
    assert load_release(f"{workspace.uri}/releases/{release.id}.json") == release
    assert release.bundle.uri == parts["bundle_uri"]


def test_the_same_content_published_twice_is_one_release(workspace, parts):
    assert publish_parts(workspace, parts, name="first") == publish_parts(workspace, parts, name="again")
    assert read_json(current_uri(workspace))["previous"] == []


def test_publishing_again_repairs_a_damaged_release(workspace, parts, tmp_path):
    release = publish_parts(workspace, parts)
    (tmp_path / "releases" / f"{release.id}.json").write_text("{}")
    again = publish_parts(workspace, parts)
    assert load_release(current_uri(workspace)) == again
    assert again.id == release.id


def test_a_release_of_artifacts_that_were_moved_names_where_they_are_now(workspace, parts, tmp_path):
    release = publish_parts(workspace, parts)
    moved = tmp_path / "moved"
    shutil.move(release.index.uri, moved)
    again = publish_parts(workspace, parts | {"index_uri": str(moved)})
    assert again.id == release.id
    assert load_release(current_uri(workspace)).index.uri == str(moved)


def test_rollback_points_back_one_release_at_a_time_and_never_changes_a_bundle(workspace, parts):
    policies = [POLICY.model_copy(update={"weights": {"neural": weight}}) for weight in (0.1, 0.2, 0.3)]
    first, second, _ = [publish_parts(workspace, parts, policy) for policy in policies]
    assert rollback(workspace) == second == load_release(current_uri(workspace))
    assert rollback(workspace) == first == load_release(current_uri(workspace))
    with pytest.raises(ArtifactNotFoundError) as caught:
        rollback(workspace)
    assert str(caught.value) == (
        f"{current_uri(workspace)} has never pointed at another Release, so there is none to go back to: publish one."
    )


def test_an_index_of_another_bundle_is_not_published(workspace, parts):
    publish_parts(workspace, parts)
    before = read_json(current_uri(workspace))
    stranger = artifact(workspace, "index", "vectors", {"bundle": "0123456789abcdef"})
    with pytest.raises(ArtifactMismatchError) as caught:
        publish_parts(workspace, parts | {"index_uri": stranger.uri})
    bundle_id = parts["bundle_uri"].rsplit("-", 1)[1]
    assert str(caught.value) == (
        f"The index {stranger.uri} was made from bundle 0123456789abcdef, but {parts['bundle_uri']} is bundle "
        f"{bundle_id}: run `llmrec index` on this Bundle, or name the bundle it was made from."
    )
    assert read_json(current_uri(workspace)) == before


def test_a_bundle_of_another_dataset_is_not_published(workspace, parts):
    stranger = artifact(workspace, "dataset", "other rows", {})
    with pytest.raises(ArtifactMismatchError, match="run `llmrec train` on this Dataset, or name the dataset"):
        publish_parts(workspace, parts | {"dataset_uri": stranger.uri})


def test_an_artifact_with_a_changed_file_is_not_published(workspace, parts, tmp_path):
    [file] = tmp_path.glob("bundles/*/content.txt")
    file.write_text("Weights")
    with pytest.raises(CorruptArtifactError, match=r"content\.txt in .* does not match its manifest's hash"):
        publish_parts(workspace, parts)
    assert not (tmp_path / "releases").exists()


def test_a_missing_release_says_which_verb_makes_one(workspace):
    with pytest.raises(ArtifactNotFoundError) as caught:
        load_release(current_uri(workspace))
    assert str(caught.value) == f"There is no Release at {current_uri(workspace)}: run `llmrec publish` first."


def test_a_file_that_is_no_release_is_refused_with_the_offending_key(workspace, parts, tmp_path):
    file = tmp_path / "strange.json"
    file.write_text('{"id": "x"}')
    with pytest.raises(CorruptArtifactError) as caught:
        load_release(str(file))
    assert str(caught.value) == f"{file} is not a Release (name: Field required): publish again."
    file.write_text('{"uri": 3}')
    with pytest.raises(CorruptArtifactError, match="is not a pointer to a Release"):
        load_release(str(file))


def test_a_release_that_was_changed_by_hand_is_refused(workspace, parts, tmp_path):
    release = publish_parts(workspace, parts)
    file = tmp_path / "releases" / f"{release.id}.json"
    value = json.loads(file.read_text())
    value["policy"]["weights"]["neural"] = 0.5
    file.write_text(json.dumps(value))
    with pytest.raises(CorruptArtifactError) as caught:
        load_release(str(file))
    assert "was changed after it was published: its content is that of release " in str(caught.value)
    assert str(caught.value).endswith(f", not {release.id}: publish again.")


def test_a_release_from_before_the_policy_had_all_its_fields_still_opens(workspace, parts, tmp_path):
    release = publish_parts(workspace, parts)
    file = tmp_path / "releases" / f"{release.id}.json"
    value = json.loads(file.read_text())
    del value["policy"]["cold_scale"]
    identity = [value["dataset"]["id"], value["bundle"]["id"], value["index"]["id"], value["policy"]]
    value["id"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    file.write_text(json.dumps(value))
    assert load_release(str(file)).policy == POLICY


def test_the_pointer_can_be_moved_to_any_release_of_its_folder(workspace, parts):
    first = publish_parts(workspace, parts)
    publish_parts(workspace, parts, POLICY.model_copy(update={"weights": {"neural": 1.0}}))
    assert point_at(current_uri(workspace), first.id) == first
    assert load_release(current_uri(workspace)) == first
    with pytest.raises(ArtifactNotFoundError, match="There is no Release at"):
        point_at(current_uri(workspace), "0" * 16)
    assert load_release(current_uri(workspace)) == first


def test_the_pointer_stays_small_however_often_releases_are_published(workspace, parts):
    first, second = (
        publish_parts(workspace, parts, POLICY.model_copy(update={"cold_scale": scale})) for scale in (0.25, 0.75)
    )
    for _ in range(KEPT_PREVIOUS):
        point_at(current_uri(workspace), first.id)
        point_at(current_uri(workspace), second.id)
    assert len(read_json(current_uri(workspace))["previous"]) == KEPT_PREVIOUS
    assert rollback(workspace).id == first.id
