"""Feedback events: from what people did at the endpoint to a durable log, and views of everyone's newest.

    <folder>/log/<day>-<writer>.jsonl   the truth: one event a line, fsynced before it is acknowledged
    <folder>/log/forgotten.json         whose events are not kept
    <folder>/view.sqlite                the embedded view: this machine's events, in microseconds
    <folder>/node                       this machine's name in the shared view
    Redis                               the shared view: the events of all machines that name it

Views are built again from the logs when they are lost, and keep the newest events of each user only. Ids here are the
outside world's, because rows change with a Release. Processes of one machine may share a folder; the log files are
JSON Lines that `ingest` reads like any other log. Knows nothing of models or HTTP.
"""

from llmrec_ray.events.event import Event
from llmrec_ray.events.forget import forget_in_file, forget_in_folder, users_in
from llmrec_ray.events.log import EventLog
from llmrec_ray.events.redis_view import RedisDownError, RedisView
from llmrec_ray.events.store import REDIS_URL_VARIABLE, EventStore

__all__ = [
    "REDIS_URL_VARIABLE", "Event", "EventLog", "EventStore", "RedisDownError", "RedisView", "forget_in_file",
    "forget_in_folder", "users_in",
]
