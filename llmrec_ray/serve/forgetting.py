"""Who was forgotten in the workspace -> an Ingress replica's machine without them, while it goes on serving.

An administrator's call reaches one replica; the others read the workspace's list, so that every machine follows. Only
events are removed here; a person's history in the Release is no longer looked at, and goes with the Release.
"""

from __future__ import annotations

import asyncio
import logging

from llmrec_ray.errors import EventLogError, LlmrecError
from llmrec_ray.events import EventStore
from llmrec_ray.forgotten import FORGOTTEN, Tombstones, remember

__all__ = ["Forgetting", "forgotten_beside"]

logger = logging.getLogger("ray.serve")
RELEASES = "releases"


class Forgetting:
    """Keeps the events of this machine without the people whom the list at a URI names, by looking every `period_s`."""

    def __init__(self, events: EventStore, uri: str, period_s: float) -> None:
        self._events, self._uri, self._period_s = events, uri, period_s
        self._following: asyncio.Task[None] | None = None
        self._told: str | None = None

    async def start(self) -> None:
        """Look once, and follow from then on."""
        await self._look()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def forget(self, user_id: str) -> int:
        """Put a person on the list, and remove their events from this machine and from Redis; how many there were in
        this machine's log. Raises EventLogError when something could not be done; asking again goes on.
        """
        try:
            tombstones = await asyncio.to_thread(remember, self._uri, user_id, done=False)
        except (LlmrecError, OSError) as error:
            raise EventLogError(f"The list of forgotten people {self._uri} cannot be written: {error}") from error
        return await asyncio.to_thread(self._events.forget, tombstones, [user_id])

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self._look()

    async def _look(self) -> None:
        try:
            tombstones = await asyncio.to_thread(Tombstones.read, self._uri)
            if len(tombstones):
                await asyncio.to_thread(self._events.forget, tombstones)
        except Exception as error:  # the next look may go well; until then nothing new of these people is kept here
            if str(error) != self._told:
                logger.warning("Forgotten people are not removed from this machine yet: %s", error)
            self._told = str(error)
        else:
            self._told = None


def forgotten_beside(release_uri: str) -> str:
    """Where the list lies that belongs to a Release: in its workspace, or beside it where there is none."""
    folder = release_uri.rpartition("/")[0]
    workspace, _, name = folder.rpartition("/")
    return f"{workspace if name == RELEASES else folder}/{FORGOTTEN}"
