"""Ingests, and runs of forget, in processes of their own that are killed, by SIGKILL, where they are told to.

Run as a program it imports everything once, and then forks a child per line of its input:
`{"recipe": …, "raw": …, "workspace": …, "options": {…}, "kill_at": N}`, with `"forget": USER` to forget a person
instead. The child ends itself at its N-th step that
touches the file system (0: never); the answer is one line: how it ended, and how many such steps there were.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = ("open", "os.", "shutil.", "fcntl.")


class Forge:
    """The program of this module; it forks before Polars has started a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *, kill_at: int = 0, **order: Any) -> tuple[str, int]:
        """How one order ended (`done`, `killed`, or its error), and its steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({**order, "kill_at": kill_at}) + "\n")
        self._process.stdin.flush()
        ended, steps = json.loads(self._process.stdout.readline())
        return ended, steps


@contextmanager
def forge() -> Iterator[Forge]:
    """Start the program, and end it."""
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.killed_ingest"], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:
        try:
            yield Forge(process)
        finally:
            process.stdin.close()


def serve_orders() -> None:
    """Fork a child per order until the input ends."""
    import llmrec_ray.forget  # noqa: F401  so that no child has to

    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            obey(order, writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read().split("\n")
        os.waitpid(child, 0)
        ended = next((text for text in said if text and not text.startswith("step")), "killed")
        sys.stdout.write(json.dumps([ended, sum(text.startswith("step") for text in said)]) + "\n")
        sys.stdout.flush()


def obey(order: dict[str, Any], pipe: int) -> None:
    """In the child: do it, say how it ended, and end without cleaning up after the parent's imports."""
    from llmrec_ray.artifact import Workspace
    from llmrec_ray.config.load import validate_recipe
    from llmrec_ray.data import ingest
    from llmrec_ray.forget import forget

    recipe = validate_recipe(order["recipe"], "the recipe")
    raw, workspace = Path(order["raw"]), Workspace(order["workspace"])
    steps = 0

    def count(event: str, _: object) -> None:
        nonlocal steps
        if event.startswith(STEPS) and event != "os.kill":
            steps += 1
            os.write(pipe, b"step\n")
            if 0 < order["kill_at"] <= steps:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        if "forget" in order:
            forget(recipe, order["forget"], workspace, raw)
        else:
            ingest(recipe, raw, workspace, use_ray=False, **order.get("options", {}))
        ended = "done"
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}".replace("\n", " ")
    os.write(pipe, ended.encode())
    os._exit(0)


if __name__ == "__main__":
    serve_orders()
