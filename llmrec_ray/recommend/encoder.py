"""Texts of requests -> what is wanted as a vector in text space, and who asks as a user vector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from llmrec_ray.bundle import BundleTexts
from llmrec_ray.recommend.batch import Encoded
from llmrec_ray.signals import to_text_space
from llmrec_ray.text import clean_text
from llmrec_ray.types import FloatArray

__all__ = ["Encoder"]

KEPT_TEXTS = 4096


class Encoder:
    """Holds the text encoder of a Bundle that has one, and the vectors of the texts that were asked for last.

    looked_up: is told of every text whether its vector was kept. Threads may share an object.
    """

    def __init__(
        self, texts: BundleTexts, device: str = "cpu", *, looked_up: Callable[[bool], None] = lambda _: None
    ) -> None:
        assert texts.center is not None, "an Encoder for a Bundle without texts. This is a bug."
        self._encoder = texts.load_encoder(device)
        self._center = texts.center
        self._profiles = texts.profiles
        self._user_size = texts.user_size
        self._looked_up = looked_up
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()
        self._keeping = threading.Lock()

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
        """[M, T] float32 raw vectors of texts that describe items, as `AddedItem` keeps them; cleaned as in ingest."""
        return self._encoder.encode([clean_text(text) for text in texts])

    def _raw(self, texts: Sequence[str]) -> FloatArray:
        """[B, T] encoder output, zero rows for empty texts."""
        found = self._find({text for text in texts if text})
        if missing := list(dict.fromkeys(text for text in texts if text and text not in found)):
            new = dict(zip(missing, self._encoder.encode(missing, as_query=True), strict=True))
            self._keep(new)
            found |= new
        raw = np.zeros((len(texts), len(self._center)), np.float32)
        for place, text in enumerate(texts):
            if text:
                raw[place] = found[text]
                self._looked_up(text not in missing)
        return raw

    def _find(self, texts: set[str]) -> dict[str, FloatArray]:
        with self._keeping:
            found = {text: self._kept[text] for text in texts if text in self._kept}
            for text in found:
                self._kept.move_to_end(text)
            return found

    def _keep(self, new: dict[str, FloatArray]) -> None:
        with self._keeping:
            self._kept |= new
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
