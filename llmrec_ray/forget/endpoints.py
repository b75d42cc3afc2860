"""Endpoints that answer with a Release -> the moment from which they no longer need its files.

Asks only what needs no key. Knows nothing of Ray: an endpoint may run anywhere.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Collection, Sequence

from llmrec_ray.errors import ArtifactError

__all__ = ["await_switch"]

SWITCH_TIMEOUT_S = 180.0
GRACE_S = 4.0
"""Other replicas follow within a second, and calls on their way need the old snapshot for two."""
POLL_S = 0.5
ANSWER_S = 5.0


def await_switch(urls: Sequence[str], removed: Collection[str]) -> None:
    """Return when no endpoint at these URLs answers with one of the removed Releases; nothing may listen there.

    Raises ArtifactError when one still does after SWITCH_TIMEOUT_S.
    """
    deadline = time.monotonic() + SWITCH_TIMEOUT_S
    served = [url for url in urls if _release(url) in removed]
    for url in served:
        while (release := _release(url)) in removed:
            if time.monotonic() > deadline:
                raise ArtifactError(
                    f"{url} still answers with release {release} after {SWITCH_TIMEOUT_S:.0f} s, so its files were not "
                    "deleted: see what GET /v1/admin/status says of the new one, then run the same command again."
                )
            time.sleep(POLL_S)
    if served:
        time.sleep(GRACE_S)


def _release(url: str) -> str | None:
    """Id of the Release that an endpoint answers with; None where nothing like an endpoint listens."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY is for other machines
    try:
        with direct.open(f"{url.rstrip('/')}/healthz", timeout=ANSWER_S) as answer:
            return str(json.load(answer)["release"]).partition("+")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return None
