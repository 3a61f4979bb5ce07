from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from foveal.data.formats.convert import convert
from foveal.data.formats.encoded import EncodedSource, inspect_images
from foveal.data.formats.tfrecords import open_tfrecords
from foveal.data.source import ArraySource, DataSet
from foveal.errors import DataError, UsageError
from foveal.tensorflow.example import parse_example
from foveal.tensorflow.records import read_records

CLASSES = ("cat", "dog: big ", "ж")


def arrays(count=10, shape=(4, 5, 3), seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *shape), np.uint8)
    return ArraySource(images, np.arange(count) % 3, CLASSES, "some")


def everything(source):
    return source.read(np.arange(len(source)))


def equal(found, expected):
    assert found.classes == expected.classes
    assert np.array_equal(everything(found).images, everything(expected).images)
    assert np.array_equal(everything(found).targets, everything(expected).targets)


class Files(EncodedSource):
    """Image files in memory."""

    def __init__(self, contents):
        self.contents = contents
        super().__init__(inspect_images(contents, self.key).table(np.zeros(len(contents))), CLASSES)

    def key(self, index):
        return f"folder/{index}.jpg"

    def _load(self, indices):
        return [self.contents[each] for each in indices.tolist()]


def image_file(kind, size, mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, size, 77).save(content, kind)
    return content.getvalue()


class TestConverted:
    @pytest.mark.parametrize("shape", [(4, 5, 3), (8, 8, 1)])
    @pytest.mark.parametrize("compression", [None, "gzip", "zlib"])
    def test_pixels_come_back_the_same(self, tmp_path, shape, compression):
        source = arrays(shape=shape)
        out = tmp_path / "new" / "some.tfrecord"
        assert convert(source, out, compression=compression) == [out]
        equal(open_tfrecords(out).train, source)

    def test_rows_of_numbers_come_back_the_same(self, tmp_path):
        numbers = np.float32([[1.5, -2, 3e-40], [0, np.inf, 7]]).reshape(2, 1, 1, 3)
        source = ArraySource(numbers, np.array([2, 0]), CLASSES)
        convert(source, tmp_path / "f")
        equal(open_tfrecords(tmp_path / "f").train, source)

    def test_image_files_are_copied_byte_for_byte(self, tmp_path):
        files = [
            image_file(kind, (5, 3 + n))
            for n, kind in enumerate(("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"))
        ]
        convert(Files(files), tmp_path / "f")
        source = open_tfrecords(tmp_path / "f").train
        assert list(everything(source).images.contents) == files
        found = [parse_example(record.data) for record in read_records(tmp_path / "f")]
        assert [each["image/format"][0] for each in found] == [
            b"jpeg",
            b"png",
            b"webp",
            b"bmp",
            b"gif",
            b"tiff",
        ]

    def test_records_have_the_features_of_slim(self, tmp_path):
        convert(arrays(), tmp_path / "f")
        found = parse_example(next(iter(read_records(tmp_path / "f"))).data)
        content = found.pop("image/encoded")[0]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), arrays().images[0])
        assert {name: values.tolist() for name, values in found.items()} == {
            "image/class/label": [0],
            "image/class/text": [b"cat"],
            "image/channels": [3],
            "image/filename": [b"some record 0"],
            "image/format": [b"png"],
            "image/height": [4],
            "image/width": [5],
        }
        assert (tmp_path / "labels.txt").read_text() == "0:cat\n1:dog: big \n2:ж\n"

    def test_parts_and_shards_have_names_and_the_order_of_the_source(self, tmp_path):
        data = DataSet(arrays(), test=arrays(4, seed=1))
        paths = convert(data, tmp_path / "some.tfrecord", shards=3)
        assert [path.name for path in paths] == [
            f"some-{part}-0000{shard}-of-00003.tfrecord" for part in ("train", "test") for shard in range(3)
        ]
        assert [len(list(read_records(path))) for path in paths] == [3, 3, 4, 1, 1, 2]
        found = open_tfrecords(tmp_path, train="*-train-*", test="*-test-*")
        equal(found.train, data.train)
        equal(found.test, data.test)

    def test_a_single_part_in_shards_and_a_compressed_name(self, tmp_path):
        paths = convert(arrays(), tmp_path / "some.tfrecord.gz", shards=2, compression="gzip")
        assert paths[0].name == "some-train-00000-of-00002.tfrecord.gz"
        equal(open_tfrecords(tmp_path).train, arrays())

    def test_classes_without_examples_keep_their_place(self, tmp_path):
        source = ArraySource(arrays(2).images, np.array([2, 2]), CLASSES)
        convert(source, tmp_path / "f")
        equal(open_tfrecords(tmp_path / "f").train, source)


