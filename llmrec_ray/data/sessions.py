"""Events of some users -> the number of the session that each belongs to, within its user.

Sessions are those that the log names; events without a name are cut where nothing happens for long enough. Pure
functions over arrays; events come sorted by user, then time.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from llmrec_ray.types import IntArray

__all__ = ["session_ordinals"]


def session_ordinals(
    users: IntArray, moments_us: IntArray, named: pl.Series | None, gap_s: float | None
) -> pl.Series:
    """Sessions of each user in the order of their first events, [E] Int32 from 0.

    users: [E] places of users, ascending. moments_us: [E] microseconds. named: [E] text, the log's own sessions, null
    where it has none; such events are of one session with the user's one before when less than `gap_s` seconds lie
    between them, and of none (null) without `gap_s`.
    """
    labels = _labels(users, moments_us, named, gap_s)
    keys = pl.DataFrame({"key": pl.Series(users).cast(pl.UInt64) * 2**32 + labels.cast(pl.UInt64), "user": users})
    sessions = keys.drop_nulls("key").unique("key", keep="first", maintain_order=True).with_row_index("place")
    ordinal = pl.col("place").cast(pl.Int32) - pl.col("place").first().over("user").cast(pl.Int32)
    numbered = sessions.select("key", ordinal=ordinal)
    return keys.join(numbered, on="key", how="left", maintain_order="left")["ordinal"]


def _labels(users: IntArray, moments_us: IntArray, named: pl.Series | None, gap_s: float | None) -> pl.Series:
    """A number per session, [E] uint32; numbers of the log's own begin where those of the others end."""
    if named is None:
        named = pl.repeat(None, len(users), dtype=pl.String, eager=True)
    own = named.cast(pl.Enum(named.drop_nulls().unique().sort())).to_physical().cast(pl.UInt32)
    if gap_s is None:
        return own
    free = np.flatnonzero(named.is_null().to_numpy())
    cut = _begins(users[free], moments_us[free], gap_s)
    labels = np.zeros(len(users), np.uint32)
    labels[free] = np.cumsum(cut)
    return pl.select(pl.coalesce(own + len(users) + 1, pl.Series(labels))).to_series()


def _begins(users: IntArray, moments_us: IntArray, gap_s: float) -> IntArray:
    """1 where a session begins, else 0."""
    begins = np.ones(len(users), np.int64)
    begins[1:] = (np.diff(users) != 0) | (np.diff(moments_us) >= gap_s * 1_000_000)
    return begins
