"""Reading many tensors of a bundle at once; what is true of one by one is in ``test_bundle.py``."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.tensorflow.bundle import Bundle
from foveal.tensorflow.bundle_writer import write_bundle

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
TENSORS = {  # of odd sizes, so that where one ends no other may begin
    "bits": np.array([True, False, True]),
    "bytes": np.arange(5, dtype=np.uint8),
    "complex": np.array([1 + 2j, 3j]),
    "empty": np.empty((0, 5), np.float32),
    "matrix": MATRIX,
    "scalar": np.array(2.5),
    "text": np.array([b"a", b"", b"\0" * 300], object),
    "words": np.arange(7, dtype=np.int16),
}


@pytest.fixture
def prefix(tmp_path):
    write_bundle(tmp_path / "b", TENSORS)
    return tmp_path / "b"


def same(found, expected):
    return list(found) == list(expected) and all(
        (array.dtype, array.shape, array.tolist())
        == (expected[name].dtype, expected[name].shape, expected[name].tolist())
        for name, array in found.items()
    )


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("group", [1, 60, 1 << 23])
def test_it_gives_what_was_written_in_memory_that_no_two_share(prefix, monkeypatch, threads, group):
    monkeypatch.setattr("foveal.tensorflow.bundle._GROUP", group)
    found = Bundle(prefix).read(threads=threads)
    assert same(found, TENSORS)
    assert all(each.flags.writeable and each.flags.aligned for each in found.values())
    for array in found.values():
        array[...] = array.flat[0] if array.size else 0
    for name, array in found.items():
        assert all(each == TENSORS[name].flat[0] for each in array.flat), name


@pytest.mark.parametrize("path", ["partitioned/model.ckpt-7", "sharded/model.ckpt-5"])
def test_slices_and_several_files_give_what_they_give_one_by_one(fixtures, path):
    bundle = Bundle(fixtures / path)
    assert same(bundle.read(), {name: bundle.get(name) for name in bundle.names()})


def test_the_order_is_the_one_asked_for(prefix):
    assert same(
        Bundle(prefix).read(["text", "bits", "matrix", "bits"]),
        {name: TENSORS[name] for name in ("text", "bits", "matrix")},
    )
    assert Bundle(prefix).read([]) == {}


def test_damage_of_any_is_said_as_one_by_one(tmp_path):
    write_bundle(tmp_path / "b", {"a": MATRIX, "b": MATRIX, "c": MATRIX})
    data = tmp_path / "b.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[50] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match="no tensor is named 'd'"):
        Bundle(tmp_path / "b").read(["a", "d"])
    with pytest.raises(DamagedCheckpointError, match=r"00001: byte 48: the checksum of tensor 'b' is"):
        Bundle(tmp_path / "b").read()
    data.write_bytes(content[:100])
    with pytest.raises(DamagedCheckpointError, match=r"00001: byte 100: it ends, and tensor 'c'"):
        Bundle(tmp_path / "b").read()


def test_too_little_memory_is_a_named_error(prefix, monkeypatch):
    monkeypatch.setattr("foveal.tensorflow.bundle._room", lambda _: 1 << 58)
    with pytest.raises(CheckpointError, match="the tensors do not fit in memory: free some"):
        Bundle(prefix).read()
    with pytest.raises(CheckpointError, match="tensor 'bits' does not fit in memory: free some"):
        Bundle(prefix).get("bits")
