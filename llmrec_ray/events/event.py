"""One feedback event, as it comes over HTTP and as it stands in a line of the log."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Event", "Id"]

Id = Annotated[str, Field(min_length=1, max_length=256)]
"""In the outside world."""
YEAR_2200 = 7_258_118_400  # beyond it `ingest` refuses the row too: the time is not in seconds
DIGEST_BYTES = 16


class Event(BaseModel):
    """One thing one person did with one item."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    event_id: Id
    """Chosen by the sender; sending the same id again changes nothing."""
    user_id: Id
    """Who, in the outside world's ids."""
    item_id: Id
    """What, in the outside world's ids."""
    timestamp: Annotated[float, Field(ge=0.0, lt=YEAR_2200, allow_inf_nan=False)] = Field(default_factory=time.time)
    """When, in seconds since 1970 UTC; the time of arrival when absent."""
    event: Id = "interaction"
    """Kind of event, such as `view` or `purchase`."""
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A rating or weight, where there is one."""

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that stand for the event's id in the views."""
        return hashlib.blake2b(self.event_id.encode(), digest_size=DIGEST_BYTES).digest()

    @property
    def millisecond(self) -> int:
        """The time that views order by; within one millisecond the order is that of arrival."""
        return int(self.timestamp * 1000)
