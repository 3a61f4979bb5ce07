from __future__ import annotations

import sys

import numpy as np
import pytest

from foveal.errors import DataError
from foveal.tensorflow import example, example_scan, records
from foveal.tensorflow.example import FixedLength, VariableLength, build_example, parse_batch
from foveal.tensorflow.record_writer import RecordWriter
from foveal.tensorflow.records import RecordBlock, RecordFile, read_blocks

USUAL = [build_example({"i": [each, -each], "f": each / 2, "b": bytes([each])}) for each in range(3)]
WANTED = {
    "i": FixedLength((2,), np.int64),
    "f": VariableLength(np.float32),
    "b": FixedLength((), bytes),
    "none": FixedLength((2,), bytes, default=[b"x", b"y\0"]),
}


def delimited(tag, content):
    """A protobuf field of wire type 2; short ones only."""
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


def of_feature(feature, name=b"i"):
    """An Example with one feature, given as bytes."""
    return delimited(0x0A, delimited(0x0A, delimited(0x0A, name) + delimited(0x12, feature)))


def scanned(record, dtype=np.int64):
    """What the scanner makes of a feature; None where it gives up."""
    columns = example_scan.parse(RecordBlock.of([record]), {"i": VariableLength(dtype)})
    return None if columns is None else columns["i"].values.tolist()


class TestTheScanner:
    def test_gives_the_columns(self):
        columns = example_scan.parse(RecordBlock.of(USUAL), WANTED)
        assert columns["i"].tolist() == [[0, 0], [1, -1], [2, -2]]
        assert columns["f"].values.tolist() == [0, 0.5, 1]
        assert columns["f"].row_splits.tolist() == [0, 1, 2, 3]
        assert columns["b"].tolist() == [b"\0", b"\1", b"\2"]
        assert columns["none"].tolist() == [[b"x", b"y\0"]] * 3

    @pytest.mark.parametrize(
        ("feature", "dtype", "values"),
        [
            (delimited(0x1A, delimited(0x0A, b"\x01\xff\x01")), np.int64, [1, 255]),
            (delimited(0x1A, b"\x08\x01\x08\x02"), np.int64, [1, 2]),
            (
                delimited(0x1A, b"\x08\x01" + delimited(0x0A, b"\x02\x03") + b"\x08\x04"),
                np.int64,
                [1, 2, 3, 4],
            ),
            (delimited(0x1A, b"\x08" + b"\xff" * 9 + b"\x01"), np.int64, [-1]),
            (delimited(0x1A, b"\x08\x81\x80\x00"), np.int64, [1]),
            (delimited(0x12, b"\x0d\0\0\x80\x3f" + delimited(0x0A, b"\0\0\0\x40")), np.float32, [1, 2]),
            (delimited(0x0A, delimited(0x0A, b"x") + delimited(0x0A, b"")), bytes, [b"x", b""]),
            (delimited(0x1A, b""), np.int64, []),
            (b"", np.int64, []),
        ],
    )
    def test_understands_every_form_of_a_list(self, feature, dtype, values):
        assert scanned(of_feature(feature), dtype) == values

    @pytest.mark.parametrize(
        "record",
        [
            of_feature(delimited(0x1A, b"\x08" + b"\xff" * 9 + b"\x02")),  # more than 64 bits
            of_feature(delimited(0x1A, b"\x08\xff")),
            of_feature(delimited(0x1A, delimited(0x0A, b"\xff"))),
            of_feature(delimited(0x12, delimited(0x0A, b"abc"))),
            of_feature(delimited(0x1A, b"") + delimited(0x0A, b"")),
            of_feature(delimited(0x1A, b"\x10\x01")),
            of_feature(delimited(0x22, b"")),
            of_feature(b"", b"\xff"),
            of_feature(b"", "é".encode()),
            of_feature(b"")[:-1],
            of_feature(b"") + b"\x10\x01",
            delimited(0x0A, delimited(0x0A, delimited(0x12, b""))),
            b"\x0a\x80\x00",
        ],
    )
    def test_gives_up_at_what_is_unusual_or_wrong(self, record):
        assert scanned(record) is None

    @pytest.mark.parametrize(
        "wanted",
        [
            FixedLength((3,), np.int64),
            FixedLength((2,), np.float32),
            VariableLength(bytes),
            {"missing": FixedLength((), bytes)},
            {"\udcff": VariableLength(bytes)},
        ],
    )
    def test_leaves_errors_to_the_library(self, wanted):
        wanted = wanted if isinstance(wanted, dict) else {"i": wanted}
        assert example_scan.parse(RecordBlock.of(USUAL), wanted) is None


class TestWithoutNumba:
    @pytest.fixture(autouse=True)
    def _no_numba(self, monkeypatch):
        for name in ("example_scan", "record_scan"):
            monkeypatch.setitem(sys.modules, f"foveal.tensorflow.{name}", None)
        for module in (example, records):
            monkeypatch.setattr(module, "_scanner", module._scanner.__wrapped__)

    def test_records_are_read_and_parsed_all_the_same(self, tmp_path):
        with RecordWriter(tmp_path / "f") as writer:
            for each in USUAL:
                writer.write(each)
        (block,) = read_blocks(tmp_path / "f")
        assert list(block.records) == USUAL
        with RecordFile(tmp_path / "f") as file:
            columns = parse_batch(file.read_block([2, 0]), WANTED)
        assert columns["i"].tolist() == [[2, -2], [0, 0]]

    def test_damage_is_found_all_the_same(self, tmp_path):
        with RecordWriter(tmp_path / "f") as writer:
            for each in USUAL:
                writer.write(each)
        content = bytearray((tmp_path / "f").read_bytes())
        content[-5] ^= 1
        (tmp_path / "f").write_bytes(content)
        (block,) = read_blocks(tmp_path / "f", damaged="keep")
        assert block.intact.tolist() == [True, True, False]
        with pytest.raises(DataError, match="record 2"), RecordFile(tmp_path / "f") as file:
            file.read_block([0, 2])


def test_blocks_of_a_file_that_shrinks_meanwhile_are_an_error(tmp_path, monkeypatch):
    with RecordWriter(tmp_path / "f") as writer:
        writer.write(bytes(100))
        writer.write(bytes(100))
    monkeypatch.setattr(records, "_BLOCK", 150)
    blocks = read_blocks(tmp_path / "f")
    next(blocks)
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:140])
    with pytest.raises(DataError, match="record 1, at byte 116: cut off"):
        next(blocks)
