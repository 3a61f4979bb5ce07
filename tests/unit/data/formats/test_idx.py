from __future__ import annotations

import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest

from foveal.data.formats.idx import find_idx, open_idx, read_idx, read_idx_pair
from foveal.errors import DataError, RecipeError

IMAGES = bytes.fromhex("00000803 00000002 00000002 00000003") + bytes(range(12))
LABELS = bytes.fromhex("00000801 00000002") + bytes([1, 0])
CLASSES = ("a", "b")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file"


def packed(content):
    return gzip.compress(content, mtime=0)


def refusal(path, dimensions=3):
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("pack", [bytes, packed], ids=["plain", "gzip"])
def test_a_valid_file_is_read(path, pack):
    path.write_bytes(pack(IMAGES))
    images = read_idx(path, 3)
    assert images.dtype == np.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    path.write_bytes(pack(LABELS))
    assert read_idx(path, 1).tolist() == [1, 0]


def test_a_file_of_no_values_is_read(path):
    path.write_bytes(bytes.fromhex("00000801 00000000"))
    assert read_idx(path, 1).shape == (0,)


def test_sizes_are_big_endian(path):
    path.write_bytes(bytes.fromhex("00000801 00000100") + bytes(256))
    assert read_idx(path, 1).shape == (256,)


def test_a_gzip_file_is_known_by_its_content_and_not_by_its_name(tmp_path):
    plain, compressed = tmp_path / "labels.gz", tmp_path / "labels"
    plain.write_bytes(LABELS)
    compressed.write_bytes(packed(LABELS))
    assert read_idx(plain, 1).tolist() == read_idx(compressed, 1).tolist() == [1, 0]


def test_a_gzip_file_of_several_members_is_read(path):
    path.write_bytes(packed(LABELS[:5]) + packed(LABELS[5:]))
    assert read_idx(path, 1).tolist() == [1, 0]


def test_a_missing_file_is_refused(path):
    assert refusal(path).startswith("there is no such file")


def test_a_folder_is_refused(path):
    path.mkdir()
    assert refusal(path).startswith("cannot be read")


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\x08", packed(b""), packed(b"\0\0\x08")])
def test_a_file_too_short_for_a_magic_number_is_refused(path, content):
    path.write_bytes(content)
    assert "too few" in refusal(path)


@pytest.mark.parametrize(
    "magic", ["00000802", "00000801", "00000d03", "00010803", "01000803", "00000804", "89504e47"]
)
def test_another_magic_number_is_refused(path, magic):
    path.write_bytes(bytes.fromhex(magic) + IMAGES[4:])
    message = refusal(path)
    assert magic in message
    assert "00000803" in message


def test_labels_in_the_place_of_images_are_refused(path):
    path.write_bytes(LABELS)
    assert "00000801, not 00000803" in refusal(path, 3)


@pytest.mark.parametrize("length", range(len(IMAGES)))
def test_a_file_cut_off_at_any_byte_is_refused(path, length):
    path.write_bytes(IMAGES[:length])
    message = refusal(path)
    if 4 <= length < 16:
        assert f"header, after {length} of 16 bytes" in message
    elif length >= 16:
        assert f"{length} bytes, but its header of 2 x 2 x 3 values asks for 28" in message


def test_a_gzip_file_cut_off_at_any_byte_is_refused(path):
    whole = packed(IMAGES)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("pack", [bytes, packed], ids=["plain", "gzip"])
def test_extra_bytes_are_refused(path, pack):
    path.write_bytes(pack(IMAGES + b"\0"))
    assert refusal(path).startswith("more than 28 bytes, but its header of 2 x 2 x 3 values asks for 28")


def test_bytes_after_the_end_of_a_gzip_file_are_refused(path):
    path.write_bytes(packed(IMAGES) + b"more")
    assert "cannot be read" in refusal(path)


