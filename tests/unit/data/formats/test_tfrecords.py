from __future__ import annotations

import gzip
import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from foveal.data.formats import tfrecord_files, tfrecord_index, tfrecords
from foveal.data.formats.tfrecords import open_tfrecords
from foveal.data.source import Encoded, Source, digests_of, labels_of
from foveal.errors import DataError, FovealError, RecipeError
from foveal.tensorflow.example import Ragged, build_example
from foveal.tensorflow.record_writer import RecordWriter

SHAPE = (4, 6, 3)
PACK = {None: bytes, "gzip": gzip.compress, "zlib": zlib.compress}


def pictures(count=7, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(path, examples):
    with RecordWriter(path) as writer:
        for each in examples:
            writer.write(build_example(each))
    return path


def slim(images, labels):
    """Examples as TF-Slim writes them."""
    for image, label in zip(images, labels, strict=True):
        height, width, _ = image.shape
        sizes = {"image/height": height, "image/width": width}
        yield {"image/encoded": png(image), "image/format": b"png", "image/class/label": int(label), **sizes}


def raw(images, labels, **more):
    """Examples with pixels, as TensorFlow's MNIST example writes them."""
    for image, label in zip(images, labels, strict=True):
        height, width, depth = image.shape
        sizes = {"height": height, "width": width, "depth": depth}
        yield {"image_raw": image.tobytes(), "label": int(label), **sizes, **more}


def everything(source):
    return source.read(np.arange(len(source)))


LABELS = [0, 2, 1, 2, 0, 0, 1]


@pytest.fixture
def path(tmp_path):
    """Seven images in slim's form."""
    return write(tmp_path / "some.tfrecord", slim(pictures(), LABELS))


class TestImageFiles:
    def test_are_recognised_and_held_as_pixels(self, path):
        source = open_tfrecords(path).train
        assert isinstance(source, Source)
        batch = source.read(np.array([5, 0, 5]))
        assert np.array_equal(batch.images, pictures()[[5, 0, 5]])
        assert batch.targets.tolist() == [0, 0, 0]
        assert source.image_shape == SHAPE
        assert source.classes == ("0", "1", "2")
        assert source.key(3) == f"{path} record 3"

    def test_stay_encoded_where_they_are_not_held_or_differ_in_size(self, path, tmp_path):
        source = open_tfrecords(path, hold=False).train
        batch = everything(source)
        assert isinstance(batch.images, Encoded)
        assert list(batch.images.contents) == [png(each) for each in pictures()]
        assert source.image_shape == SHAPE
        other = [*slim(pictures(2), [0, 1]), *slim(pictures(1, (5, 5, 3)), [0])]
        assert open_tfrecords(write(tmp_path / "other", other)).train.image_shape is None

    def test_that_are_none_are_rejected_with_a_reason(self, tmp_path):
        examples = [*slim(pictures(3), [0, 1, 2])]
        examples[1]["image/encoded"] = b"nothing"
        path = write(tmp_path / "some", examples)
        source = open_tfrecords(path, hold=False).train
        assert len(source) == 2
        assert labels_of(source).tolist() == [0, 2]
        assert source.key(1) == f"{path} record 2"
        ((key, reason),) = source.rejected
        assert key == f"{path} record 1"
        assert "not an image" in reason
        assert open_tfrecords(path, hold=False).train.rejected == source.rejected

    def test_may_be_in_a_feature_of_any_name(self, tmp_path):
        examples = [{"bild": png(each), "art": b"cat"} for each in pictures(2)]
        path = write(tmp_path / "some", examples)
        assert open_tfrecords(path, image="bild", label="art").train.classes == ("cat",)


class TestPixels:
    @pytest.mark.parametrize("hold", [True, False])
    def test_have_the_shape_that_the_records_say(self, tmp_path, hold):
        source = open_tfrecords(write(tmp_path / "f", raw(pictures(), LABELS)), hold=hold).train
        batch = everything(source)
        assert batch.images.dtype == np.uint8
        assert np.array_equal(batch.images, pictures())
        assert batch.targets.tolist() == LABELS

    @pytest.mark.parametrize("dtype", [bytes, np.int64, np.float32])
    @pytest.mark.parametrize("hold", [True, False])
    def test_have_the_shape_that_is_given(self, tmp_path, dtype, hold):
        images = pictures()
        stored = [each.tobytes() if dtype is bytes else each.ravel().astype(dtype) for each in images]
        examples = [{"image": each, "label": 1} for each in stored]
        source = open_tfrecords(write(tmp_path / "f", examples), shape=list(SHAPE), hold=hold).train
        found = everything(source).images
        assert found.dtype == (np.float32 if dtype is np.float32 else np.uint8)
        assert np.array_equal(found, images)

    def test_of_another_size_are_an_error_though_they_have_as_many(self, tmp_path):
        examples = [*raw(pictures(2), [0, 1]), *raw(pictures(1, (6, 4, 3)), [0])]
        with pytest.raises(DataError, match=r"f record 2: feature 'height' is 6, that of the first record 4"):
            open_tfrecords(write(tmp_path / "f", examples))

    def test_of_a_square_number_are_a_grey_square(self, tmp_path):
        path = write(tmp_path / "f", [{"image_raw": bytes(range(64)), "label": 0}])
        assert open_tfrecords(path).train.image_shape == (8, 8, 1)

    def test_held_or_not_have_one_fingerprint_that_every_value_changes(self, tmp_path):
        path, other = tmp_path / "f", tmp_path / "g"
        write(path, raw(pictures(), LABELS))
        prints = {open_tfrecords(path, hold=hold).train.fingerprint() for hold in (True, False)}
        assert len(prints) == 1
        for image, label in ((pictures(seed=1), LABELS), (pictures(), [*LABELS[:-1], 0])):
            prints.add(open_tfrecords(write(other, raw(image, label))).train.fingerprint())
        assert len(prints) == 3

    def test_that_are_equal_have_equal_digests(self, tmp_path):
        images = pictures(3)
        images[2] = images[0]
        digests = digests_of(open_tfrecords(write(tmp_path / "f", raw(images, [0, 1, 0]))).train)
        assert digests[0] == digests[2] != digests[1]

    @pytest.mark.parametrize(
        ("example", "problem"),
        [
            ({"image": bytes(71)}, "has 71 bytes, not the 72 of 4 x 6 x 3 pixels"),
            ({"image": np.zeros(71, np.int64)}, "holds int64"),
            ({"image": bytes(72), "label": b"x"}, "holds bytes, not int64"),
            ({"label": 0}, "is missing"),
        ],
    )
    def test_that_do_not_fit_are_an_error_with_the_record(self, tmp_path, example, problem):
        examples = [{"image": bytes(72), "label": 0}, {"label": 0, **example}]
        with pytest.raises(DataError, match=rf"f record 1: feature .*{problem}"):
            open_tfrecords(write(tmp_path / "f", examples), shape=SHAPE)

    @pytest.mark.parametrize("value", [-1, 256])
    def test_out_of_range_are_an_error_with_the_record(self, tmp_path, value):
        examples = [{"image": np.full(72, each), "label": 0} for each in (3, value)]
        with pytest.raises(DataError, match=r"f record 1: feature 'image' has values that are no pixels"):
            open_tfrecords(write(tmp_path / "f", examples), shape=SHAPE)


class TestRows:
    def test_of_features_are_images_of_one_pixel(self, tmp_path):
        examples = [{"a": [each, -1.5], "b": each, "label": each % 2} for each in range(5)]
        features = {"b": {"dtype": "int64", "shape": []}, "a": {"dtype": "float32", "shape": [2]}}
        source = open_tfrecords(write(tmp_path / "f", examples), features=features).train
        batch = everything(source)
        assert batch.images.dtype == np.float32
        assert batch.images.tolist() == [[[[each, each, -1.5]]] for each in range(5)]
        assert source.image_shape == (1, 1, 3)

    def test_are_recognised_by_name(self, tmp_path):
        path = write(tmp_path / "f", [{"features": [0.5, 2], "label": 0}])
        assert everything(open_tfrecords(path).train).images.tolist() == [[[[0.5, 2]]]]

    def test_are_read_beside_an_image_where_that_is_asked_for(self, path):
        size = {"image/height": {"dtype": "int64", "shape": []}}
        assert open_tfrecords(path, image="", features=size).train.image_shape == (1, 1, 1)

    @pytest.mark.parametrize(
        "features", [{"a": {}}, {"a": {"dtype": "bytes", "shape": []}}, {"a": {"shape": [0]}}]
    )
    def test_are_numbers_of_a_fixed_shape(self, tmp_path, features):
        with pytest.raises(RecipeError, match=r"features\.a: without an image"):
            open_tfrecords(write(tmp_path / "f", [{"a": 1.5, "label": 0}]), features=features)


@pytest.mark.parametrize("form", [slim, raw])
def test_other_features_come_with_the_batch(tmp_path, form):
    images = pictures(3)
    more = [{"weight": 0.5}, {"boxes": [1, 2]}, {"name": b"z", "weight": 2.0}]
    examples = [{**each, **extra} for each, extra in zip(form(images, [0, 1, 0]), more, strict=True)]
    wanted = {
        "weight": {"shape": [], "default": -1},
        "boxes": {"dtype": "int64"},
        "name": {"dtype": "bytes", "shape": [], "default": "?"},
    }
    source = open_tfrecords(write(tmp_path / "f", examples), features=wanted).train
    found = source.read(np.array([2, 0, 1])).features
    assert found["weight"].tolist() == [2, 0.5, -1]
    assert found["name"].tolist() == [b"z", b"?", b"?"]
    assert isinstance(found["boxes"], Ragged)
    assert [found["boxes"][row].tolist() for row in range(3)] == [[], [], [1, 2]]


class TestLabels:
    def targets(self, tmp_path, labels, **options):
        examples = [{"image": bytes(64), "label": each} for each in labels]
        source = open_tfrecords(write(tmp_path / "f.tfrecord", examples), **options).train
        return source.classes, labels_of(source).tolist()

    def test_that_are_numbers_are_sorted_by_value(self, tmp_path):
        assert self.targets(tmp_path, [10, 9, 10]) == (("9", "10"), [1, 0, 1])

    def test_that_are_text_are_sorted_as_text(self, tmp_path):
        labels = [each.encode() for each in ("ж", "a", "Z", "a")]
        assert self.targets(tmp_path, labels) == (("Z", "a", "ж"), [2, 1, 0, 1])

    def test_are_indices_of_the_names_that_are_given(self, tmp_path):
        assert self.targets(tmp_path, [1, 2], classes=["2", "b", "a"]) == (("2", "b", "a"), [1, 2])
        assert self.targets(tmp_path, [1, 2], classes=["b", "a"], label_offset=1) == (("b", "a"), [0, 1])
        assert self.targets(tmp_path, [1, 2], classes=3) == (("0", "1", "2"), [1, 2])
        assert self.targets(tmp_path, [1, 2], label_offset=1) == (("0", "1"), [0, 1])

    def test_of_text_are_found_among_the_names_that_are_given(self, tmp_path):
        assert self.targets(tmp_path, [b"a", b"b"], classes=["b", "c", "a"])[1] == [2, 0]

    @pytest.mark.parametrize("text", ["0:dog\n1:cat: big\n", "1:cat: big\n0:dog", "dog\ncat: big\n\n"])
    def test_have_the_names_of_the_file_beside_them(self, tmp_path, text):
        (tmp_path / "labels.txt").write_text(text)
        assert self.targets(tmp_path, [1, 0]) == (("dog", "cat: big"), [1, 0])
        (tmp_path / "labels.txt").rename(tmp_path / "names")
        assert self.targets(tmp_path, [1, 0], classes="names") == (("dog", "cat: big"), [1, 0])

    @pytest.mark.parametrize("text", [b"0:a\n2:b\n", b"0:a\n0:b\n", b"a\na\n", b"", b"\xff\n"])
    def test_have_no_names_from_a_file_that_makes_no_sense(self, tmp_path, text):
        (tmp_path / "labels.txt").write_bytes(text)
        with pytest.raises(DataError, match=r"labels\.txt: "):
            self.targets(tmp_path, [0])

    @pytest.mark.parametrize(("label", "classes"), [(3, 3), (-1, 3), (2**62, 3), (b"x", ["a"])])
    def test_that_are_no_class_are_an_error_with_the_record(self, tmp_path, label, classes):
        first = b"a" if label == b"x" else 0
        with pytest.raises(DataError, match=r"f\.tfrecord record 1: label"):
            self.targets(tmp_path, [first, label], classes=classes)

    def test_that_are_not_text_in_utf_8_are_an_error_with_the_record(self, tmp_path):
        with pytest.raises(DataError, match=r"record 1: the label b'\\xff' is not text"):
            self.targets(tmp_path, [b"a", b"\xff"])


class TestParts:
    def test_are_found_by_the_names_of_files(self, tmp_path):
        for number in range(3):
            write(tmp_path / f"train-{number:05}-of-00003.tfrecord", raw(pictures(2, seed=number), [0, 1]))
        write(tmp_path / "test.tfrecords", raw(pictures(1, seed=9), [1]))
        found = open_tfrecords(tmp_path)
        assert (len(found.train), len(found.test), found.validation) == (6, 1, None)
        images = np.concatenate([pictures(2, seed=number) for number in range(3)])
        order = np.array([5, 0, 3, 3, 1, 4, 2])
        assert np.array_equal(found.train.read(order).images, images[order])
        assert found.train.key(5) == f"{tmp_path}/train-00002-of-00003.tfrecord record 1"

    @pytest.mark.parametrize("limit", [0, 1 << 30])
    def test_are_read_across_files_whether_they_are_in_memory_or_not(self, tmp_path, limit, monkeypatch):
        monkeypatch.setattr(tfrecord_files, "MEMORY_LIMIT", limit)
        monkeypatch.setattr(tfrecord_files, "_OPEN_LIMIT", 2)
        for number in range(5):
            write(tmp_path / f"train-{number}-of-5", raw(pictures(3, seed=number), [0, 1, 2]))
        source = open_tfrecords(tmp_path / "train-*", hold=False).train
        images = np.concatenate([pictures(3, seed=number) for number in range(5)])
        orders = [np.random.default_rng(each).integers(0, 15, 20) for each in range(20)]
        with ThreadPoolExecutor(4) as pool:
            for order, batch in zip(orders, pool.map(source.read, orders), strict=True):
                assert np.array_equal(batch.images, images[order])
                assert np.array_equal(batch.targets, order % 3)

    def test_may_have_files_without_records(self, tmp_path):
        write(tmp_path / "a.tfrecord", [])
        write(tmp_path / "b.tfrecord", raw(pictures(2), [0, 1]))
        assert len(open_tfrecords(tmp_path).train) == 2


class TestCompressedFiles:
    @pytest.mark.parametrize("compression", PACK)
    @pytest.mark.parametrize("hold", [True, False])
    def test_are_read_as_plain_ones_under_their_own_names(self, tmp_path, path, compression, hold):
        packed = tmp_path / "packed"
        packed.write_bytes(PACK[compression](path.read_bytes()))
        source, plain = (open_tfrecords(each, hold=hold).train for each in (packed, path))
        assert source.fingerprint() == plain.fingerprint()
        assert source.key(6) == f"{packed} record 6"

    def test_are_unpacked_once_and_again_when_they_change(self, tmp_path, monkeypatch):
        packed = tmp_path / "f.gz"
        unpacked = []
        once = tfrecord_files._unpack
        monkeypatch.setattr(tfrecord_files, "_unpack", lambda *args: unpacked.append(args[0]) or once(*args))
        for seed in (0, 0, 1):
            write(tmp_path / "f", raw(pictures(seed=seed), LABELS))
            content = gzip.compress((tmp_path / "f").read_bytes(), mtime=0)
            packed.write_bytes(content)
            os.utime(packed, ns=(0, seed))
            assert np.array_equal(everything(open_tfrecords(packed).train).images, pictures(seed=seed))
        assert unpacked == [packed, packed]
        assert len(list(tfrecord_files.plain_file(packed).parent.glob("*.tfrecord"))) == 1

    def test_that_are_damaged_name_themselves_and_the_record(self, tmp_path, path):
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        packed = tmp_path / "f.gz"
        packed.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=r"f\.gz record 6, at byte \d+: the checksum of its data"):
            open_tfrecords(packed)
        packed.write_bytes(gzip.compress(path.read_bytes())[:-20])
        with pytest.raises(DataError, match=r"f\.gz record \d, at byte \d+: cannot be unpacked"):
            open_tfrecords(packed)

    def test_are_refused_where_there_is_no_room(self, tmp_path, path, monkeypatch):
        monkeypatch.setattr(tfrecord_files, "_RESERVE", 1 << 60)
        packed = tmp_path / "f.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(DataError, match=r"f\.gz: no room"):
            open_tfrecords(packed)


