from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from foveal.data.formats.arrays import open_arrays
from foveal.errors import DataError, RecipeError


def pixels(count, shape=(2, 3), dtype=np.uint8, first=0):
    images = np.zeros((count, *shape), dtype)
    images[:] = np.arange(first, first + count, dtype=dtype).reshape(-1, *[1] * len(shape))
    return images


def labels(count, dtype=np.int64):
    return (np.arange(count) % 3).astype(dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.npz"


def saved(path, *, packed=True, **arrays):
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def sizes(data):
    return {name: len(part) for name, part in data.parts().items()}


def everything(source):
    return source.read(np.arange(len(source)))


KERAS = {"x_train": pixels(5), "y_train": labels(5), "x_test": pixels(3, first=9), "y_test": labels(3)}
MED = {
    "train_images": pixels(4, (2, 3, 3)),
    "train_labels": labels(4, np.uint8)[:, None],
    "val_images": pixels(3, (2, 3, 3)),
    "val_labels": labels(3, np.uint8)[:, None],
    "test_images": pixels(1, (2, 3, 3)),
    "test_labels": labels(1, np.uint8)[:, None],
}


class TestLayouts:
    @pytest.mark.parametrize("packed", [True, False])
    def test_of_keras(self, path, packed):
        data = open_arrays(saved(path, packed=packed, **KERAS))
        assert sizes(data) == {"train": 5, "test": 3}
        batch = everything(data.test)
        assert batch.images.dtype == np.uint8
        assert batch.images.shape == (3, 2, 3, 1)
        assert batch.images[:, 0, 0, 0].tolist() == [9, 10, 11]
        assert batch.targets.tolist() == [0, 1, 2]
        assert data.train.classes == ("0", "1", "2")
        assert data.train.key(4) == f"{path} x_train record 4"

    def test_of_medmnist(self, path):
        data = open_arrays(saved(path, **MED))
        assert sizes(data) == {"train": 4, "validation": 3, "test": 1}
        assert data.train.image_shape == (2, 3, 3)
        assert everything(data.train).targets.tolist() == [0, 1, 2, 0]

    def test_of_images_and_labels_with_class_names(self, path):
        names = np.array(["猫", "dog", "owl", "emu"])
        data = open_arrays(saved(path, images=pixels(3), labels=labels(3), classes=names))
        assert sizes(data) == {"train": 3}
        assert data.train.classes == ("猫", "dog", "owl", "emu")

    def test_of_a_folder_of_files(self, tmp_path):
        for name, array in KERAS.items():
            np.save(tmp_path / f"{name}.npy", array)
        (tmp_path / "readme.txt").touch()
        data = open_arrays(tmp_path)
        assert sizes(data) == {"train": 5, "test": 3}
        assert data.test.key(0) == f"{tmp_path / 'x_test.npy'} record 0"

    def test_of_names_given_as_options(self, path):
        arrays = {"a train": pixels(2), "b train": labels(2), "a val": pixels(1), "b val": labels(1)}
        saved(path, **arrays, **KERAS)
        data = open_arrays(path, images="a {part}", labels="b {part}")
        assert sizes(data) == {"train": 2, "validation": 1}
        assert sizes(open_arrays(path, images="x_test", labels="y_test")) == {"train": 3}


class TestImages:
    def test_are_read_by_columns_and_in_any_byte_order(self, path):
        images = np.random.default_rng(0).random((4, 2, 3, 2)).astype(np.float32)
        for stored in (np.asfortranarray(images), images.astype(">f4")):
            data = open_arrays(saved(path, images=stored, labels=labels(4, ">u2")))
            batch = everything(data.train)
            assert batch.images.dtype == np.float32
            assert batch.images.dtype.isnative
            assert np.array_equal(batch.images, images)

    def test_may_have_their_channels_first(self, path):
        images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), np.uint8)
        saved(path, images=images, labels=labels(4))
        read = everything(open_arrays(path, channels_first=True).train).images
        assert np.array_equal(read, images.transpose(0, 2, 3, 1))
        with pytest.raises(
            DataError, match=r"images of 6 channels, 3 pixels high: .*say channels_first = true"
        ):
            open_arrays(path)

    def test_may_be_rows_of_numbers(self, path):
        rows = np.random.default_rng(0).random((4, 7)).astype(np.float32)
        batch = everything(open_arrays(saved(path, images=rows, labels=labels(4))).train)
        assert batch.images.shape == (4, 1, 1, 7)
        assert np.array_equal(batch.images[:, 0, 0], rows)

    @pytest.mark.parametrize(
        ("images", "problem"),
        [
            (pixels(3, dtype=np.float64), "images are uint8 or float32, not float64"),
            (pixels(3, dtype=np.int64), "not int64"),
            (pixels(3, ()), r"not uint8 \[3\]"),
            (pixels(3, (4,)), r"not uint8 \[3, 4\]"),
            (pixels(3, (2, 0)), r"not uint8 \[3, 2, 0\]"),
            (pixels(3, (2, 2, 1, 1)), r"not uint8 \[3, 2, 2, 1, 1\]"),
            (np.array(["a", "b", "c"]), "not <U1"),
            (pixels(4), "x_train: 4 images but 3 labels"),
        ],
    )
    def test_of_another_kind_are_refused(self, path, images, problem):
        saved(path, x_train=images, y_train=labels(3))
        with pytest.raises(DataError, match=problem) as caught:
            open_arrays(path)
        assert str(caught.value).startswith(f"{path} x_train: ")


