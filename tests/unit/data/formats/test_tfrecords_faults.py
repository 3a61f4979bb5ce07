from __future__ import annotations

import errno
import io
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.privileges import as_ordinary_user

from foveal.data.formats.tfrecords import open_tfrecords
from foveal.data.source import Encoded
from foveal.errors import CorruptRecordError, DataError, ReadError
from foveal.tensorflow.example import build_example
from foveal.tensorflow.records import (
    RecordChecksumError,
    RecordError,
    RecordFile,
    TruncatedRecordError,
    frame,
    masked_crc,
)


def png(seed):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


FORMS = {
    "encoded": [build_example({"image": png(each), "label": each % 2}) for each in range(3)],
    "pixels": [build_example({"image": bytes([each] * 64), "label": each % 2}) for each in range(3)],
    "rows": [build_example({"features": [each, 0.5], "label": each % 2}) for each in range(3)],
}
form = pytest.mark.parametrize("records", FORMS.values(), ids=FORMS)


def content_of(records):
    return b"".join(map(frame, records))


def place(records, byte):
    """The number of the record that a byte of their file belongs to, and whether it is of its header."""
    start = 0
    for number, record in enumerate(records):
        if byte < start + len(record) + 16:
            return number, byte < start + 12
        start += len(record) + 16
    raise AssertionError


@pytest.fixture
def fixtures(shared_data):
    folder = shared_data.parent / "fixtures" / "tensorflow"
    if not folder.is_dir():
        pytest.skip(f"needs the files that TensorFlow wrote: there are none in {folder}")
    return folder


# The images of these files are random bytes, so one of their numbers serves.
ROWS = {"image": "", "features": {"rare": {"shape": [], "default": -1}}, "label": "image/class/text"}


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize("name", ["examples.tfrecord", "examples.tfrecord.gz", "examples.tfrecord.zlib"])
    def test_is_read(self, fixtures, name):
        source = open_tfrecords(fixtures / name, **ROWS).train
        assert len(source) == 57
        assert source.key(20) == f"{fixtures / name} record 20"
        assert len({*source.read(np.arange(57)).images.ravel().tolist()}) > 1

    def test_with_a_flipped_bit_is_indexed_and_the_record_is_an_error_when_it_is_read(self, fixtures):
        path = fixtures / "examples_flipped_record_20.tfrecord"
        source = open_tfrecords(path, **ROWS).train
        assert len(source) == 57
        with pytest.raises(
            CorruptRecordError, match=rf"^{path} record 20, at byte \d+: the checksum of its data"
        ):
            source.read(np.array([3, 20]))
        others = np.delete(np.arange(57), 20)
        whole = open_tfrecords(fixtures / "examples.tfrecord", **ROWS).train
        assert np.array_equal(source.read(others).images, whole.read(others).images)

    def test_and_was_cut_off_names_the_record(self, fixtures):
        path = fixtures / "examples_truncated_in_record_20.tfrecord"
        with pytest.raises(TruncatedRecordError, match=rf"^{path} record 20, at byte \d+: cut off"):
            open_tfrecords(path, **ROWS)


