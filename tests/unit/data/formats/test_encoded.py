from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.formats.encoded import (
    EncodedSource,
    ImageTable,
    Inspection,
    inspect_files,
    inspect_images,
    preload,
)
from foveal.data.source import Encoded, Source, digests_of, labels_of
from foveal.errors import DataError, ImageError

CLASSES = ("cat", "dog")


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def pictures(count, shape=(4, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


class MemorySource(EncodedSource):
    """Images' bytes in a list."""

    def __init__(self, contents, targets=None, classes=CLASSES):
        self.contents = list(contents)
        found = inspect_images(self.contents, self.key)
        targets = np.arange(len(self.contents)) % 2 if targets is None else np.asarray(targets)
        self.places = np.flatnonzero(found.good)
        super().__init__(found.table(targets), classes, found.rejected)

    def _load(self, indices):
        return [self.contents[i] for i in self.places[indices].tolist()]

    def key(self, index):
        return f"list record {index}"


@pytest.fixture
def images():
    return pictures(150)


@pytest.fixture
def source(images):
    return MemorySource(map(encoded, images))


class TestInspecting:
    def test_finds_size_channels_checksum_and_length(self):
        contents = [
            encoded(pictures(1, (4, 6, 3))[0]),
            encoded(pictures(1, (9, 2))[0]),
            encoded(pictures(1, (300, 200, 3))[0], "JPEG"),
        ]
        table = inspect_images(contents, str).table(np.array([5, 6, 7]))
        assert table.targets.tolist() == [5, 6, 7]
        assert table.heights.tolist() == [4, 9, 300]
        assert table.widths.tolist() == [6, 2, 200]
        assert table.channels.tolist() == [3, 1, 3]
        assert table.lengths.tolist() == list(map(len, contents))
        dtypes = [np.int64, np.int32, np.int32, np.uint8, np.uint32, np.int64]
        assert [column.dtype for column in vars(table).values()] == dtypes

    def test_takes_the_checksum_of_all_bytes(self):
        content = encoded(pictures(1)[0]) + b"123456789"
        plain = inspect_images([content], str).rows[0, 3]
        assert plain != inspect_images([content[:-1] + b"8"], str).rows[0, 3]
        bitmap = encoded(np.zeros((1, 1), np.uint8), "BMP")
        assert inspect_images([bitmap], str).rows[0, 3] == crc32c(bitmap)

    def test_reports_what_is_no_image_and_keeps_the_labels_of_the_others(self):
        good = encoded(pictures(1)[0])
        contents = iter([b"", good, b"text", ImageError("file 3: cannot be read: Input/output error"), good])
        found = inspect_images(contents, lambda i: f"file {i}")
        assert found.rejected == [
            ("file 0", "is empty"),
            ("file 2", "not an image that can be read"),
            ("file 3", "cannot be read: Input/output error"),
        ]
        assert found.good.tolist() == [False, True, False, False, True]
        assert found.table(np.arange(5)).targets.tolist() == [1, 4]

    def test_of_nothing_gives_an_empty_table(self):
        table = inspect_images([], str).table(np.empty(0, np.int64))
        assert all(column.shape == (0,) for column in vars(table).values())

    def test_in_parts_is_joined_and_survives_being_an_index(self):
        good = encoded(pictures(1)[0])
        parts = [inspect_images(each, lambda i: f"file {i}") for each in ([good, b""], [], [b"text", good])]
        found = Inspection.joined(parts)
        again = Inspection.of(found.arrays(), lambda i: f"moved {i}")
        for each in (found, again):
            assert each.good.tolist() == [True, False, False, True]
            assert each.rows.tolist() == parts[0].rows.tolist() * 2
        assert again.rejected == [("moved 1", "is empty"), ("moved 2", "not an image that can be read")]
        assert Inspection.joined([]).table(np.empty(0, np.int64)).targets.size == 0

    def test_of_files_is_that_of_their_bytes_in_order_where_they_can_be_had(self, tmp_path, monkeypatch):
        contents = [encoded(picture) for picture in pictures(70)]  # more than a thread looks at in one go
        contents[3], contents[66] = b"", bytes(2000)
        monkeypatch.setattr("foveal.data.formats.encoded.FILE_LIMIT", 1999)
        paths = [str(tmp_path / f"{number}") for number in range(70)]
        for path, content in zip(paths, contents, strict=True):
            Path(path).write_bytes(content)
        found = inspect_files(paths, lambda number: f"number {number}", None)
        assert np.flatnonzero(~found.good).tolist() == [3, 66]
        assert found.rejected == [
            ("number 3", "is empty"),
            ("number 66", "is larger than the limit of 0 MiB"),
        ]
        assert found.rows.tolist() == inspect_images(contents, str).rows.tolist()


def crc32c(data):
    """CRC-32C bit by bit, as its definition has it (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_table_survives_being_an_index(source):
    table = ImageTable.of({name: column.astype(column.dtype) for name, column in vars(source.table).items()})
    assert all(np.array_equal(column, vars(table)[name]) for name, column in vars(source.table).items())
    assert table.take(slice(3, 9)).lengths.tolist() == source.table.lengths[3:9].tolist()


class TestASource:
    def test_reads_bytes_in_the_order_asked_for(self, source):
        batch = source.read(np.array([7, 0, 7]))
        assert isinstance(source, Source)
        assert isinstance(batch.images, Encoded)
        assert list(batch.images.contents) == [source.contents[i] for i in (7, 0, 7)]
        assert batch.targets.tolist() == [1, 0, 1]
        assert len(source.read(np.array([], np.int64)).images) == 0

    def test_has_a_shape_where_all_images_have_it(self):
        colour, grey, other = (pictures(1, shape)[0] for shape in ((4, 6, 3), (4, 6), (4, 7, 3)))
        for some, shape in (
            ([colour, colour], (4, 6, 3)),
            ([grey, colour], (4, 6, 3)),
            ([grey, grey], (4, 6, 1)),
            ([colour, other], None),
        ):
            assert MemorySource(map(encoded, some)).image_shape == shape

    def test_tells_channels_where_it_has_no_shape(self):
        for shape, channels in (((5, 6), 1), ((5, 6, 3), 3)):
            source = MemorySource([encoded(pictures(1, (4, 6))[0]), encoded(pictures(1, shape)[0])])
            assert (source.image_shape, source.channels) == (None, channels)

    def test_has_labels_and_digests_ready(self, source):
        assert labels_of(source).tolist() == [0, 1] * 75
        assert np.unique(digests_of(source)).size == 150
        again = MemorySource([source.contents[3], source.contents[3]])
        assert digests_of(again).tolist() == [digests_of(source)[3]] * 2

    def test_fingerprint_depends_on_bytes_labels_classes_and_order(self, source):
        contents = source.contents
        same = MemorySource(contents).fingerprint()
        others = [
            MemorySource(contents[::-1]),
            MemorySource(contents[:-1]),
            MemorySource(contents, np.zeros(150, np.int64)),
            MemorySource(contents, classes=("cat", "wolf")),
            MemorySource([*contents[:-1], contents[-1] + b"x"]),
        ]
        prints = [each.fingerprint() for each in others]
        assert source.fingerprint() == same
        assert len({same, *prints}) == 6

    @pytest.mark.parametrize("label", [-1, 2])
    def test_refuses_labels_out_of_range(self, label):
        with pytest.raises(DataError) as caught:
            MemorySource(map(encoded, pictures(3)), [0, 1, label])
        assert str(caught.value) == (
            f"list record 2: label {label} is out of range: there are 2 classes, 0 to 1"
        )

    def test_refuses_to_be_empty_and_says_what_was_found(self):
        with pytest.raises(DataError, match=r"there are no images in the data$"):
            MemorySource([])
        with pytest.raises(DataError, match="no images in the data: list record 0: not an image"):
            MemorySource([b"text"])

    def test_keeps_what_was_rejected(self):
        source = MemorySource([b"text", encoded(pictures(1)[0])])
        assert source.rejected == (("list record 0", "not an image that can be read"),)

    @pytest.mark.parametrize("indices", [[-1], [0, 150]])
    def test_has_no_other_examples(self, source, indices):
        with pytest.raises(IndexError, match="of 150 examples"):
            source.read(np.array(indices))

    @pytest.mark.parametrize("change", [lambda each: each[:-1], lambda each: each[:-1] + b"x", lambda _: b""])
    def test_reports_bytes_that_are_not_those_that_were_indexed(self, source, change):
        source.contents[5] = change(source.contents[5])
        assert len(source.read(np.array([4, 6])).targets) == 2
        with pytest.raises(DataError) as caught:
            source.read(np.array([4, 5, 6]))
        assert str(caught.value) == (
            "list record 5: has changed since it was indexed: "
            "run `foveal data index PATH --rebuild`, or give the data as they were"
        )


class Reporter:
    def __init__(self):
        self.calls = []

    def start(self, name, total_bytes, done_bytes):
        self.calls.append((name, total_bytes, done_bytes))

    def advance(self, n):
        self.calls.append(n)

    def finish(self):
        self.calls.append("finish")


class TestPreloading:
    def test_gives_the_same_examples_as_pixels(self, source, images):
        held = preload(source)
        indices = np.array([149, 3, 3, 0])
        batch = held.read(indices)
        assert isinstance(held, Source)
        assert np.array_equal(batch.images, images[indices])
        assert batch.targets.tolist() == [1, 1, 1, 0]
        assert len(held) == 150
        assert held.image_shape == (4, 6, 3)
        assert held.classes == CLASSES
        assert held.key(3) == "list record 3"
        assert held.fingerprint() == source.fingerprint()
        assert np.array_equal(digests_of(held), digests_of(source))
        assert np.array_equal(labels_of(held), labels_of(source))

    def test_gives_back_images_of_several_sizes(self):
        source = MemorySource([encoded(pictures(1)[0]), encoded(pictures(1, (5, 5, 3))[0])])
        assert preload(source) is source

    def test_gives_back_what_takes_more_than_the_limit(self, source):
        size = 150 * 4 * 6 * 3
        assert preload(source, limit=size - 1) is source
        assert preload(source, limit=size) is not source

    def test_lays_grey_images_out_as_the_shape_says(self):
        grey, colour = pictures(1, (4, 6))[0], pictures(1)[0]
        images = preload(MemorySource(map(encoded, [grey, colour]))).read(np.array([0, 1])).images
        assert np.array_equal(images[0], np.repeat(grey[..., None], 3, axis=2))
        assert preload(MemorySource([encoded(grey)])).read(np.array([0])).images.shape == (1, 4, 6, 1)

    def test_leaves_a_damaged_image_to_whoever_reads_it(self, images):
        contents = list(map(encoded, images))
        place = contents[70].index(b"IDAT") + 12
        contents[70] = contents[70][:place] + bytes(10) + contents[70][place + 10 :]
        held = preload(MemorySource(contents))
        others = np.delete(np.arange(150), 70)
        assert np.array_equal(held.read(others).images, images[others])
        for _ in range(2):
            with pytest.raises(ImageError, match="list record 70: cannot be read"):
                held.read(np.array([69, 70]))

    def test_reports_data_that_changed_at_once(self, source):
        source.contents[140] = source.contents[0]
        with pytest.raises(DataError, match="list record 140: has changed since it was indexed"):
            preload(source)
        assert not [each for each in threading.enumerate() if each.name.startswith("decoding")]

    def test_tells_how_far_it_is_in_bytes(self, source):
        reporter, total = Reporter(), sum(map(len, source.contents))
        preload(source, progress=reporter)
        start, *steps, end = reporter.calls
        assert start == ("decoding", total, 0)
        assert sum(steps) == total
        assert len(steps) > 1
        assert end == "finish"