class TestLabels:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
    @pytest.mark.parametrize("shape", [(4,), (4, 1)])
    def test_are_integers_of_any_width(self, path, dtype, shape):
        saved(path, images=pixels(4), labels=labels(4, dtype).reshape(shape))
        batch = everything(open_arrays(path).train)
        assert batch.targets.dtype == np.int64
        assert batch.targets.tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize(
        ("found", "problem"),
        [
            (np.zeros((3, 2), np.int64), r"labels are integers \[N\] or \[N, 1\], not int64 \[3, 2\]"),
            (np.zeros(3), "not float64"),
            (np.zeros(3, bool), "not bool"),
            (np.array(["cat", "dog", "owl"]), "not <U3"),
            (np.int64(3), r"not int64 \[\]"),
        ],
    )
    def test_of_another_kind_are_refused(self, path, found, problem):
        with pytest.raises(DataError, match=problem) as caught:
            open_arrays(saved(path, x_train=pixels(3), y_train=found))
        assert str(caught.value).startswith(f"{path} y_train: ")

    @pytest.mark.parametrize(("wrong", "classes"), [(-1, None), (3, 3), (2**40, ["a", "b", "c"])])
    def test_out_of_range_are_named_with_their_record(self, path, wrong, classes):
        saved(path, x_train=pixels(3), y_train=np.array([0, wrong, 1]))
        with pytest.raises(DataError, match=rf"x_train record 1: label {wrong} is out of range"):
            open_arrays(path, classes=classes)

    def test_that_are_too_large_to_count_classes_by_are_refused(self, path):
        saved(path, images=pixels(2), labels=np.array([0, 2**40]))
        with pytest.raises(DataError, match=f"label {2**40} is no class index"):
            open_arrays(path)

    def test_may_have_class_names_as_an_option(self, path):
        saved(path, **KERAS)
        assert open_arrays(path, classes=["a", "b", "c"]).train.classes == ("a", "b", "c")
        with pytest.raises(RecipeError):
            open_arrays(path, classes=["a", "a"])

    def test_with_class_names_that_are_no_text_are_refused(self, path):
        saved(path, images=pixels(2), labels=labels(2), classes=np.arange(3))
        with pytest.raises(DataError, match=r"some.npz classes: class names are text \[N\], not int64 \[3\]"):
            open_arrays(path)


class TestMissing:
    def test_images_are_an_error_that_lists_what_there_is(self, path):
        with pytest.raises(DataError) as caught:
            open_arrays(saved(path, a=pixels(2), b=labels(2)))
        assert str(caught.value).startswith(
            f"{path}: has no images to train on, in an array 'x_train', 'train_images', 'images'; it has 'a'"
        )

    def test_labels_are_an_error(self, path):
        with pytest.raises(DataError, match=r"some.npz: has 'x_train', but not 'y_train'"):
            open_arrays(saved(path, x_train=pixels(2)))

    def test_arrays_are_an_error(self, path, tmp_path):
        path.write_bytes(b"PK\5\6" + bytes(18))
        for each in (path, tmp_path):
            with pytest.raises(DataError, match="it has no arrays"):
                open_arrays(each)

    def test_files_are_an_error(self, path):
        with pytest.raises(DataError, match="there is no such file"):
            open_arrays(path)

    def test_files_that_are_named_pipes_are_not_waited_for(self, path):
        os.mkfifo(path)
        with pytest.raises(DataError, match="is a device"):
            open_arrays(path)


def npy(header, values=b"", version=(1, 0)):
    """A .npy file with any header."""
    text = header.encode("latin1") if isinstance(header, str) else header
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(f"{name}.npy", content)
    return path


def header(shape, descr="|u1"):
    return repr({"descr": descr, "fortran_order": False, "shape": shape})