class TestTheFirstRecord:
    @pytest.mark.parametrize(
        ("example", "options", "problem"),
        [
            ({"x": 1}, {}, r"which feature is the label\?.* it has x \(int64 x 1\)"),
            ({"label": 1, "y": b""}, {}, r"which feature is the image\?.* it has y \(bytes x 1\)"),
            (
                {"label": 1, "image": b""},
                {"image": "imag"},
                "no feature 'imag' for the image: did you mean 'image'",
            ),
            ({"label": 1, "image": b""}, {"label": "x"}, "no feature 'x' for the label"),
            ({"label": 1.5, "image": b""}, {}, "feature 'label' is no label"),
            ({"label": [1, 2], "image": b""}, {}, "feature 'label' is no label"),
            ({"label": 1, "image": b"nothing"}, {}, "is no image file.*data.options.shape"),
            ({"label": 1, "image": [b"a", b"b"]}, {}, "has 2 values, not one image"),
            ({"label": 1, "image": bytes(6), "height": 2, "width": 2}, {}, "is no image file"),
        ],
    )
    def test_says_what_is_missing(self, tmp_path, example, options, problem):
        with pytest.raises(DataError, match=rf"f record 0: .*{problem}"):
            open_tfrecords(write(tmp_path / "f", [example]), **options)

    def test_must_be_there(self, tmp_path):
        with pytest.raises(DataError, match="f: holds no records"):
            open_tfrecords(write(tmp_path / "f", []))


