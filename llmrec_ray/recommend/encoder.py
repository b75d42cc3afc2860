"""Texts of requests -> what is wanted as a vector in text space, and who asks as a user vector."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from llmrec_ray.bundle import BundleTexts
from llmrec_ray.recommend.batch import Encoded
from llmrec_ray.signals import to_text_space
from llmrec_ray.types import FloatArray

__all__ = ["Encoder"]


class Encoder:
    """Holds the text encoder of a Bundle that has one."""

    def __init__(self, texts: BundleTexts, device: str = "cpu") -> None:
        assert texts.center is not None, "an Encoder for a Bundle without texts. This is a bug."
        self._encoder = texts.load_encoder(device)
        self._center = texts.center
        self._profiles = texts.profiles
        self._user_size = texts.user_size

    def encode(self, queries: Sequence[str], profiles: Sequence[str]) -> Encoded:
        """Queries and profiles of B requests, "" where there is none.

        Where the Bundle was trained without people's descriptions, a profile is read as something that is wanted: the
        vector is the mean of both.
        """
        start = perf_counter()
        raw = self._raw([*queries, *profiles])
        asked, described = raw[: len(queries)], raw[len(queries) :]
        vectors = to_text_space(asked, self._center)
        users = np.zeros((len(queries), self._user_size), np.float32)
        if self._profiles is None:
            both = vectors + to_text_space(described, self._center)
            vectors = to_text_space(both, np.zeros_like(self._center))
        elif (given := described.any(axis=1)).any():
            users[given, :-1], users[given, -1] = self._profiles.users(described[given]), 1.0
        return Encoded(vectors, users, {"encode": (perf_counter() - start) * 1000})

    def encode_items(self, texts: Sequence[str]) -> FloatArray:
        """[M, T] float32 raw vectors of texts that describe items, as `AddedItem` keeps them."""
        return self._encoder.encode(texts)

    def _raw(self, texts: Sequence[str]) -> FloatArray:
        """[B, T] encoder output, zero rows for empty texts."""
        given = [place for place, text in enumerate(texts) if text]
        raw = np.zeros((len(texts), len(self._center)), np.float32)
        if given:
            raw[given] = self._encoder.encode([texts[place] for place in given], as_query=True)
        return raw