class TestDamaged:
    def refusal(self, path):
        with pytest.raises(DataError) as caught:
            open_arrays(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message

    def test_is_an_archive_cut_off_at_any_byte(self, path):
        content = saved(path, images=pixels(2), labels=labels(2)).read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            self.refusal(path)

    @pytest.mark.parametrize("packed", [True, False])
    def test_is_an_archive_with_any_byte_changed_or_it_gives_the_same(self, path, packed):
        saved(path, packed=packed, images=pixels(2), labels=labels(2))
        content = path.read_bytes()
        expected = open_arrays(path).train.fingerprint()
        refused = 0
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 0x55
            path.write_bytes(changed)
            try:
                assert open_arrays(path).train.fingerprint() == expected
            except DataError as error:
                assert str(error).startswith(str(path))  # noqa: PT017 - of dates, and the like, there is no checksum
                refused += 1
        assert refused > 0.5 * len(content)

    def test_is_a_file_of_a_folder_cut_off_at_any_byte(self, tmp_path):
        np.save(tmp_path / "labels.npy", labels(2))
        np.save(tmp_path / "images.npy", pixels(2))
        content = (tmp_path / "images.npy").read_bytes()
        for length in range(len(content)):
            (tmp_path / "images.npy").write_bytes(content[:length])
            assert self.refusal(tmp_path).startswith(f"{tmp_path / 'images.npy'}: ")

    def test_is_a_file_that_goes_on_after_its_values(self, tmp_path):
        np.save(tmp_path / "labels.npy", labels(2))
        np.save(tmp_path / "images.npy", pixels(2))
        with (tmp_path / "images.npy").open("ab") as file:
            file.write(b"\0")
        assert "goes on after its 12 bytes of values" in self.refusal(tmp_path)

    @pytest.mark.parametrize(
        "claimed", [(2**62, 2), (2**31, 2**31, 2**31), (-1, 2, 3), (10**9, 28, 28), (13, 1, 1)]
    )
    def test_are_sizes_beyond_those_of_the_file_before_there_is_memory_for_them(self, path, claimed):
        archive(path, images=npy(header(claimed), bytes(12)), labels=npy(header((2,)), bytes(2)))
        tracemalloc.start()
        try:
            assert "it is damaged" in self.refusal(path) or "cut off" in self.refusal(path)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_are_sizes_in_the_archive_that_no_file_could_unpack_to(self, path):
        archive(path, images=npy(header((1 << 31, 1, 1)), bytes(12)), labels=npy(header((2,)), bytes(2)))
        content = bytearray(path.read_bytes())
        for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # the unpacked size, as the archive states it
            place = content.index(mark) + at
            content[place : place + 4] = struct.pack("<I", (1 << 32) - 2)
        path.write_bytes(content)
        tracemalloc.start()
        try:
            assert "more than there can be" in self.refusal(path)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x93NUMPY",
            npy(header((2, 2, 3)), bytes(12), version=(9, 9)),
            npy(header((2, 2, 3)), bytes(12), version=(3, 0)),
            npy("not python", bytes(12)),
            npy("-" * 9000 + "1", bytes(12)),
            npy("(" * 9000, bytes(12)),
            npy(header((2, 2, 3)) + " " * 20_000, bytes(12)),
            npy("{'descr': '|u1', 'shape': (2, 2, 3)}", bytes(12)),
            npy(header((2, 2, 3), "|O"), bytes(12)),
            npy(header((2, 2, 3), [("a", "|u1")]), bytes(12)),
            npy(header((2, 2, 3), "<U0"), bytes(12)),
            npy(header((2, 2, 3), "what"), bytes(12)),
            npy(header((2.0, 6)), bytes(12)),
            npy("__import__('os').system('true')", bytes(12)),
        ],
    )
    def test_are_headers_that_say_something_else(self, path, content):
        archive(path, images=content, labels=npy(header((2,)), bytes(2)))
        assert self.refusal(path).startswith(f"{path} images: ")

    def test_is_an_array_of_pickled_objects(self, path):
        np.savez(path, images=np.array([{}, []], dtype=object), labels=labels(2))
        assert "holds object, not numbers or text" in self.refusal(path)

    def test_is_an_encrypted_archive(self, path):
        content = bytearray(saved(path, images=pixels(2), labels=labels(2)).read_bytes())
        for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            content[content.index(mark) + at] |= 1
        path.write_bytes(content)
        assert "encrypted" in self.refusal(path)

    def test_is_another_file(self, path):
        path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
        assert "no archive of arrays" in self.refusal(path)

    def test_is_a_single_array(self, path):
        content = io.BytesIO()
        np.save(content, pixels(3))
        path.write_bytes(content.getvalue())
        assert "no archive of arrays" in self.refusal(path)