def test_sizes_that_a_small_gzip_file_cannot_unpack_to_are_refused_without_memory_for_them(path):
    path.write_bytes(packed(bytes.fromhex("00000803 00010000 00010000 00010000") + bytes(1 << 16)))
    tracemalloc.start()
    try:
        assert str(16 + 2**48) in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_named_pipe_is_refused_without_waiting_for_it(path):
    os.mkfifo(path)
    assert refusal(path).startswith("cannot be read")


def test_sizes_whose_product_overflows_are_refused(path):
    path.write_bytes(bytes.fromhex("00000803") + b"\xff" * 12 + bytes(12))
    assert str(16 + (2**32 - 1) ** 3) in refusal(path)


@pytest.mark.parametrize("dimension", range(3))
def test_a_wrong_size_is_refused(path, dimension):
    content = bytearray(IMAGES)
    content[7 + 4 * dimension] += 1
    path.write_bytes(content)
    assert "28 bytes" in refusal(path)


def test_a_damaged_gzip_file_is_refused_or_gives_the_original_values(path):
    whole = packed(IMAGES)
    refused = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x24
        path.write_bytes(content)
        try:
            images = read_idx(path, 3)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017 - some bytes of the header may be any
            refused += 1
        else:
            assert images.tobytes() == IMAGES[16:]
    assert refused >= len(whole) - 10  # the header's ten bytes hold a time and other remarks


class TestPairs:
    @pytest.fixture
    def paths(self, tmp_path):
        images, labels = tmp_path / "images", tmp_path / "labels"
        images.write_bytes(IMAGES)
        labels.write_bytes(LABELS)
        return images, labels

    def test_images_and_labels_become_a_source(self, paths):
        source = read_idx_pair(*paths, CLASSES)
        assert len(source) == 2
        assert source.image_shape == (2, 3, 1)
        assert source.classes == CLASSES
        batch = source.read(np.array([1, 0]))
        assert batch.images[..., 0].tolist() == [[[6, 7, 8], [9, 10, 11]], [[0, 1, 2], [3, 4, 5]]]
        assert batch.targets.tolist() == [0, 1]
        assert batch.targets.dtype == np.int64
        assert source.key(1) == f"{paths[0]} record 1"

    def test_different_counts_are_refused(self, paths):
        paths[1].write_bytes(bytes.fromhex("00000801 00000003") + bytes(3))
        with pytest.raises(DataError, match="2 images but 3 labels") as caught:
            read_idx_pair(*paths, CLASSES)
        assert str(paths[0]) in str(caught.value)

    def test_a_label_out_of_range_is_refused_with_its_record(self, paths):
        paths[1].write_bytes(LABELS[:-1] + bytes([2]))
        with pytest.raises(
            DataError, match=r"record 1: label 2 is out of range.* 2 classes, 0 to 1"
        ) as caught:
            read_idx_pair(*paths, CLASSES)
        assert str(paths[0].parent) in str(caught.value)

    @pytest.mark.parametrize("which", [0, 1])
    def test_the_malformed_one_of_the_two_files_is_named(self, paths, which):
        paths[which].write_bytes(b"")
        with pytest.raises(DataError) as caught:
            read_idx_pair(*paths, CLASSES)
        assert str(caught.value).startswith(f"{paths[which]}: ")


def write(folder, stem, count=4, *, end="", joint="-", labels=None):
    """Images of one value each, their number; labels 0, 1, 2, ..."""
    folder.mkdir(exist_ok=True)
    pixels = np.repeat(np.arange(count, dtype=np.uint8), 6)
    labels = list(range(count)) if labels is None else labels
    for kind, content in (
        ("images{}idx3", struct.pack(">4I", 0x803, count, 2, 3) + pixels.tobytes()),
        ("labels{}idx1", struct.pack(">2I", 0x801, len(labels)) + bytes(labels)),
    ):
        name = f"{stem}-{kind.format(joint)}-ubyte{end}"
        (folder / name).write_bytes(packed(content) if end else content)
    return folder / f"{stem}-images{joint}idx3-ubyte{end}"


