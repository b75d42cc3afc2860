"""A steady stream of requests from one light process: sent on time whatever the answers do, and never sent twice.

    python benchmarks/steady.py URL KEY --rate 50 --seconds 60 --out FILE

Requests leave at even intervals over connections that are kept alive, and every one is one line of JSON in FILE: when
it left (unix seconds), how long it took, its kind, how it ended, and what the answer says of itself. `--clients` turns
it into a crowd instead: that many connections, each asking again as soon as it is answered.

How a request ends: `ok`, `status NNN`, `refused` (no connection), `broken` (the connection ended before the answer),
`late` (no answer within TIMEOUT_S). Plain sockets and no packages beside Python's own, so that it costs little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

__all__ = ["KINDS", "TIMEOUT_S"]

KINDS = {"known": 0.65, "query": 0.1, "similar": 0.05, "events": 0.2}
"""Shares of each kind."""
TIMEOUT_S = 10.0
WORDS = ("red", "green", "blue", "small", "large", "old", "new", "house", "boat", "story", "song", "garden")

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Generator:
    """Sends requests and writes down how each of them ended."""

    def __init__(self, url: str, api_key: str, users: int, items: int, out: IO[str], name: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, f"no host and port in {url}. This is a bug."
        self._host, self._port, self._key = parts.hostname, parts.port, api_key
        self._users, self._items, self._out, self._name = users, items, out, name
        self._idle: list[Connection] = []
        self._sent = 0

    async def steady(self, rate: float, seconds: float) -> None:
        """`rate` requests a second at even intervals; returns when the last is answered."""
        start, tasks = time.monotonic(), set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            task = asyncio.create_task(self._ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def crowd(self, clients: int, seconds: float) -> None:
        """`clients` that ask again as soon as they are answered."""
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                await self._ask()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _ask(self) -> None:
        self._sent += 1
        kind = random.choices([*KINDS], [*KINDS.values()])[0]
        about: dict[str, Any] = {"kind": kind, "left": time.time()}
        start = time.monotonic()
        method, path, body = self._request(kind, about)
        try:
            outcome, answer = await asyncio.wait_for(self._exchange(method, path, body), TIMEOUT_S)
        except TimeoutError:
            outcome, answer = "late", {}
        about |= {"seconds": round(time.monotonic() - start, 5), "outcome": outcome}
        about |= {name: answer[name] for name in ("release", "degraded") if answer.get(name)}
        self._out.write(json.dumps(about) + "\n")

    def _request(self, kind: str, about: dict[str, Any]) -> tuple[str, str, dict[str, Any] | None]:
        user, item = f"u{random.randrange(self._users)}", f"i{random.randrange(self._items)}"
        if kind == "similar":
            return "GET", f"/v1/similar/{item}", None
        if kind == "query":
            return "POST", "/v1/recommend", {"query": " ".join(random.sample(WORDS, 3))}
        if kind == "known":
            return "POST", "/v1/recommend", {"user_id": user}
        about["event_id"] = f"{self._name}-{self._sent}"
        return "POST", "/v1/events", {
            "events": [{"event_id": about["event_id"], "user_id": user, "item_id": item}],
        }

    async def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
        try:
            reader, writer = await self._connection()
        except OSError:
            return "refused", {}
        try:
            writer.write(self._message(method, path, body))
            status, headers, content = await _answer(reader)
        except (OSError, EOFError, ValueError):
            writer.close()
            return "broken", {}
        except BaseException:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return ("ok", _parsed(content)) if status == 200 else (f"status {status}", {})

    async def _connection(self) -> Connection:
        """One that is idle and that the other side has not ended, else a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    def _message(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body. Raises EOFError when the connection ends before them."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(_headers(head[1:]))
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return int(head[0].split()[1]), headers, await _chunks(reader)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _headers(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            yield name.lower(), value.strip()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        content += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return content


def _parsed(content: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(content)
    return answer


def main() -> None:
    """Send, and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--clients", type=int, help="a crowd of so many instead of a rate")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.out.open("w", buffering=1) as out:
        name = f"{arguments.out.stem}-{time.time_ns()}"
        generator = Generator(arguments.url, arguments.key, arguments.users, arguments.items, out, name)
        if arguments.clients:
            asyncio.run(generator.crowd(arguments.clients, arguments.seconds))
        else:
            asyncio.run(generator.steady(arguments.rate, arguments.seconds))


if __name__ == "__main__":
    main()
