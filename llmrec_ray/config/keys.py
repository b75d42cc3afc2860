"""Who may call the endpoint: API keys as hashes, how much each may ask, and which may administer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat

from llmrec_ray.config.section import Section

__all__ = ["ApiKey", "ApiKeys"]


class ApiKey(Section):
    """One API key; the key itself is kept nowhere."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")]
    """Who holds the key; for people who read this file."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key in hexadecimal digits: `printf %s KEY | sha256sum`. Make keys by `openssl rand -base64 24`."""
    requests_per_second: PositiveFloat | None = None
    """Most requests per second that one Ingress replica answers for this key, a second's worth of them at once;
    with n replicas up to n times as many come through. None sets no limit."""
    admin: bool = False
    """Whether the key also opens `/v1/admin/`."""


def _check_distinct(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        value, times = max(Counter(values).items(), key=lambda pair: pair[1], default=("", 0))
        if times > 1:
            raise ValueError(f"keys holds {what} {value} {times} times: give every key a {what} of its own")
    return keys


ApiKeys = Annotated[list[ApiKey], AfterValidator(_check_distinct)]
