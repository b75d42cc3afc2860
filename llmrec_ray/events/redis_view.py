"""Redis as the view of several machines' logs: the keys, the scripts, one round trip per call.

    llmrec:events:user:<user_id>    sorted set of a user's newest items
    llmrec:events:id:<digest>       an event id that was seen in the last days
    llmrec:events:at:<node>         hash: log file -> bytes of it that are in this Redis
    llmrec:events:nodes             hash: node -> the run of Redis in which all of its log was there

What is added and how far that brings a log file change in one script, so that whatever a Redis holds, be it empty or
an old snapshot, it says itself from where a log must be read again. A Redis that was started anew has another run id
than the marks in `nodes`, one that was emptied has no marks. One Redis with its replicas, not Redis Cluster.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from llmrec_ray.errors import ConfigError
from llmrec_ray.events.event import DIGEST_BYTES, Event

__all__ = ["RedisDownError", "RedisView"]

PREFIX = b"llmrec:events:"
NODES = PREFIX + b"nodes"
ID_DAYS = 7
DAY_S = 86_400

# KEYS: at:<node>. ARGV: file, start, end, max_history, seconds an id is kept, prefix; then per event digest, user,
# millisecond, item. Returns where the file then stands. A score has 1024 places for events of one millisecond, in order
# of arrival; that stays a whole number of a float64 until the year 2248.
ADD = """
local file, start, finish, longest, keep_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local at = redis.call('HGET', KEYS[1], file) or '0'
if at ~= start then
    return tonumber(at)
end
local touched = {}
for i = 7, #ARGV, 4 do
    local digest, user, base = ARGV[i], ARGV[6] .. 'user:' .. ARGV[i + 1], tonumber(ARGV[i + 2]) * 1024
    local member, id = digest .. ARGV[i + 3], ARGV[6] .. 'id:' .. digest
    if redis.call('EXISTS', id) == 0 and not redis.call('ZSCORE', user, member) then
        local last = redis.call('ZREVRANGEBYSCORE', user, base + 1023, base, 'WITHSCORES', 'LIMIT', 0, 1)[2]
        local score = last and math.min(tonumber(last) + 1, base + 1023) or base
        redis.call('ZADD', user, string.format('%.0f', score), member)
        touched[user] = true
    end
    if keep_s > 0 then
        redis.call('SET', id, '', 'NX', 'EX', keep_s)  -- last: a script that fails half way is run again
    end
end
for user in pairs(touched) do
    redis.call('ZREMRANGEBYRANK', user, 0, -longest - 1)
end
redis.call('HSET', KEYS[1], file, finish)
return tonumber(finish)
"""


class RedisDownError(Exception):
    """Redis did not do what it was asked, in time."""


class RedisView:
    """A connection pool to one Redis. Every method raises RedisDownError; threads may share it."""

    def __init__(self, url: str, max_history: int, timeout_s: float) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ConfigError(
                "serve.events.redis_url is set, but the Python package redis is not there: install llmrec_ray[serve]."
            ) from None
        self.place = _place(url)
        self.run_id = ""
        self._max_history = max_history
        self._errors, self._restarted = (redis.RedisError, OSError), redis.ConnectionError
        self._redis = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2,
            redis_connect_func=self._greet,
        )
        self._add = self._redis.register_script(ADD)

    def newest_of(self, user_ids: Sequence[str], n: int) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Item ids of each user's newest `n` events, oldest first; and the marks of the nodes."""
        with self._answering():
            pipeline = self._redis.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.zrange(_user_key(user_id), -n, -1)
            pipeline.hgetall(NODES)  # last: what is lost before it is seen to be lost
            *lists, nodes = pipeline.execute()
        newest = {
            user_id: [member[DIGEST_BYTES:].decode() for member in members]
            for user_id, members in zip(user_ids, lists, strict=True)
        }
        return newest, _texts(nodes)

    def known(self, events: Sequence[Event]) -> set[str]:
        """Ids, of those of the events, that some node recorded in the last days."""
        with self._answering():
            found = self._redis.mget([PREFIX + b"id:" + event.digest for event in events])
        return {event.event_id for event, value in zip(events, found, strict=True) if value is not None}

    def add(self, node: str, file: str, start: int, end: int, events: Sequence[Event]) -> int:
        """Add the events of `start` to `end` of a log file, if the file stands at `start` in this Redis.

        Returns where the file stands afterwards: `end`, unless somebody else moved it or Redis lost something.
        """
        fields: list[bytes | str | int] = [file, start, end, self._max_history, _keep_s(file), PREFIX]
        for event in events:
            fields += event.digest, event.user_id, event.millisecond, event.item_id
        with self._answering():
            return int(self._add(keys=[_at_key(node)], args=fields))

    def positions(self, node: str) -> dict[str, int]:
        """How many bytes of each of a node's log files are in this Redis."""
        with self._answering():
            return {file: int(at) for file, at in _texts(self._redis.hgetall(_at_key(node))).items()}

    def nodes(self) -> dict[str, str]:
        """The marks: for each node the run of Redis in which all of its log was there."""
        with self._answering():
            return _texts(self._redis.hgetall(NODES))

    def mark(self, node: str, run_id: str) -> None:
        """Say that all of a node's log is there."""
        with self._answering():
            self._redis.hset(NODES, node, run_id)

    def unmark(self, nodes: Sequence[str]) -> None:
        """Forget nodes until they come back."""
        with self._answering():
            self._redis.hdel(NODES, *nodes)

    def forget(self, user_ids: Sequence[str]) -> int:
        """Remove all that is held of these people; how many of them had anything."""
        if not user_ids:
            return 0
        with self._answering():
            return int(self._redis.delete(*(_user_key(user_id) for user_id in user_ids)))

    def holds(self, user_id: str) -> bool:
        """Whether anything is held of a person."""
        with self._answering():
            return bool(self._redis.exists(_user_key(user_id)))

    def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(*self._errors):
            self._redis.close()

    def _greet(self, connection: Any) -> None:
        """Begin a connection. What other connections knew of a Redis that was started anew since counts no more."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        found = re.search(rb"run_id:(\w+)", connection.read_response())
        before, self.run_id = self.run_id, found[1].decode() if found else ""
        if before and before != self.run_id:
            raise self._restarted("it was started anew")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise RedisDownError(f"{type(error).__name__}: {error}") from error


def _place(url: str) -> str:
    """The URL without what is secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _user_key(user_id: str) -> bytes:
    return PREFIX + b"user:" + user_id.encode()


def _at_key(node: str) -> bytes:
    return PREFIX + b"at:" + node.encode()


def _texts(fields: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _keep_s(file: str) -> int:
    """How long ids of a log file are kept: not at all for a day so old that nobody sends its events again."""
    oldest = time.strftime("%Y%m%d", time.gmtime(time.time() - ID_DAYS * DAY_S))
    return ID_DAYS * DAY_S if file[:8] >= oldest else 0
