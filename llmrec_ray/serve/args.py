"""Arguments of the Serve application, typed and validated, and the API key as a hash."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Annotated

from pydantic import Field

from llmrec_ray.config import AppConfig
from llmrec_ray.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "ServeArgs", "hash_key", "key_matches", "resolve_key_hash"]

API_KEY_VARIABLE = "LLMREC_API_KEY"


class ServeArgs(AppConfig):
    """What `args` of `serve_config.yaml` may hold."""

    release_uri: str
    """A Release, or the pointer `releases/current.json`, followed once, when the application is built."""
    events_folder: str
    """Local folder of the event log; every Ingress replica of a machine shares it."""
    api_key_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the API key in hexadecimal digits; empty takes the key from LLMREC_API_KEY."""


def hash_key(key: str) -> str:
    """SHA-256 in hexadecimal digits; only this is kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_matches(key: str, key_hash: str) -> bool:
    """Whether a key has this hash, in time that does not depend on where they differ."""
    return hmac.compare_digest(hash_key(key), key_hash)


def resolve_key_hash(args: ServeArgs) -> str:
    """The hash of the key to ask for. Raises ConfigError without one: no open endpoint is served."""
    if args.api_key_sha256 is not None:
        return args.api_key_sha256
    key = os.environ.get(API_KEY_VARIABLE)
    if not key:
        raise ConfigError(
            "The endpoint has no API key: set api_key_sha256 in the arguments (`printf %s KEY | sha256sum`), "
            f"or {API_KEY_VARIABLE} in the environment."
        )
    return hash_key(key)
