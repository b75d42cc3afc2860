"""Events of some users -> which of the users are robots or outliers, by the rules of `data.robots`.

Pure functions over arrays; events come sorted by user, then time.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.config.data import RobotRules
from llmrec_ray.types import IntArray

__all__ = ["robot_users"]

HOUR_US = 3_600_000_000


def robot_users(users: IntArray, pairs: pl.Series, moments_us: IntArray, rules: RobotRules) -> NDArray[np.bool_]:
    """Which users break a rule, [U] bool.

    users: [E] places of users, 0 to U - 1. pairs: [E] uint64, user and item in one number, the user in its upper half.
    moments_us: [E] microseconds.
    """
    robots = np.zeros(int(users[-1]) + 1 if len(users) else 0, np.bool_)
    if rules.max_events is not None:
        robots |= np.bincount(users, minlength=len(robots)) > rules.max_events
    if rules.max_events_per_hour is not None:
        robots[users[_starts_of_busy_hours(users, moments_us, rules.max_events_per_hour)]] = True
    if rules.max_repeats is not None:
        robots[_users_of_repeats(pairs, rules.max_repeats)] = True
    return robots


def _starts_of_busy_hours(users: IntArray, moments_us: IntArray, most: int) -> IntArray:
    """Events after which the same user has `most` more within less than an hour."""
    same = users[most:] == users[:-most]
    return np.flatnonzero(same & (moments_us[most:] - moments_us[:-most] < HOUR_US))


def _users_of_repeats(pairs: pl.Series, most: int) -> IntArray:
    counts = pairs.alias("pair").value_counts(name="count")
    often = counts.filter(pl.col("count") > most)["pair"].to_numpy()
    return (often >> np.uint64(32)).astype(np.int64)
