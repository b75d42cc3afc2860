"""API keys: from the key that a caller sends to who that is and whether they may ask now.

Only hashes are held. A key is compared with every hash that there is, each in constant time, so that neither
the time nor the place of a match is told. Each replica counts by itself: the rate of a key is per replica.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from llmrec_ray.config import ApiKey
from llmrec_ray.errors import ConfigError

__all__ = [
    "ADMIN_KEY_VARIABLE",
    "API_KEY_VARIABLE",
    "Keyring",
    "StartKeys",
    "TokenBucket",
    "hash_key",
    "keys_for_start",
    "resolve_keys",
]

API_KEY_VARIABLE = "LLMREC_API_KEY"
ADMIN_KEY_VARIABLE = "LLMREC_ADMIN_KEY"
MADE_KEY_BYTES = 24


class TokenBucket:
    """Lets `rate` requests per second through, and one second's worth of them (at least one) at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._capacity = max(1.0, rate)
        self._tokens, self._filled = self._capacity, clock()

    def take(self) -> float:
        """0.0 when the request may pass, which then counts; else the seconds until one may."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0


class Keyring:
    """The keys that one replica knows, and how much each has asked."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._entries = [(bytes.fromhex(key.sha256), key) for key in keys]
        self._buckets = {
            key.sha256: TokenBucket(key.requests_per_second) for key in keys if key.requests_per_second is not None
        }
        self.has_admin = any(key.admin for key in keys)

    def find(self, sent: str) -> ApiKey | None:
        """Whose key it is; takes the same time whichever it is, and where it is none."""
        digest, found = hashlib.sha256(sent.encode()).digest(), None
        for held, key in self._entries:
            if hmac.compare_digest(held, digest):
                found = key
        return found

    def wait_s(self, key: ApiKey) -> int:
        """0 when the key may ask now, which then counts; else the whole seconds after which to ask again."""
        bucket = self._buckets.get(key.sha256)
        return 0 if bucket is None else math.ceil(bucket.take())


@dataclass(frozen=True)
class StartKeys:
    """The keys of an endpoint that this process starts.

    keys: what the application is to accept. api_key, admin_key: the keys themselves, to show or to paste; None
    where only hashes are configured. made: whether each was made just now, so that nobody has it yet.
    """

    keys: list[ApiKey]
    api_key: str | None = field(repr=False)
    admin_key: str | None = field(repr=False)
    made_api_key: bool
    made_admin_key: bool


def hash_key(key: str) -> str:
    """SHA-256 in hexadecimal digits; only this is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def resolve_keys(configured: Sequence[ApiKey]) -> list[ApiKey]:
    """The configured keys and those of the environment. Raises ConfigError without any: nothing is served openly."""
    keys = _with(configured, os.environ.get(API_KEY_VARIABLE), os.environ.get(ADMIN_KEY_VARIABLE))
    if not keys:
        raise ConfigError(
            "The endpoint has no API key: set keys in the arguments (sha256 from `printf %s KEY | sha256sum`), "
            f"or {API_KEY_VARIABLE} in the environment."
        )
    return keys


def keys_for_start(
    configured: Sequence[ApiKey], api_key: str | None = None, admin_key: str | None = None
) -> StartKeys:
    """What is given here, else in the environment; a new random key for a role that nobody has a key for.

    Raises ConfigError when one key is to be both the API key and the admin key.
    """
    api = api_key or os.environ.get(API_KEY_VARIABLE)
    admin = admin_key or os.environ.get(ADMIN_KEY_VARIABLE)
    make_api = not api and all(key.admin for key in configured)
    make_admin = not admin and not any(key.admin for key in configured)
    api = secrets.token_urlsafe(MADE_KEY_BYTES) if make_api else api or None
    admin = secrets.token_urlsafe(MADE_KEY_BYTES) if make_admin else admin or None
    return StartKeys(
        keys=_with(configured, api, admin), api_key=api, admin_key=admin, made_api_key=make_api,
        made_admin_key=make_admin,
    )


def _with(configured: Sequence[ApiKey], api_key: str | None, admin_key: str | None) -> list[ApiKey]:
    if api_key and api_key == admin_key:
        raise ConfigError(
            f"{API_KEY_VARIABLE} and {ADMIN_KEY_VARIABLE} are the same: give the admin key to fewer people, as "
            "another key."
        )
    keys = {key.sha256: key for key in configured}
    for name, key, admin in (("api", api_key, False), ("admin", admin_key, True)):
        if key:
            keys.setdefault(hash_key(key), ApiKey(name=name, sha256=hash_key(key), admin=admin))
    return list(keys.values())
