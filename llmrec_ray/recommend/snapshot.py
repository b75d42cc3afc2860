"""A Release and the first n changes to its items -> what each stage needs of them, every part loaded on first use.

An Ingress asks for the catalogue, an Encoder for the texts' side, a Retriever for vectors and attributes, a Reranker
for the Bundle; none loads what it does not ask for. The snapshot after more changes shares what this one has loaded.
Knows no stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from llmrec_ray.artifact import Manifest, open_artifact
from llmrec_ray.bundle import KNOWN_ITEMS, Bundle, BundleTexts, read_signal_names
from llmrec_ray.changes import Changes, NewItem
from llmrec_ray.data import Dataset
from llmrec_ray.errors import RequestError
from llmrec_ray.index import Index
from llmrec_ray.recommend.catalogue import Catalogue, grown_attributes, hidden_rows
from llmrec_ray.recommend.loading import check_published, open_bundle, open_dataset, open_index
from llmrec_ray.release import Release
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import IntArray

__all__ = ["Snapshot"]


class Snapshot:
    """One Release after some changes to its items; every property raises ArtifactError for what it cannot load."""

    def __init__(self, parts: _Parts, changes: Changes, nearest: Bundle | None = None) -> None:
        """nearest: the Bundle after some of these changes, when there is one."""
        self._parts = parts
        self.changes = changes
        self._nearest = nearest

    @classmethod
    def open(cls, release: Release, changes: Changes | None = None, *, verify: bool = True) -> Snapshot:
        """Loads nothing yet. verify: compare every file with its hash when it is loaded."""
        return cls(_Parts(release, verify=verify), changes or Changes.none())

    def changed(self, changes: Changes) -> Snapshot:
        """The same Release after `changes`, which must be these and more; it shares all that is loaded here."""
        assert changes.version >= self.changes.version, "a snapshot of earlier changes. This is a bug."
        return Snapshot(self._parts, changes, vars(self).get("bundle"))

    @property
    def id(self) -> str:
        """The Release's id, and after changes their version: `4f1c…+3`."""
        return f"{self.release.id}+{self.changes.version}" if self.changes.version else self.release.id

    @property
    def release(self) -> Release:
        """What was published."""
        return self._parts.release

    @property
    def policy(self) -> FusionPolicy:
        """How signals and sources are weighed."""
        return self.release.policy

    @property
    def signal_names(self) -> list[str]:
        """Signals that requests may weigh; reads one small file."""
        return self._parts.signal_names

    @property
    def has_encoder(self) -> bool:
        """Whether there is a text encoder; reads the Bundle's manifest."""
        return self._parts.has_encoder

    def check_additions(self, items: Sequence[NewItem]) -> None:
        """Raises RequestError for items that cannot be added, naming the first offending field."""
        self.catalogue.check_additions(items, has_encoder=self.has_encoder)
        if not self._parts.takes_items:
            raise RequestError(
                f"Release {self.release.id} keeps nothing by which new items could be told apart: train again with "
                "this version to add items while serving.", field="items", code="not_supported",
            )

    @property
    def texts(self) -> BundleTexts:
        """What an Encoder is made of; changes of items do not change it."""
        return self._parts.texts

    @cached_property
    def catalogue(self) -> Catalogue:
        """Ids, titles, attributes and histories."""
        return self._parts.catalogue.changed(self.changes)

    @cached_property
    def bundle(self) -> Bundle:
        """What scores, added items too. Raises ArtifactMismatchError for a Bundle that items cannot be added to."""
        return (self._nearest or self._parts.bundle).changed(self.changes)

    @cached_property
    def index(self) -> Index:
        """The nearest items of a user vector, added ones among them."""
        index = self._parts.index
        added = self.bundle.item_vectors[len(index):]
        return index.extended(added) if len(added) else index

    @cached_property
    def attributes(self) -> pl.DataFrame:
        """One row of attributes per item, for filters."""
        return grown_attributes(self._parts.dataset.item_attributes, self.changes)

    @cached_property
    def hidden_rows(self) -> IntArray:
        """Rows of items that were removed, sorted."""
        if not self.changes.version:
            return np.empty(0, np.int64)
        return hidden_rows(self._parts.dataset.items, self.changes)


class _Parts:
    """What a Release names, opened on first use."""

    def __init__(self, release: Release, *, verify: bool) -> None:
        self.release = release
        self._verify = verify

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.release, verify=self._verify)

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.of(self.dataset)

    @cached_property
    def bundle(self) -> Bundle:
        return open_bundle(self.release, verify=self._verify)

    @cached_property
    def index(self) -> Index:
        return open_index(self.release, verify=self._verify)

    @cached_property
    def texts(self) -> BundleTexts:
        if "bundle" in vars(self):
            return self.bundle.texts
        artifact = open_artifact(self.release.bundle.uri, "bundle", verify=self._verify)
        check_published(artifact, self.release.bundle, self.release)
        return BundleTexts.load(artifact)

    @cached_property
    def signal_names(self) -> list[str]:
        artifact = open_artifact(self.release.bundle.uri, "bundle", verify=False)
        check_published(artifact, self.release.bundle, self.release)
        return read_signal_names(artifact)

    @property
    def has_encoder(self) -> bool:
        return any(name.startswith("encoder/") for name in self._manifest.files)

    @property
    def takes_items(self) -> bool:
        return KNOWN_ITEMS in self._manifest.files or self._manifest.config["fusion"]["item_vector"] != "id"

    @cached_property
    def _manifest(self) -> Manifest:
        return open_artifact(self.release.bundle.uri, "bundle", verify=False).manifest