class TestFolders:
    @pytest.mark.parametrize("end", ["", ".gz"])
    @pytest.mark.parametrize("joint", ["-", "."])
    @pytest.mark.parametrize("names", [("train", "t10k"), ("emnist-letters-train", "emnist-letters-test")])
    def test_are_opened_by_the_names_that_such_files_are_published_under(self, tmp_path, end, joint, names):
        for count, name in zip((5, 3), names, strict=True):
            write(tmp_path / "data", name, count, end=end, joint=joint)
        data = open_idx(tmp_path / "data")
        assert {name: len(part) for name, part in data.parts().items()} == {"train": 5, "test": 3}
        assert data.train.classes == ("0", "1", "2", "3", "4")
        assert data.train.read(np.array([3])).images.tolist() == [[[[3]] * 3] * 2]

    def test_may_have_a_validation_part(self, tmp_path):
        for name in ("train", "validation"):
            write(tmp_path, name)
        assert list(open_idx(tmp_path).parts()) == ["train", "validation"]

    def test_with_a_file_packed_and_unpacked_give_the_unpacked_one(self, tmp_path):
        write(tmp_path, "train", end=".gz")
        plain = write(tmp_path, "train")
        assert find_idx(tmp_path) == {"train": plain}

    def test_with_several_sets_ask_which(self, tmp_path):
        first, second = (write(tmp_path, f"emnist-{name}-train") for name in ("letters", "mnist"))
        with pytest.raises(DataError) as caught:
            open_idx(tmp_path)
        assert str(caught.value).startswith(
            f"{tmp_path}: holds several files of train images: {first.name}, {second.name}"
        )
        data = open_idx(tmp_path, train=second.name, test=first.name)
        assert data.train.key(1) == f"{second} record 1"
        assert data.test.key(0) == f"{first} record 0"

    def test_with_classes_by_name_have_those(self, tmp_path):
        write(tmp_path, "train", labels=[0, 1, 1, 0])
        assert open_idx(tmp_path, classes=["shirt", "dress"]).train.classes == ("shirt", "dress")
        with pytest.raises(RecipeError, match="classes = 0"):
            open_idx(tmp_path, classes=0)

    def test_with_a_label_that_is_no_class_name_it(self, tmp_path):
        write(tmp_path, "train", labels=[0, 1, 2, 0])
        with pytest.raises(DataError, match="train-labels-idx1-ubyte record 2: label 2 is out of range"):
            open_idx(tmp_path, classes=2)

    def test_without_labels_are_refused(self, tmp_path):
        write(tmp_path, "train")
        (tmp_path / "train-labels-idx1-ubyte").unlink()
        with pytest.raises(DataError, match="its labels are missing: there is no train-labels-idx1-ubyte"):
            open_idx(tmp_path)

    def test_without_images_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="holds no images in IDX"):
            open_idx(tmp_path)
        write(tmp_path, "t10k")
        with pytest.raises(DataError, match="has no images to train on, only test images"):
            open_idx(tmp_path)

    def test_that_are_not_there_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="nowhere"):
            find_idx(tmp_path / "nowhere")


class TestFiles:
    def test_of_images_are_trained_on(self, tmp_path):
        images = write(tmp_path, "train", end=".gz")
        assert list(open_idx(images).parts()) == ["train"]
        assert len(open_idx(images).train) == 4

    def test_may_have_labels_that_are_packed_otherwise(self, tmp_path):
        images = write(tmp_path, "train")
        labels = tmp_path / "train-labels-idx1-ubyte"
        labels.with_name(f"{labels.name}.gz").write_bytes(packed(labels.read_bytes()))
        labels.unlink()
        assert len(open_idx(images).train) == 4

    def test_of_any_other_name_are_refused(self, tmp_path):
        images = write(tmp_path, "train").rename(tmp_path / "some")
        with pytest.raises(DataError, match="no name of a file of images, like train-images-idx3-ubyte"):
            open_idx(images)
