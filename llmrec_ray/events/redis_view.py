"""Redis as the view of several machines' logs: the keys, the scripts, one round trip per call.

    llmrec:events:user:<user_id>    sorted set of a user's newest items
    llmrec:events:id:<digest>       an event id that was seen in the last days
    llmrec:events:at:<node>         hash: log file -> bytes of it that are in this Redis
    llmrec:events:nodes             hash: node -> bytes of its log that are in this Redis; absent in a fresh one

What is added and how far that brings a log file change in one script, so that whatever a Redis holds, be it empty or
an old snapshot, it says itself from where a log must be read again. One Redis with its replicas, not Redis Cluster.
"""

from __future__ import annotations

import contextlib
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
TIES = 1024  # places within a millisecond: milliseconds x TIES stays a whole number of a float64 until 2248

# KEYS: nodes, at:<node>. ARGV: node, file, start, end, max_history, seconds an id is kept, prefix; then per event
# digest, user, millisecond, item. Returns where the file then stands, and the node's bytes.
ADD = """
local file, start, finish, longest, keep_s = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local at = redis.call('HGET', KEYS[2], file) or '0'
if at ~= start then
    return {tonumber(at), tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')}
end
local touched = {}
for i = 8, #ARGV, 4 do
    local digest, user, base = ARGV[i], ARGV[7] .. 'user:' .. ARGV[i + 1], tonumber(ARGV[i + 2]) * 1024
    local member = digest .. ARGV[i + 3]
    local is_new = true
    if keep_s > 0 then
        is_new = redis.call('SET', ARGV[7] .. 'id:' .. digest, '', 'NX', 'EX', keep_s)
    end
    if is_new and not redis.call('ZSCORE', user, member) then
        local place = math.min(redis.call('ZCOUNT', user, base, base + 1023), 1023)
        redis.call('ZADD', user, string.format('%.0f', base + place), member)
        touched[user] = true
    end
end
for user in pairs(touched) do
    redis.call('ZREMRANGEBYRANK', user, 0, -longest - 1)
end
redis.call('HSET', KEYS[2], file, finish)
return {tonumber(finish), redis.call('HINCRBY', KEYS[1], ARGV[1], tonumber(finish) - tonumber(start))}
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
        self._max_history = max_history
        self._errors = (redis.RedisError, OSError)
        self._redis = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2
        )
        self._add = self._redis.register_script(ADD)

    def newest_of(self, user_ids: Sequence[str], n: int) -> tuple[dict[str, list[str]], dict[str, int]]:
        """Item ids of each user's newest `n` events, oldest first; and how much of each node's log this Redis has."""
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
        return newest, _numbers(nodes)

    def known(self, events: Sequence[Event]) -> set[str]:
        """Ids, of those of the events, that some node recorded in the last days."""
        with self._answering():
            found = self._redis.mget([PREFIX + b"id:" + event.digest for event in events])
        return {event.event_id for event, value in zip(events, found, strict=True) if value is not None}

    def add(self, node: str, file: str, start: int, end: int, events: Sequence[Event]) -> tuple[int, int]:
        """Add the events of `start` to `end` of a log file, if the file stands at `start` in this Redis.

        Returns where the file stands afterwards (`end` unless somebody else moved it, or Redis lost something), and
        how many bytes of the node's log are there.
        """
        fields: list[bytes | str | int] = [node, file, start, end, self._max_history, _keep_s(file), PREFIX]
        for event in events:
            fields += event.digest, event.user_id, event.millisecond, event.item_id
        with self._answering():
            at, total = self._add(keys=[NODES, _at_key(node)], args=fields)
        return int(at), int(total)

    def positions(self, node: str) -> dict[str, int]:
        """How many bytes of each of a node's log files are in this Redis."""
        with self._answering():
            return _numbers(self._redis.hgetall(_at_key(node)))

    def totals(self) -> dict[str, int]:
        """How many bytes of each node's log were added to this Redis."""
        with self._answering():
            return _numbers(self._redis.hgetall(NODES))

    def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(*self._errors):
            self._redis.close()

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


def _numbers(fields: Any) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}


def _keep_s(file: str) -> int:
    """How long ids of a log file are kept: not at all for a day so old that nobody sends its events again."""
    oldest = time.strftime("%Y%m%d", time.gmtime(time.time() - ID_DAYS * DAY_S))
    return ID_DAYS * DAY_S if file[:8] >= oldest else 0
