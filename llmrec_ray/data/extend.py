"""The newest Dataset of a workspace and the files that are there now -> what an incremental ingest reads.

Files are known by their names and by the sections that read them. A file of an endpoint's event log may have grown,
since such a file is only appended to; any other file must be as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmrec_ray.artifact import Workspace
from llmrec_ray.config import DataConfig
from llmrec_ray.data.dataset import Dataset
from llmrec_ray.data.log import Log, read_by, sections
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import ArtifactNotFoundError, DataError

__all__ = ["Extension", "latest_dataset", "plan_extension"]


@dataclass(frozen=True)
class Extension:
    """Files to read, from which byte on where they have grown, and what is there already."""

    sources: list[SourceFile]
    starts: dict[str, int] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    dataset: Dataset | None = None

    @property
    def splitters(self) -> list[str] | None:
        """Where to cut ranges; None to choose anew."""
        return self.logs[0].events.splitters if self.logs else None


def latest_dataset(workspace: Workspace) -> str | None:
    """URI of the newest Dataset, None when there is none yet."""
    try:
        return workspace.latest("dataset", made_by="ingest")
    except ArtifactNotFoundError:
        return None


def plan_extension(sources: Sequence[SourceFile], data: DataConfig, workspace: Workspace) -> Extension:
    """What to read beside the Logs of the workspace's newest Dataset; everything when there is none.

    Raises CorruptArtifactError when the Dataset or a Log was changed, DataError when files have changed,
    or the recipe reads them in another way now.
    """
    uri = latest_dataset(workspace)
    if uri is None:
        return Extension(list(sources))
    dataset = Dataset.open(uri)
    try:
        logs = [Log.open(f"{workspace.root('log')}/log-{log_id}") for log_id in dataset.log_ids]
    except ArtifactNotFoundError as error:
        raise DataError(
            f"A log that the Dataset {dataset.id} was made of is gone ({error}): restore it, or ingest everything "
            "again without --extend."
        ) from None
    if not logs:
        raise DataError(
            f"The Dataset {dataset.id} was made by an earlier version, which kept no log to extend: ingest once "
            "without --extend."
        )
    _check_sections(logs, sources, data, dataset)
    known = {name: size for log in logs for name, size in log.files.items()}
    new = [source for source in sources if source.size_bytes != known.get(source.name)]
    changed = [source for source in new if source.name in known and not source.may_grow]
    shrunk = [source for source in new if source.may_grow and source.size_bytes < known.get(source.name, 0)]
    if changed or shrunk:
        source = [*changed, *shrunk][0]
        raise DataError(
            f"{source.name} has changed since it was read ({known[source.name]} bytes then, {source.size_bytes} now): "
            "put new events into new files, or ingest everything again without --extend."
        )
    return Extension(new, {source.name: known[source.name] for source in new if source.name in known}, logs, dataset)


def _check_sections(
    logs: Sequence[Log], sources: Sequence[SourceFile], data: DataConfig, dataset: Dataset
) -> None:
    then: dict[str, set[int]] = {}
    for log in logs:
        for name, numbers in log.read_by.items():
            then.setdefault(name, set()).update(numbers)
    moved = any(then.get(name, {*numbers}) != {*numbers} for name, numbers in read_by(sources, data).items())
    if moved or logs[0].artifact.manifest.config["sections"] != sections(data):
        raise DataError(
            f"data.interactions reads its files in another way than the Dataset {dataset.id} was made in: ingest "
            "everything again without --extend, or take the change back."
        )
