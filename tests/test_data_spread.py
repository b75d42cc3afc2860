"""Where calls run: threads here or tasks of Ray Data give the same results, in order, and the same errors."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from llmrec_ray.data.spread import HERE_GB, RAY_GB, TASK_GB, Spread
from llmrec_ray.errors import ClusterError, DataError


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    if number in (3, 5):
        raise DataError(f"{number} cannot be used: leave it out.")
    return number


def fill_the_disk(number: int, *, error: type[Exception]) -> int:
    raise error(errno.ENOSPC, "No space left on device") if error is OSError else error("No space left on device")


def open_missing(number: int) -> int:
    return len(Path("/nowhere/range.arrow").read_bytes())


def die_once(number: int, *, folder: Path) -> int:
    marker = folder / f"{number}"
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture(params=["threads", "one", "ray", "ray in two blocks"])
def spread(request) -> Spread:
    if request.param.startswith("ray"):
        request.getfixturevalue("ray_session")
        return Spread.on_ray(4.0, num_blocks=2 if request.param.endswith("blocks") else None)
    return Spread(use_ray=False, max_tasks=3 if request.param == "threads" else 1)


def test_results_come_in_the_order_of_the_calls(spread):
    assert spread.map(double, range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert spread.map(double, []) == []


def test_the_first_call_that_is_refused_ends_it(spread):
    with pytest.raises(DataError, match=r"^3 cannot be used: leave it out\.$"):
        spread.map(refuse, range(8))


@pytest.mark.parametrize("error", [OSError, pl.exceptions.ComputeError])
def test_a_full_disk_is_told_from_other_errors_on_ray(ray_session, error):
    with pytest.raises(OSError, match="No space left on device") as full:
        Spread.on_ray(4.0).map(partial(fill_the_disk, error=error), [1])
    assert full.value.errno == errno.ENOSPC


def test_a_machine_that_does_not_see_the_scratch_folder_is_named(ray_session):
    with pytest.raises(ClusterError) as unseen:
        Spread.on_ray(4.0).map(open_missing, [1, 2])
    assert str(unseen.value).endswith(
        "does not see /nowhere/range.arrow: the machines of a cluster share intermediate files, so set data.scratch to "
        "a folder that all of them see."
    )
    assert str(unseen.value).startswith("A task on ")


def test_what_arrow_does_not_see_is_named_too(ray_session):
    with pytest.raises(ClusterError, match=r"does not see .*/nowhere/range\.arrow.*: the machines of a cluster share"):
        Spread.on_ray(4.0).map(pl.read_ipc, ["/nowhere/range.arrow"])


def test_a_task_that_is_killed_is_run_again(ray_session, tmp_path):
    assert Spread.on_ray(4.0).map(partial(die_once, folder=tmp_path), range(4)) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_less_memory_means_fewer_tasks_at_once_and_never_none(ray_session):
    cores = os.cpu_count() or 1
    assert Spread.on_ray(1000.0).max_tasks == cores
    assert Spread.here(1000.0).max_tasks == cores
    assert Spread.on_ray(RAY_GB + 1.5 * TASK_GB).max_tasks == Spread.here(HERE_GB + 1.5 * TASK_GB).max_tasks == 1
    assert Spread.on_ray(0.1).max_tasks == Spread.here(0.1).max_tasks == 1


def test_every_machine_of_a_cluster_counts_with_its_own_cores_and_memory(monkeypatch, ray_session):
    sizes = {"large": 64.0, "small": 1.0, "gone": 64.0}
    nodes = [{"NodeID": name, "Alive": name != "gone", "Resources": {"CPU": n}} for name, n in sizes.items()]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"NodeID": "head", "Alive": True, "Resources": {}}])
    assert Spread.on_ray(1000.0).max_tasks == 65
    assert Spread.on_ray(RAY_GB + 3.5 * TASK_GB).max_tasks == 4
