"""A campaign's Bundles -> the same Bundles on less disk: text encoders that are equal become one file with many names.

Every Bundle holds its encoder, so that it can be moved and served alone, and a campaign makes one for its winner and
one for each fresh run, mostly with the same frozen encoder. Hard links keep that: a Bundle that is copied is whole, and
one that is deleted takes nothing from the others. Nobody writes into a committed Bundle; what is derived from its
encoder lies in the cache.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from llmrec_ray.artifact import Artifact, open_artifact
from llmrec_ray.errors import ArtifactError
from llmrec_ray.storage import sha256_of

__all__ = ["share_encoder"]

BUNDLES = ("winner/bundles/bundle-*", "confirm/*/bundles/bundle-*")
ENCODER = "encoder/"


def share_encoder(root: str, uri: str) -> int:
    """Let the encoder of the Bundle at `uri`, which nobody reads now, take no room beside an equal one below `root`.

    Returns the bytes that are free for it: 0 in a bucket, on a disk without hard links, or where no encoder is equal.
    """
    if "://" in uri:
        return 0
    with contextlib.suppress(ArtifactError):
        own = open_artifact(uri, "bundle", verify=False)
        others = [each for each in _bundles(root) if each.path != own.path]
        files = {entry: each.path / name for each in others for name, entry in each.manifest.files.items()}
        return sum(
            entry.size_bytes for name, entry in own.manifest.files.items()
            if name.startswith(ENCODER) and entry in files and _link(own.path / name, files[entry], entry.sha256)
        )
    return 0


def _bundles(root: str) -> list[Artifact]:
    found = []
    for folder in sorted(folder for pattern in BUNDLES for folder in Path(root).glob(pattern)):
        with contextlib.suppress(ArtifactError):
            found.append(open_artifact(str(folder), "bundle", verify=False))
    return found


def _link(file: Path, other: Path, sha256: str) -> bool:
    """Put another name of `other` in the place of a file; whether there is one file less now."""
    name = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        if file.samefile(other) or sha256_of(other) != sha256:  # a damaged file must not spread
            return False
        os.link(other, name)
        name.replace(file)
    except OSError:  # another disk, or one without hard links
        return False
    finally:
        name.unlink(missing_ok=True)
    return True
