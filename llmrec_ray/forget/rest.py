"""What a workspace has beside artifacts and Releases: pointers, checkpoints, and what killed stages left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from llmrec_ray.artifact import Artifact, Workspace, cache_folder
from llmrec_ray.data.scratch import scratch_folder
from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.forget.storage import exists, folders, remove
from llmrec_ray.forget.successors import KINDS
from llmrec_ray.storage import file_names, read_json, temporary_folder

__all__ = ["clear_runs", "clear_staged", "latest_uris", "move_pointers"]

IN_USE = ".in-use"
TUNE = "tune"


def latest_uris(workspace: Workspace) -> list[str]:
    """URIs of the newest artifact of every kind that has one."""
    return list(_latest(workspace).values())


def move_pointers(workspace: Workspace, replaced: Mapping[str, Artifact]) -> None:
    """Let pointers to replaced artifacts lead to their successors."""
    successors = {_name(artifact.manifest.kind, id_): artifact for id_, artifact in replaced.items()}
    for kind, uri in _latest(workspace).items():
        if successor := successors.get(uri.rpartition("/")[2]):
            workspace.set_latest(kind, successor.uri)


def clear_runs(workspace: Workspace, gone: Collection[str]) -> list[str]:
    """Delete checkpoints of training on Datasets that go; returns the URIs of what was deleted.

    gone: ids of artifacts. All that campaigns have trained goes when anything does, this machine's copies of their
    artifacts first; Campaigns, which have their results, stay.
    """
    if not gone:
        return []
    for name in _made_by_campaigns(workspace):
        remove(str(cache_folder() / "artifacts" / name))
    runs = [uri for uri in folders(workspace.root("run")) if (dataset := _dataset_of(uri)) is None or dataset in gone]
    return [uri for uri in [*runs, f"{workspace.uri}/{TUNE}"] if remove(uri)]


def _made_by_campaigns(workspace: Workspace) -> list[str]:
    """Names of the artifacts of winners and fresh runs, each of which has a workspace of its own."""
    campaigns = folders(f"{workspace.uri}/{TUNE}")
    own = [uri for campaign in campaigns for uri in (f"{campaign}/winner", *folders(f"{campaign}/confirm"))]
    made = [uri for each in own for kind in KINDS for uri in folders(Workspace(each).root(kind))]
    return [uri.rpartition("/")[2] for uri in made]


def clear_staged(workspace: Workspace, scratch: str | None) -> list[str]:
    """Delete what stages that were killed have left half-written, and artifacts that were deleted by half.

    scratch: `data.scratch` of the recipe. Returns URIs of what had no mark of a process that writes it.
    """
    folder = Path(scratch) if scratch is not None else Path(workspace.uri) / "scratch"
    if folder.exists():
        with scratch_folder(folder):  # which removes those of processes that are gone
            pass
    return [uri for kind in KINDS for uri in _left(workspace.root(kind), f"staging-{kind}") if remove(uri)]


def _left(root: str, staged: str) -> list[str]:
    if "://" not in root and exists(root):
        with temporary_folder(Path(root), staged, what="What was left"):  # as above
            pass
    return [uri for uri in folders(root) if not exists(f"{uri}/manifest.json") and not exists(f"{uri}{IN_USE}")]


def _latest(workspace: Workspace) -> dict[str, str]:
    root = f"{workspace.uri}/latest"
    names = [name for name in file_names(root) if name.endswith(".json") and not name.startswith(".")]
    return {name.removesuffix(".json"): str(read_json(f"{root}/{name}")["uri"]) for name in names}


def _dataset_of(run_uri: str) -> str | None:
    try:
        return str(read_json(f"{run_uri}/run.json")["dataset"])
    except (FileNotFoundError, CorruptArtifactError, KeyError):
        return None


def _name(kind: str, id_: str) -> str:
    return f"{kind}-{id_}"
