from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmrec_ray.arrays import map_arrays
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
