from __future__ import annotations

import gzip
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from foveal.data.catalog import open_path
from foveal.data.formats.convert import convert
from foveal.data.formats.fixed_length import FixedLengthSource, RecordLayout
from foveal.data.formats.folder import open_folder
from foveal.data.inspection.verification import blocks, readable, verify, verify_unreadable
from foveal.data.source import ArraySource, DataSet
from foveal.errors import DataError
from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

CLASSES = ("cat", "dog", "ж")


class Reports:
    """A ``ProgressReporter`` that remembers."""

    def __init__(self):
        self.started, self.done, self.finished = [], 0, 0

    def start(self, name, total, done):
        self.started.append((name, total, done))

    def advance(self, n):
        self.done += n

    def finish(self):
        self.finished += 1


def arrays(count=10, shape=(4, 5, 3), seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return ArraySource(images, np.arange(count) % 3, CLASSES, "some")


def jpeg(seed, size=(20, 30)):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(content, "jpeg")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs of two sizes; writes others in the place of some."""

    def make(damaged=None, count=12):
        for number in range(count):
            path = tmp_path / "photos" / "ab"[number % 2] / f"{number:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((damaged or {}).get(number, jpeg(number, (20 + number % 2, 30))))
        return tmp_path / "photos"

    return make


@pytest.fixture
def records(tmp_path):
    """A TFRecord file of 70 images; some of its records get a flipped bit in their data."""

    def make(damaged=()):
        path = tmp_path / "some.tfrecord"
        convert(arrays(70), path)
        content = bytearray(path.read_bytes())
        offset = 0
        for number in range(70):
            length = int.from_bytes(content[offset : offset + 8], "little")
            if number in damaged:
                content[offset + 12 + length // 2] ^= 4
            offset += 16 + length
        path.write_bytes(content)
        return path

    return make


def names(result):
    return [os.path.basename(each.key) for each in result.corrupt]  # noqa: PTH119 - a key is no path


class TestOfGoodData:
    def test_finds_nothing_and_counts_all(self):
        data = DataSet(arrays(10), test=arrays(4))
        assert verify(data).report() == {
            "good": True,
            "examples": 14,
            "parts": {"train": 10, "test": 4},
            "bad": [],
        }

    def test_finds_nothing_in_a_folder(self, photos):
        assert verify(open_folder(photos())).corrupt == ()


class TestOfDamagedData:
    def test_lists_every_photograph_that_cannot_be_decoded(self, photos):
        damaged = {3: jpeg(3)[:-80], 4: b"GIF89a", 7: b"", 10: jpeg(10)[:40]}
        result = verify(open_folder(photos(damaged)))
        assert sorted(names(result)) == ["003.jpg", "004.jpg", "007.jpg", "010.jpg"]
        assert not result.report()["good"]
        assert all(each.reason and each.key not in each.reason for each in result.corrupt)

    def test_finds_every_cut_of_a_photograph(self, photos):
        whole = jpeg(0)
        lengths = range(0, len(whole) - 1, 61)
        damaged = {number: whole[:length] for number, length in enumerate(lengths)}
        result = verify(open_folder(photos(damaged, count=len(damaged) + 1)))
        assert sorted(names(result)) == [f"{number:03}.jpg" for number in damaged]

    def test_lists_every_damaged_record(self, records):
        result = verify(open_path(records((0, 20, 21, 69))))
        assert [name.split()[-1] for name in names(result)] == ["0", "20", "21", "69"]
        assert all("some.tfrecord record" in each.key for each in result.corrupt)
        assert result.parts == {"train": 70}

    def test_lists_rows_with_values_that_are_not_finite(self):
        numbers = np.arange(30, dtype=np.float32).reshape(10, 1, 1, 3)
        numbers[4, 0, 0, 1] = np.nan
        numbers[8, 0, 0, 0] = -np.inf
        result = verify(DataSet(ArraySource(numbers, np.zeros(10, np.int64), CLASSES, "rows")))
        assert [(each.key, each.reason) for each in result.corrupt] == [
            (f"rows record {row}", "has a value that is not a finite number") for row in (4, 8)
        ]

    def test_finds_the_same_whatever_the_number_of_threads(self, photos, records):
        for data in (open_folder(photos({5: b"x", 6: b"y"})), open_path(records((7, 66)))):
            assert verify(data, threads=1) == verify(data, threads=4)

    def test_gives_a_report_that_is_json(self, photos):
        report = json.loads(json.dumps(verify(open_folder(photos({1: b"no"}))).report()))
        (bad,) = report["bad"]
        assert bad["key"].endswith("001.jpg")
        assert "image" in bad["reason"]


class TestOfDataThatCannotBeRead:
    def test_ends_with_the_error_where_they_change_meanwhile(self, tmp_path):
        path = tmp_path / "some.bin"
        path.write_bytes(bytes(13 * 40))
        layout = RecordLayout(image_shape=(2, 3, 2))
        data = DataSet(FixedLengthSource([path], layout, CLASSES, memory_limit=0))
        path.write_bytes(bytes(13 * 41))
        reports = Reports()
        with pytest.raises(DataError, match="changed since"):
            verify(data, progress=reports)
        assert reports.finished == 1

    def test_says_so_in_a_verification_where_they_could_not_be_opened(self):
        result = verify_unreadable("a.bin", DataError("a.bin: is empty"))
        assert result.report()["bad"] == [{"key": "a.bin", "reason": "is empty"}]
        assert result.report()["examples"] == 0


class TestOfRecordsThatAreNoImages:
    @pytest.fixture
    def path(self, tmp_path):
        """Forty records of something; the data of numbers 7 and 20 are damaged."""
        path = tmp_path / "some.tfrecord"
        with RecordWriter(path) as writer:
            for number in range(40):
                writer.write(build_example({"words": [b"a", b"b"], "number": number}))
        content = bytearray(path.read_bytes())
        length = len(content) // 40
        for number in (7, 20):
            content[number * length + length // 2] ^= 1
        path.write_bytes(content)
        return path

    def verified(self, path):
        with pytest.raises(DataError) as caught:
            open_path(path)
        return [(each.key, each.reason) for each in verify_unreadable(str(path), caught.value).corrupt]

    def test_names_why_and_every_damaged_one(self, path):
        why, *bad = self.verified(path)
        assert why[0] == str(path)
        assert "which feature is the label" in why[1]
        assert [key for key, _ in bad] == [f"{path} record 7", f"{path} record 20"]
        assert all("checksum" in reason for _, reason in bad)

    def test_names_the_one_in_which_the_file_ends(self, path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 30 // 40 + 20])
        assert "record 30" in str(self.verified(path))

    def test_names_the_first_damaged_one_of_a_compressed_file(self, path):
        path.write_bytes(gzip.compress(path.read_bytes()))
        assert "record 7" in str(self.verified(path))


def test_progress_counts_the_examples_of_each_part():
    reports = Reports()
    verify(DataSet(arrays(3000), test=arrays(7)), progress=reports)
    assert reports.started == [("verifying train", 3000, 0), ("verifying test", 7, 0)]
    assert (reports.done, reports.finished) == (3007, 2)


@pytest.mark.parametrize(("shape", "longest"), [((4, 5, 3), 1024), ((1000, 1000, 3), 1), ((512, 512, 1), 16)])
def test_blocks_cover_the_indices_and_are_small_in_memory(shape, longest):
    class Shaped:
        image_shape = shape

    indices = np.arange(5, 3000)
    pieces = blocks(Shaped(), indices)
    assert np.array_equal(np.concatenate(pieces), indices)
    assert max(map(len, pieces)) == longest


def test_readable_gives_images_at_their_own_size_with_the_bytes_they_are_stored_in(photos):
    source = open_folder(photos({2: b"no"})).train
    corrupt = []
    found = list(readable(source, np.arange(len(source)), corrupt))
    assert corrupt == []  # what is no image is no example
    assert sorted({each.images.shape for each in found}) == [(1, 20, 30, 3), (1, 21, 30, 3)]
    contents = [each.stored[0] for each in found]
    assert contents == list(source.read(np.arange(len(source))).images.contents)