@pytest.mark.parametrize(
    "options",
    [
        {"shape": [1, 2]},
        {"shape": 3},
        {"shape": [0, 2, 3]},
        {"shape": [1 << 20, 1 << 20, 3]},
        {"image": 3},
        {"label": ["a"]},
        {"label_offset": 1.5},
        {"label_offset": 10**30},
        {"features": ["a"]},
        {"features": {"a": "float32"}},
        {"features": {"a": {"type": "int64"}}},
        {"features": {"a": {"dtype": "int"}}},
        {"features": {"a": {"dtype": ["int64"]}}},
        {"features": {"a": {"shape": [1 << 40], "default": 0}}},
        {"features": {"a": {"shape": 3}}},
        {"features": {"a": {"default": 3}}},
        {"features": {"a": {"shape": [-1]}}},
        {"features": {"a": {"shape": [2], "default": [1, 2, 3]}}},
        {"classes": 0},
        {"classes": ["a", "a"]},
    ],
)
def test_options_that_make_no_sense_are_one_line(path, options):
    with pytest.raises(FovealError) as caught:
        open_tfrecords(path, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_files_are_gone_through_once(path, monkeypatch):
    before = open_tfrecords(path, hold=False).train
    monkeypatch.setattr(tfrecord_index, "_go_through", None)
    again = open_tfrecords(path, hold=False).train
    assert again.fingerprint() == before.fingerprint()
    assert again.key(6) == before.key(6)
    assert tfrecords.LABELS_FILE == "labels.txt"
