"""Endpoints that answer with a Release -> the moment from which they no longer need its files.

Asks only what needs no key. Knows nothing of Ray: an endpoint may run anywhere.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence

from llmrec_ray.errors import ArtifactError, ConfigError

__all__ = ["await_switch", "check_urls"]

SWITCH_TIMEOUT_S = 180.0
GRACE_S = 4.0
"""Other replicas follow within a second, and calls on their way need the old snapshot for two."""
POLL_S = 0.5
ANSWER_S = 5.0
SILENT = "<no answer>"


def check_urls(urls: Sequence[str]) -> None:
    """Raise ConfigError for what is no URL of an endpoint, which would look like one that is not running."""
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no URL of an endpoint: write it as http://host:port.")


def await_switch(urls: Sequence[str], removed: Collection[str]) -> list[str]:
    """Return when no endpoint at these URLs answers with one of the removed Releases: those that did. Nothing may
    listen there.

    Raises ArtifactError when one still does, or does not answer at all, after SWITCH_TIMEOUT_S.
    """
    deadline = time.monotonic() + SWITCH_TIMEOUT_S
    served = [url for url in urls if removed and _release(url) in {*removed, SILENT}]
    for url in served:
        while (release := _release(url)) in {*removed, SILENT}:
            if time.monotonic() > deadline:
                raise _stuck(url, str(release))
            time.sleep(POLL_S)
    if served:
        time.sleep(GRACE_S)
    return served


def _stuck(url: str, release: str) -> ArtifactError:
    after = f"after {SWITCH_TIMEOUT_S:.0f} s, so files of earlier Releases were not deleted"
    if release == SILENT:
        return ArtifactError(
            f"{url} gives no answer {after}: name with --endpoint where the workspace is served, then run the same "
            "command again."
        )
    return ArtifactError(
        f"{url} still answers with release {release} {after}: see what GET /v1/admin/status says of the new one, then "
        "run the same command again."
    )


def _release(url: str) -> str | None:
    """Id of the Release that an endpoint answers with; SILENT where somebody takes too long to say so, None where
    nothing like an endpoint listens."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is for other machines
    try:
        with direct.open(f"{url.rstrip('/')}/healthz", timeout=ANSWER_S) as answer:
            return str(json.load(answer)["release"]).partition("+")[0]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return SILENT if isinstance(reason, TimeoutError) else None
