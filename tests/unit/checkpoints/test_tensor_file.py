from __future__ import annotations

import errno
import math
import os

import google_crc32c
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import files
from foveal.checkpoints import tensor_file, tensor_header
from foveal.checkpoints.checksum import crc32c, joined_crc
from foveal.checkpoints.tensor_file import TensorInfo, read_header, read_tensor_file, write_tensor_file
from foveal.checkpoints.tensor_header import DTYPES
from foveal.errors import CheckpointError, DamagedCheckpointError


def same(first, second):
    """By bytes, so that NaN equals itself."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first, second = (
        value.detach().resolve_conj().contiguous().as_strided((value.numel(),), (1,)).view(torch.uint8)
        for value in (first, second)
    )
    return torch.equal(first, second)


def all_dtypes():
    bits = torch.randint(0, 2, (3, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {code: bits.view(dtype).clone() for code, dtype in DTYPES.items()}


# ---- what is written


def test_bytes_of_a_file_are_as_specified(tmp_path):
    tensors = {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor(1.5), "é": torch.zeros(0, 3)}
    summary = write_tensor_file(tmp_path / "x", tensors)
    header = (
        '{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        '"é":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},'
        '"b":{"dtype":"I16","shape":[1,2],"data_offsets":[4,8]}}    '
    ).encode()
    golden = b"\xa8\0\0\0\0\0\0\0" + header + b"\x00\x00\xc0\x3f" + b"\x01\x00\x02\x00"
    content = (tmp_path / "x").read_bytes()
    assert content == golden
    assert summary.size == len(golden)
    assert summary.crc32c == google_crc32c.value(golden)
    assert summary.tensors == {
        "a": google_crc32c.value(b"\x00\x00\xc0\x3f"),
        "b": google_crc32c.value(b"\x01\x00\x02\x00"),
        "é": 0,
    }


def test_file_is_byte_for_byte_the_one_the_library_writes(tmp_path):
    tensors = {**all_dtypes(), "empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "ünï": torch.ones(3)}
    write_tensor_file(tmp_path / "ours", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_library_reads_what_we_write(tmp_path):
    tensors = all_dtypes()
    write_tensor_file(tmp_path / "x", tensors, {"made by": "foveal"})
    read = safetensors.torch.load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(same(read[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"made by": "foveal"}


def test_we_read_what_the_library_writes(tmp_path):
    tensors = all_dtypes()
    safetensors.torch.save_file(tensors, tmp_path / "x", {"format": "pt"})
    read = read_tensor_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(same(read[name], tensors[name]) for name in tensors)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tensor_comes_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "x"
    tensors = {}
    for name in data.draw(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), max_size=4)):
        dtype = data.draw(st.sampled_from(list(DTYPES.values())))
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        raw = data.draw(st.binary(min_size=16, max_size=16))
        raw = bytes(byte & 1 for byte in raw) if dtype is torch.bool else raw
        nbytes = math.prod(shape) * dtype.itemsize
        content = torch.frombuffer(bytearray(raw * (nbytes // 16 + 1)), dtype=torch.uint8)
        tensor = content[:nbytes].view(dtype).view(shape)
        form = data.draw(st.sampled_from(["plain", "transposed", "strided", "expanded"]))
        if form == "transposed":
            tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
        elif form == "strided" and tensor.dim():
            tensor = tensor[::2]
        elif form == "expanded":
            tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
        tensors[name] = tensor
    tensors.pop("__metadata__", None)
    summary = write_tensor_file(path, tensors)
    content = path.read_bytes()
    assert (summary.size, summary.crc32c) == (len(content), google_crc32c.value(content))
    read = read_tensor_file(path, expected=summary)
    assert read.keys() == tensors.keys()
    assert all(same(read[name], tensors[name]) for name in tensors)
    library = safetensors.torch.load_file(path)
    assert all(same(library[name], tensors[name]) for name in tensors)
    for name, info in read_header(path).items():
        assert info.offset % info.dtype.itemsize == 0
        assert google_crc32c.value(content[info.offset : info.offset + info.nbytes]) == summary.tensors[name]


def test_tensor_larger_than_a_chunk_comes_back_with_its_checksums(tmp_path):
    tensors = {"big": torch.randn(1_000_003), "flag": torch.tensor([True])}
    summary = write_tensor_file(tmp_path / "x", tensors)
    assert summary.crc32c == google_crc32c.value((tmp_path / "x").read_bytes())
    assert summary.tensors["big"] == google_crc32c.value(tensors["big"].numpy().tobytes())
    assert torch.equal(read_tensor_file(tmp_path / "x", expected=summary)["big"], tensors["big"])


def test_views_parameters_channels_last_and_shared_memory_are_written_by_value(tmp_path):
    base = torch.randn(2, 3, 4, 5)
    tensors = {
        "parameter": torch.nn.Parameter(base),
        "channels_last": base.to(memory_format=torch.channels_last),
        "row": base[1],
        "shared": base,
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
    }
    write_tensor_file(tmp_path / "x", tensors)
    read = read_tensor_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(tensor.is_contiguous() for tensor in read.values())


def test_tensors_read_are_writable_and_apart(tmp_path):
    write_tensor_file(tmp_path / "x", {"a": torch.zeros(3), "b": torch.zeros(5)})
    read = read_tensor_file(tmp_path / "x")
    read["a"].fill_(1)
    assert read["b"].sum() == 0
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())


def test_file_without_tensors_comes_back(tmp_path):
    summary = write_tensor_file(tmp_path / "x", {})
    assert (tmp_path / "x").read_bytes() == b"\x08\0\0\0\0\0\0\0{}      "
    assert read_tensor_file(tmp_path / "x", expected=summary) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensor_on_an_accelerator_is_written(tmp_path):
    tensor = torch.randn(3, 4, device="cuda").t()
    write_tensor_file(tmp_path / "x", {"a": tensor})
    assert torch.equal(read_tensor_file(tmp_path / "x")["a"], tensor.cpu())


@pytest.mark.parametrize(
    ("tensors", "metadata", "text"),
    [
        ({"": torch.zeros(1)}, None, "cannot be named ''"),
        ({"__metadata__": torch.zeros(1)}, None, "cannot be named"),
        ({1: torch.zeros(1)}, None, "cannot be named 1"),
        ({"\ud800": torch.zeros(1)}, None, "not valid Unicode"),
        ({"a": 1.0}, None, "'a' is a float"),
        ({"a": torch.zeros(1, device="meta")}, None, "meta"),
        ({"a": torch.zeros(2, 2).to_sparse()}, None, "sparse"),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, None, "complex128"),
        ({"a": torch.zeros(1)}, {"x": 1}, "metadata"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_a_file_is_made(tmp_path, tensors, metadata, text):
    with pytest.raises(CheckpointError, match=text):
        write_tensor_file(tmp_path / "x", tensors, metadata)
    assert not list(tmp_path.iterdir())


def test_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_tensor_file(tmp_path / "x", {})
    assert (tmp_path / "x").read_bytes() == b"precious"


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_tensor_file(tmp_path / "x", {"a": torch.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_short_writes_are_continued(tmp_path, monkeypatch):
    class Reluctant:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            return self.file.write(content[:3])

    def write_all(file, content):
        original(Reluctant(file), content)

    original = files.write_all
    monkeypatch.setattr(files, "write_all", write_all)
    summary = write_tensor_file(tmp_path / "x", {"a": torch.arange(10)})
    assert torch.equal(read_tensor_file(tmp_path / "x", expected=summary)["a"], torch.arange(10))


# ---- reading a part of a file, and describing it


def test_header_describes_without_reading(tmp_path):
    write_tensor_file(tmp_path / "x", {"a": torch.zeros(2, 3, dtype=torch.float16), "b": torch.zeros(())})
    header = read_header(tmp_path / "x")
    start = (tmp_path / "x").stat().st_size - 16
    assert header == {
        "b": TensorInfo(torch.float32, (), start, 4),
        "a": TensorInfo(torch.float16, (2, 3), start + 4, 12),
    }


def test_only_the_named_tensors_are_read(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.randn(6), "c": torch.randn(7)}
    summary = write_tensor_file(tmp_path / "x", tensors)
    offset = read_header(tmp_path / "x")["b"].offset
    with (tmp_path / "x").open("r+b") as file:
        file.seek(offset)
        file.write(b"damage")
    read = read_tensor_file(tmp_path / "x", expected=summary, names=["c", "a", "a"])
    assert read.keys() == {"a", "c"}
    assert all(torch.equal(read[name], tensors[name]) for name in read)
    for names in (None, ["b"]):
        with pytest.raises(DamagedCheckpointError, match=f"byte {offset}: the bytes of tensor 'b'"):
            read_tensor_file(tmp_path / "x", expected=summary, names=names)


def test_header_is_verified_even_when_few_tensors_are_read(tmp_path):
    summary = write_tensor_file(tmp_path / "x", {"a": torch.zeros(4), "b": torch.zeros(4)})
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content.replace(b"F32", b"I32", 1))
    for names in (None, ["a"], ["b"], []):
        with pytest.raises(DamagedCheckpointError, match="header is not the one that was written"):
            read_tensor_file(tmp_path / "x", expected=summary, names=names)


def test_file_with_other_tensors_than_expected_is_damaged(tmp_path):
    summary = write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    write_tensor_file(tmp_path / "y", {"b": torch.zeros(4)})
    with pytest.raises(DamagedCheckpointError, match="tensors are not those that were written"):
        read_tensor_file(tmp_path / "y", expected=summary)


def test_file_of_another_size_than_expected_is_damaged(tmp_path):
    summary = write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    write_tensor_file(tmp_path / "y", {"a": torch.zeros(5)})
    with pytest.raises(DamagedCheckpointError, match=r"has \d+ bytes, \d+ were written"):
        read_tensor_file(tmp_path / "y", expected=summary)


def test_unknown_tensor_name_is_named(tmp_path):
    write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="no tensor is named 'z'"):
        read_tensor_file(tmp_path / "x", names=["a", "z"])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing.*No such file"):
        read_tensor_file(tmp_path / "nothing")


def test_link_is_followed_unless_in_a_checkpoint(tmp_path):
    write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    (tmp_path / "link").symlink_to("x")
    assert read_tensor_file(tmp_path / "link").keys() == {"a"}
    with pytest.raises(DamagedCheckpointError, match="link"):
        read_tensor_file(tmp_path / "link", member=True)


def test_folder_is_not_read(tmp_path):
    with pytest.raises(DamagedCheckpointError, match="Is a directory"):
        read_tensor_file(tmp_path)


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedCheckpointError, match="not a regular file"):
        read_tensor_file(tmp_path / "pipe")


def test_lack_of_memory_is_named(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    write_tensor_file(tmp_path / "x", {})
    monkeypatch.setattr(tensor_file, "_load_header", lambda *_: {})
    monkeypatch.setattr(tensor_file.np, "empty", no_memory)
    with pytest.raises(CheckpointError, match="bytes of memory are needed"):
        read_tensor_file(tmp_path / "x")


def test_file_that_shrinks_while_it_is_read_is_damaged(tmp_path, monkeypatch):
    write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    header = read_header(tmp_path / "x")
    monkeypatch.setattr(tensor_file, "_load_header", lambda *_: header)
    os.truncate(tmp_path / "x", header["a"].offset + 5)
    with pytest.raises(DamagedCheckpointError, match=f"byte {header['a'].offset + 5}: the file ended"):
        read_tensor_file(tmp_path / "x")


def test_unreadable_sector_is_damage(tmp_path, monkeypatch):
    def bad_sector(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    write_tensor_file(tmp_path / "x", {"a": torch.zeros(4)})
    monkeypatch.setattr(tensor_file, "_read_into", bad_sector)
    with pytest.raises(DamagedCheckpointError, match="Input/output error"):
        read_tensor_file(tmp_path / "x")


# ---- checksums


def test_crc_of_the_standard_text():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(np.frombuffer(b"456789", np.uint8), crc32c(b"123")) == 0xE3069283


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_joined_crc_is_the_crc_of_the_whole(first, second):
    assert joined_crc(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


def test_every_dtype_the_library_shares_with_torch_is_known():
    plain = {dtype for dtype in safetensors.torch._TYPES.values() if "float8" not in str(dtype)}
    assert plain <= set(DTYPES.values())
    assert set(tensor_header._RANKS) == set(DTYPES.values())
