"""Each way in which a tensor file can be malformed is refused by name, with its place."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from foveal.checkpoints.tensor_file import read_header, read_tensor_file
from foveal.errors import DamagedCheckpointError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refused(tmp_path, content, *texts):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (read_tensor_file, read_header):
        with pytest.raises(DamagedCheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        for text in texts:
            assert text in message


def test_file_shorter_than_its_first_field(tmp_path):
    refused(tmp_path, b"\x08\0\0", "byte 3", "too short")


def test_empty_file(tmp_path):
    refused(tmp_path, b"", "byte 0", "too short")


def test_header_length_beyond_the_file(tmp_path):
    refused(tmp_path, raw_file(b"{}", length=11), "byte 0", "header of 11 bytes reaches beyond the end")


def test_header_length_beyond_the_limit(tmp_path):
    refused(tmp_path, raw_file(b"{}", length=100_000_001), "byte 0", "beyond the limit")


def test_header_length_of_64_bits(tmp_path):
    refused(tmp_path, raw_file(b"{}", length=(1 << 64) - 1), "byte 0", "beyond the limit")


def test_header_of_no_bytes(tmp_path):
    refused(tmp_path, raw_file(b"", b""), "byte 8", "not JSON")


def test_header_not_utf8(tmp_path):
    refused(tmp_path, raw_file(b'{"\xff":1}'), "byte 8", "not JSON", "utf-8")


def test_header_in_utf16(tmp_path):
    refused(tmp_path, raw_file("{}".encode("utf-16")), "not JSON")


def test_header_not_json(tmp_path):
    refused(tmp_path, raw_file(b"{'a':1}"), "byte 8", "not JSON")


def test_header_not_an_object(tmp_path):
    refused(tmp_path, raw_file(b"[]", b""), "not a JSON object")


def test_header_with_spaces_before_it(tmp_path):
    refused(tmp_path, raw_file(b" {}", b""), "not a JSON object")


def test_header_with_a_name_twice(tmp_path):
    entry = json.dumps(F32)
    refused(tmp_path, raw_file(f'{{"a":{entry},"a":{entry}}}'.encode()), "key 'a' occurs twice")


def test_header_nested_too_deep(tmp_path):
    refused(tmp_path, raw_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep")


def test_header_with_nan(tmp_path):
    refused(tmp_path, raw_file(b'{"a":NaN}'), "NaN is not a JSON number")


def test_header_with_a_number_of_too_many_digits(tmp_path):
    refused(tmp_path, raw_file(b'{"a":' + b"9" * 5000 + b"}"), "not JSON")


def test_header_with_an_infinite_number(tmp_path):
    refused(tmp_path, raw_file(b'{"a":1e999}'), "too large")


def test_name_that_is_half_a_character(tmp_path):
    refused(tmp_path, raw_file(b'{"\\ud800":' + json.dumps(F32).encode() + b"}"), r"'\ud800'", "surrogates")


def test_metadata_not_an_object(tmp_path):
    refused(tmp_path, raw_file({"__metadata__": [], "a": F32}), "metadata")


def test_metadata_not_texts(tmp_path):
    refused(tmp_path, raw_file({"__metadata__": {"a": 1}, "a": F32}), "metadata")


def test_entry_not_an_object(tmp_path):
    refused(tmp_path, raw_file({"a": [1]}), "tensor 'a'", "fields")


def test_entry_lacking_a_field(tmp_path):
    refused(tmp_path, raw_file({"a": {"dtype": "F32", "shape": [2]}}), "tensor 'a'", "fields")


def test_entry_with_a_field_too_many(tmp_path):
    refused(tmp_path, raw_file({"a": F32 | {"device": "cpu"}}), "tensor 'a'", "fields")


@pytest.mark.parametrize("dtype", ["F33", "f32", "", 1, None, ["F32"], {}])
def test_unknown_dtype(tmp_path, dtype):
    refused(tmp_path, raw_file({"a": F32 | {"dtype": dtype}}), "tensor 'a'", "unknown dtype")


@pytest.mark.parametrize(
    "shape", [[-2], [2.0], [True, 2], ["2"], [[2]], [None], [1 << 63], 2, None, {"0": 2}]
)
def test_shape_not_a_list_of_sizes(tmp_path, shape):
    refused(
        tmp_path, raw_file({"a": F32 | {"shape": shape}}), "tensor 'a'", "the shape is not a list of sizes"
    )


def test_shape_of_too_many_dimensions(tmp_path):
    refused(tmp_path, raw_file({"a": F32 | {"shape": [2] + [1] * 64}}), "tensor 'a'", "shape")


def test_shape_that_overflows(tmp_path):
    refused(tmp_path, raw_file({"a": F32 | {"shape": [1 << 32, 1 << 32]}}), "tensor 'a'", "overflows")


def test_empty_shape_with_strides_that_overflow(tmp_path):
    entry = {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}
    refused(tmp_path, raw_file({"a": entry}, b""), "tensor 'a'", "overflows")


@pytest.mark.parametrize(
    "offsets", [[8, 0], [-8, 0], [0], [0, 8, 8], [0, 8.0], [False, 8], "08", None, [0, "8"], [0, 1 << 63]]
)
def test_offsets_not_a_range(tmp_path, offsets):
    refused(tmp_path, raw_file({"a": F32 | {"data_offsets": offsets}}), "tensor 'a'", "data_offsets")


def test_size_not_that_of_shape_and_dtype(tmp_path):
    refused(
        tmp_path, raw_file({"a": F32 | {"shape": [3]}}), "tensor 'a'", "8 bytes, but shape and dtype make 12"
    )


def test_offsets_beyond_the_file(tmp_path):
    content = raw_file({"a": F32}, b"\0" * 7)
    refused(tmp_path, content, f"byte {len(content) - 7}", "tensor 'a'", "beyond the end of the file")


def test_overlapping_tensors(tmp_path):
    content = raw_file({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, b"\0" * 12)
    refused(tmp_path, content, f"byte {len(content) - 8}", "tensor 'b' overlaps")


def test_tensors_in_the_same_place(tmp_path):
    refused(tmp_path, raw_file({"a": F32, "b": F32}), "tensor 'b' overlaps")


def test_hole_between_tensors(tmp_path):
    content = raw_file({"a": F32, "b": F32 | {"data_offsets": [9, 17]}}, b"\0" * 17)
    refused(tmp_path, content, f"byte {len(content) - 9}", "a hole before tensor 'b'")


def test_hole_before_the_first_tensor(tmp_path):
    refused(tmp_path, raw_file({"a": F32 | {"data_offsets": [1, 9]}}, b"\0" * 9), "a hole before tensor 'a'")


def test_bytes_after_the_last_tensor(tmp_path):
    content = raw_file({"a": F32}, b"\0" * 11)
    refused(tmp_path, content, f"byte {len(content) - 3}", "3 bytes follow the last tensor")


def test_bytes_without_any_tensor(tmp_path):
    refused(tmp_path, raw_file(b"{}", b"\0"), "1 bytes follow")


def test_bool_neither_true_nor_false(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(raw_file({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\x01\x02"))
    with pytest.raises(
        DamagedCheckpointError, match="tensor 'a' holds bytes that are neither true nor false"
    ):
        read_tensor_file(path)


def test_file_too_large_to_believe_reserves_no_memory(tmp_path):
    entry = {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}
    refused(tmp_path, raw_file({"a": entry}), "beyond the end of the file")


def test_well_formed_control_is_read(tmp_path):
    (tmp_path / "x").write_bytes(raw_file({"a": F32}))
    assert torch.equal(read_tensor_file(tmp_path / "x")["a"], torch.zeros(2))


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F64", "shape": [1], "data_offsets": [1, 9]},
        "c": {"dtype": "C64", "shape": [0], "data_offsets": [1, 1]},
    }
    (tmp_path / "x").write_bytes(raw_file(header, b"\x07" + np.float64(2.5).tobytes()))
    read = read_tensor_file(tmp_path / "x")
    assert (read["a"].item(), read["b"].item(), read["c"].numel()) == (7, 2.5, 0)