@form
class TestDamage:
    def test_by_cutting_off_is_found_at_any_byte(self, tmp_path, records):
        content = content_of(records)
        edges = {len(content_of(records[:count])) for count in range(4)}
        for size in range(0, len(content), 1 if len(content) < 400 else 3):
            path = tmp_path / f"{size}.tfrecord"
            path.write_bytes(content[:size])
            if size in edges:
                continue
            with pytest.raises(TruncatedRecordError) as caught:
                open_tfrecords(path)
            assert caught.value.record == place(records, size)[0]
            assert str(path) in str(caught.value)

    def test_of_any_bit_is_found(self, tmp_path, records):
        content = content_of(records)
        for bit in range(0, len(content) * 8, 1 + len(content) // 20):
            number, in_header = place(records, bit // 8)
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path = tmp_path / f"{bit}.tfrecord"
            path.write_bytes(damaged)
            if in_header:
                with pytest.raises(RecordError) as caught:
                    open_tfrecords(path)
                assert caught.value.record == number
                continue
            source = open_tfrecords(path).train
            assert len(source) == 3
            with pytest.raises(RecordChecksumError, match=f"record {number}, at byte"):
                source.read(np.array([number]))
            others = np.delete(np.arange(3), number)
            assert source.read(others).targets.tolist() == (others % 2).tolist()

    @pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40])
    def test_by_a_huge_length_takes_no_memory(self, tmp_path, records, length):
        packed = struct.pack("<Q", length)
        path = tmp_path / "f.tfrecord"
        path.write_bytes(content_of(records) + packed + struct.pack("<I", masked_crc(packed)) + bytes(100))
        tracemalloc.start()
        try:
            with pytest.raises(TruncatedRecordError, match=r"record 3, at byte \d+: cut off in its data"):
                open_tfrecords(path)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()

    def test_of_all_records_is_an_error(self, tmp_path, records):
        path = tmp_path / "f.tfrecord"
        content = bytearray(content_of(records[:1]))
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match="holds no records that are not damaged"):
            open_tfrecords(path)

    def test_after_indexing_is_found_when_reading(self, tmp_path, records):
        path = tmp_path / "f.tfrecord"
        path.write_bytes(content_of(records))
        source = open_tfrecords(path, hold=False).train
        assert source.read(np.arange(3)).targets.tolist() == [0, 1, 0]
        path.write_bytes(content_of([*records[:2], records[1]]))
        with pytest.raises(DataError, match=rf"^{path}: has changed since it was opened"):
            source.read(np.arange(3))
        assert len(open_tfrecords(path, hold=False).train.classes) == 2

    def test_of_what_is_no_example_names_the_record(self, tmp_path, records):
        path = tmp_path / "f.tfrecord"
        path.write_bytes(content_of([*records, b"\xff\xff"]))
        with pytest.raises(DataError, match=rf"^{path} record 3: is not a tf.train.Example"):
            open_tfrecords(path)


def test_a_device_that_fails_is_an_error_that_may_pass(tmp_path, monkeypatch):
    path = tmp_path / "f.tfrecord"
    path.write_bytes(content_of(FORMS["pixels"]))
    source = open_tfrecords(path, hold=False).train

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(RecordFile, "read_block", fail)
    with pytest.raises(ReadError, match=f"^{path}: cannot be read: Input/output error"):
        source.read(np.arange(2))


def test_damaged_images_keep_the_shape_that_the_others_have(tmp_path):
    content = bytearray(content_of(FORMS["encoded"]))
    content[-6] ^= 1
    path = tmp_path / "f.tfrecord"
    path.write_bytes(content)
    source = open_tfrecords(path).train
    assert source.image_shape == (2, 2, 3)
    assert isinstance(source.read(np.array([0, 1])).images, Encoded)


class TestFiles:
    def test_that_are_not_there_or_no_files_are_one_line(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.tfrecord")
        (tmp_path / "empty").mkdir()
        (tmp_path / "zero.tfrecord").touch()
        for name in ("missing", "pipe.tfrecord", "empty", "zero.tfrecord"):
            with pytest.raises(DataError) as caught:
                open_tfrecords(tmp_path / name)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)

    def test_that_cannot_be_read_are_one_line(self):
        with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to others
            Path(folder).chmod(0o755)
            path = Path(folder, "f.tfrecord")
            path.write_bytes(content_of(FORMS["rows"]))
            path.chmod(0)
            with as_ordinary_user(), pytest.raises(DataError, match=f"^{path}: cannot be opened"):
                open_tfrecords(path)

    def test_may_have_names_in_any_script(self, tmp_path):
        path = tmp_path / "картинки 图 \udcff.tfrecord"
        path.write_bytes(content_of(FORMS["pixels"]))
        source = open_tfrecords(path).train
        assert source.key(1).encode().endswith(b".tfrecord record 1")
