"""What failed is left alone for a while, then one call tries it again, so that requests do not queue for it."""

from __future__ import annotations

import logging
from time import monotonic

from ray.exceptions import RayTaskError

__all__ = ["Rests"]

logger = logging.getLogger("ray.serve")


class Rests:
    """Whether to call something that may fail. name: as people should read it in the log."""

    def __init__(self, name: str, rest_s: float) -> None:
        self.name, self._rest_s = name, rest_s
        self._tired_until = 0.0

    def is_up(self) -> bool:
        """Whether to call it; after a failure True once per `rest_s`, for one call that tries."""
        now = monotonic()
        if self._tired_until == 0.0:
            return True
        if now < self._tired_until:
            return False
        self._tired_until = now + self._rest_s
        return True

    def answered(self) -> None:
        """It works: every call goes to it."""
        self._tired_until = 0.0

    def failed(self, error: BaseException) -> None:
        """Leave it alone for a while."""
        if self._tired_until == 0.0:
            logger.error("%s is done without for %.1f s: %s", self.name, self._rest_s, _reason(error))
        self._tired_until = monotonic() + self._rest_s


def _reason(error: BaseException) -> str:
    """One line; the stack of a stage is in the stage's own log."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
