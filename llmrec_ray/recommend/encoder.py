"""Texts of requests -> one vector per request in the Bundle's text space."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from llmrec_ray.bundle import Bundle
from llmrec_ray.recommend.batch import Encoded
from llmrec_ray.signals import to_text_space

__all__ = ["Encoder"]


class Encoder:
    """Holds the text encoder of a Bundle that has one."""

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        assert bundle.text_center is not None, "an Encoder for a Bundle without texts. This is a bug."
        self._encoder = bundle.load_encoder(device)
        self._center = bundle.text_center

    def encode(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """One unit vector per request; several texts of a request are averaged, none gives a zero row."""
        start = perf_counter()
        flat = [text for several in texts for text in several]
        owners = np.repeat(np.arange(len(texts)), [len(several) for several in texts])
        sums = np.zeros((len(texts), len(self._center)), np.float32)
        if flat:
            np.add.at(sums, owners, to_text_space(self._encoder.encode(flat, as_query=True), self._center))
        vectors = to_text_space(sums, np.zeros_like(self._center))
        return Encoded(vectors, {"encode": (perf_counter() - start) * 1000})
