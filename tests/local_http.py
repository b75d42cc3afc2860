"""An ASGI application behind a real uvicorn in a thread of this process, and raw bytes to send to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn


@contextlib.contextmanager
def served(app, **settings) -> Iterator[str]:
    """The URL under which the application answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(app, port=port, log_level="critical", access_log=False, ws="none", **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start."
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def send_raw(url: str, *pieces: bytes, pause_s: float = 0.0, timeout_s: float = 20.0) -> bytes:
    """All that comes back for bytes sent piece by piece, until the connection closes or nothing more comes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
        answer = connection.recv(65536)
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while more := connection.recv(65536):
                answer += more
    return answer
