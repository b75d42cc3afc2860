import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmrec_ray.arrays import extended, map_arrays
from llmrec_ray.errors import CorruptArtifactError

ARRAYS = {
    "vectors": np.arange(12, dtype=np.float32).reshape(3, 4),
    "rows": np.array([3, -1, 2], np.int64),
    "marks": np.array([True, False, True]),
    "nothing": np.empty((0, 5), np.float32),
    "number": np.array(2.5, np.float64),
}


@pytest.fixture
def path(tmp_path):
    save_file(ARRAYS, tmp_path / "arrays.safetensors", metadata={"made_by": "a test"})
    return tmp_path / "arrays.safetensors"


def test_mapped_arrays_are_those_that_a_full_read_gives(path):
    mapped, read = map_arrays(path), load_file(path)
    assert mapped.keys() == read.keys()
    for name, array in read.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


def test_mapped_arrays_cannot_be_written_to(path):
    with pytest.raises(ValueError, match="read-only"):
        map_arrays(path)["vectors"][0, 0] = 1


def test_mapped_arrays_live_as_long_as_someone_holds_one(path):
    vectors = map_arrays(path)["vectors"]
    path.unlink()
    assert vectors.sum() == ARRAYS["vectors"].sum()


def test_mapping_reads_no_more_than_is_touched(tmp_path):
    big = np.zeros((64, 1024, 1024), np.uint8)
    save_file({"big": big}, tmp_path / "big.safetensors")
    before = _resident_bytes()
    mapped = map_arrays(tmp_path / "big.safetensors")["big"]
    assert mapped[7, 0, 0] == 0
    assert _resident_bytes() - before < big.nbytes / 2


@pytest.mark.parametrize(("size", "reason"), [(0, "empty file"), (5, "it has 5 bytes"), (40, "its header needs"),
                                              (-1, r"bytes \d+ to \d+ of \d+ cannot be")])
def test_a_file_that_was_cut_short_is_named(path, size, reason):
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(CorruptArtifactError, match=rf"arrays\.safetensors cannot be read \(.*{reason}.*\): restore it"):
        map_arrays(path)


def test_a_file_of_another_kind_and_a_missing_one_are_named(tmp_path):
    (tmp_path / "text.safetensors").write_bytes((4).to_bytes(8, "little") + b"text")
    for name in ("text.safetensors", "none.safetensors"):
        with pytest.raises(CorruptArtifactError, match=rf"{name} cannot be read \(.*\): restore it or make it again\."):
            map_arrays(tmp_path / name)


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("n_more", [0, 1, 5000])
@pytest.mark.parametrize("name", ["vectors", "rows", "nothing"])
def test_an_extended_array_is_the_mapped_one_with_more_rows_after_it(path, name, n_more):
    mapped = map_arrays(path)
    more = np.full((n_more, *mapped[name].shape[1:]), 7, mapped[name].dtype)
    longer = extended(mapped[name], more)
    np.testing.assert_array_equal(longer, np.concatenate([ARRAYS[name], more]))
    assert longer.dtype == mapped[name].dtype
    for other, array in ARRAYS.items():
        np.testing.assert_array_equal(mapped[other], array, err_msg=other)


def test_extending_costs_memory_for_the_new_rows_alone(tmp_path):
    big = np.random.default_rng(0).random((50_000, 128), np.float32)
    save_file({"first": np.zeros(3, np.float32), "big": big}, tmp_path / "big.safetensors")
    mapped = map_arrays(tmp_path / "big.safetensors")["big"]
    assert float(mapped.sum()) > 0.0
    before = own_memory_mb()
    versions = [extended(mapped, np.ones((n, 128), np.float32)) for n in range(1, 21)]
    assert {float(version[:50_000].sum()) for version in versions} == {float(mapped.sum())}
    assert own_memory_mb() - before < 5.0 < 20 * big.nbytes / 1e6
    assert all((version[50_000:] == 1.0).all() for version in versions)


def test_memory_of_extended_arrays_goes_with_the_last_view_of_them(path):
    mapped = map_arrays(path)["vectors"]

    def maps() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    longer = extended(mapped, np.ones((2, 4), np.float32))
    before = maps()
    for _ in range(50):
        view = extended(mapped, np.ones((100_000, 4), np.float32))[5:]
        assert view[0, 0] == 1.0
    del view
    assert maps() <= before + 2
    np.testing.assert_array_equal(longer[:3], ARRAYS["vectors"])


def test_an_extended_array_can_be_extended_and_never_written(path):
    longer = extended(extended(map_arrays(path)["vectors"], np.ones((1, 4), np.float32)), np.zeros((1, 4), np.float32))
    np.testing.assert_array_equal(longer[3:], [[1.0] * 4, [0.0] * 4])
    with pytest.raises(ValueError, match="read-only"):
        extended(map_arrays(path)["vectors"], np.ones((1, 4), np.float32))[0, 0] = 1.0


def test_an_array_whose_file_is_gone_or_that_never_had_one_is_copied(path):
    mapped = map_arrays(path)["vectors"]
    path.unlink()
    for array in (mapped, ARRAYS["vectors"], map_columns(mapped)):
        longer = extended(array, np.ones((2, array.shape[1]), np.float32))
        np.testing.assert_array_equal(longer, np.concatenate([array, np.ones((2, array.shape[1]), np.float32)]))


def test_an_extended_array_can_be_read_to_the_very_end_of_a_process(path):
    program = f"""
import atexit
import numpy as np
import subprocess
import sys
from pathlib import Path
from llmrec_ray.arrays import extended, map_arrays
atexit.register(lambda: print(longer.sum()))
longer = extended(map_arrays(Path({str(path)!r}))["vectors"], np.ones((2, 4), np.float32))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(ARRAYS["vectors"].sum() + 8)), ended.stderr


def map_columns(array: np.ndarray) -> np.ndarray:
    return array[:, :2]


def own_memory_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1000