class TestRefusals:
    @pytest.mark.parametrize("name", ["f.tfrecord", "labels.txt"])
    def test_to_replace_what_is_there_unless_asked(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UsageError, match=f"{name}: is there already"):
            convert(arrays(), tmp_path / "f.tfrecord")
        assert [each.name for each in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == b"mine"
        convert(arrays(), tmp_path / "f.tfrecord", overwrite=True)
        equal(open_tfrecords(tmp_path / "f.tfrecord").train, arrays())

    @pytest.mark.parametrize("shards", [0, -1, 11, 10**9])
    def test_of_numbers_of_shards_that_cannot_be(self, tmp_path, shards):
        with pytest.raises(UsageError, match=f"{shards} shards: from 1 to 10"):
            convert(arrays(), tmp_path / "f", shards=shards)

    def test_of_what_would_lose_something(self, tmp_path):
        floats = ArraySource(np.zeros((1, 2, 2, 3), np.float32), np.array([0]), CLASSES, "floats")
        with pytest.raises(DataError, match="floats record 0: images of float32 cannot be stored"):
            convert(floats, tmp_path / "f")
        with pytest.raises(DataError, match="some record 0: 5 channels"):
            convert(arrays(shape=(2, 2, 5)), tmp_path / "f")
        lines = ArraySource(arrays(1).images, np.array([0]), ("a\nb",))
        with pytest.raises(DataError, match="a class name has several lines"):
            convert(lines, tmp_path / "f")
        assert list(tmp_path.iterdir()) == []


class Failing(ArraySource):
    def read(self, indices):
        if indices[-1] >= 7:
            raise DataError("record 7 is damaged")
        return super().read(indices)


def test_a_failure_leaves_no_file(tmp_path):
    source = Failing(arrays().images, arrays().targets, CLASSES)
    with pytest.raises(DataError, match="record 7"):
        convert(source, tmp_path / "f", shards=5)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written") as caught:
        convert(arrays(), tmp_path / "file" / "f")
    assert "\n" not in str(caught.value)


def test_progress_counts_images(tmp_path):
    told = []

    class Progress:
        def start(self, name, total_bytes, done_bytes):
            told.append((name, total_bytes, done_bytes))

        def advance(self, n):
            told.append(n)

        def finish(self):
            told.append("end")

    convert(arrays(), tmp_path / "f", shards=2, progress=Progress())
    assert told == [("writing f", 10, 0), *[1] * 10, "end"]


def test_tensorflow_reads_it_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorflow.python")
    import tensorflow as tf

    for compression in (None, "gzip", "zlib"):
        paths = convert(
            arrays(), tmp_path / f"{compression}" / "f.tfrecord", shards=2, compression=compression
        )
        dataset = tf.data.TFRecordDataset(list(map(str, paths)), (compression or "").upper())
        wanted = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/format": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
            "image/class/text": tf.io.FixedLenFeature([], tf.string),
            "image/height": tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = [tf.io.parse_single_example(record, wanted) for record in dataset]
        images = [tf.io.decode_png(each["image/encoded"]).numpy() for each in parsed]
        assert np.array_equal(images, arrays().images)
        assert [int(each["image/class/label"]) for each in parsed] == arrays().targets.tolist()
        assert json.dumps([each["image/class/text"].numpy().decode() for each in parsed[:3]]) == json.dumps(
            CLASSES
        )
