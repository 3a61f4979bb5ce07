"""docs/formats.md suffices: a reader written from it alone reads what foveal writes."""

from __future__ import annotations

import json
import struct

import google_crc32c
import numpy as np
import pytest
import torch

from foveal.checkpoints.layout import write_checkpoint

# ---- the reader: json, struct, numpy and google_crc32c, and what docs/formats.md says

DTYPES = {"U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8", "F32": "<f4", "U32": "<u4", "I32": "<i4"}
DTYPES |= {"BF16": "<u2", "F16": "<f2", "U16": "<u2", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def checked(raw, digits, what):
    if f"{google_crc32c.value(raw):08x}" != digits:
        raise ValueError(f"{what} is damaged")
    return raw


def read_tensors(raw, crcs):
    (length,) = struct.unpack("<Q", raw[:8])
    header, tensors = json.loads(raw[8 : 8 + length]), {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(checked(raw[begin:end], crcs[name], name), DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def read_folder(folder):
    raw = (folder / "manifest.json").read_bytes()
    checked(raw[:-12], raw[-12:-4].decode(), "manifest.json")
    manifest = json.loads(raw)
    if (manifest["format"], manifest["version"]) != ("foveal-checkpoint", 1):
        raise ValueError("not a checkpoint of version 1")
    result = {}
    for name, entry in manifest["files"].items():
        raw = checked((folder / name).read_bytes(), entry["crc32c"], name)
        result[name] = read_tensors(raw, entry["tensors"]) if "tensors" in entry else json.loads(raw)
    return result


# ---- its tests

TENSORS = {
    "model": {"weight": torch.randn(3, 4), "steps": torch.tensor(5), "empty": torch.zeros(0, 2)},
    "ema": {"weight": torch.tensor([1.5, -3.0], dtype=torch.bfloat16), "on": torch.tensor([True, False])},
    "optimizer": {
        str(dtype): torch.tensor([0, 1, 2, 3]).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.complex64, torch.uint16, torch.int8, torch.uint64)
    },
}


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "x", TENSORS, {"step": 5, "name": "é"})
    return tmp_path / "x"


def test_reader_written_from_the_document_reads_a_checkpoint(folder):
    read = read_folder(folder)
    assert read.pop("state.json") == {"step": 5, "name": "é"}
    assert read.keys() == {f"{part}.safetensors" for part in TENSORS}
    for part, tensors in TENSORS.items():
        arrays = read[f"{part}.safetensors"]
        assert arrays.keys() == tensors.keys()
        for name, tensor in tensors.items():
            expected = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
            assert np.array_equal(arrays[name], expected.numpy())
            assert arrays[name].dtype == expected.numpy().dtype


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_reader_written_from_the_document_notices_damage(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_folder(folder)


def test_end_of_a_manifest_is_as_the_document_says(folder):
    raw = (folder / "manifest.json").read_bytes()
    assert raw[-4:] == b'"\n}\n'
    assert raw[:-12].endswith(b',\n  "crc32c": "')
    assert len(b',\n  "crc32c": "') == 15
