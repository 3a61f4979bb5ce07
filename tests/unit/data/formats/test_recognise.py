from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tests.privileges import as_ordinary_user

from foveal.data.formats import recognise as module
from foveal.data.formats.recognise import recognise
from foveal.errors import DataError
from foveal.tensorflow.records import frame

JPEG = b"\xff\xd8\xff\xe0 the rest of a picture"
RECORDS = frame(b"one") + frame(b"two")
IDX = struct.pack(">4I", 0x803, 1, 1, 1) + b"\0"


def write(folder, **contents):
    """Files; in their names __ stands for a folder's end and _ for a point."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def everybodys():
    """A folder that every user may look into, unlike those of pytest."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def npz():
    content = io.BytesIO()
    np.savez(content, x_train=np.zeros(3))
    return content.getvalue()


def refusal(path):
    with pytest.raises(DataError) as caught:
        recognise(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "format_"),
        [
            (RECORDS, "tfrecord"),
            (gzip.compress(RECORDS), "tfrecord"),
            (zlib.compress(RECORDS), "tfrecord"),
            (IDX, "idx"),
            (gzip.compress(IDX), "idx"),
            (b"PAR1 and so on", "parquet"),
            (npz(), "arrays"),
        ],
    )
    @pytest.mark.parametrize("name", ["some", "some.bin", "train-00001-of-00010", "写真", "some.csv"])
    def test_are_known_by_their_content_whatever_their_name(self, tmp_path, content, format_, name):
        (tmp_path / name).write_bytes(content)
        assert recognise(tmp_path / name) == format_

    @pytest.mark.parametrize(
        ("name", "format_"),
        [
            ("some.csv", "csv"),
            ("SOME.TSV", "csv"),
            ("some.csv.gz", "csv"),
            ("some.tfrecord", "tfrecord"),
            ("some.tfrecord-00000-of-00002", "tfrecord"),
            ("some.parquet", "parquet"),
            ("some.npz", "arrays"),
            ("train-images-idx3-ubyte.gz", "idx"),
            ("cifar-10-binary.tar.gz", "cifar10"),
            ("cifar-100-binary.tar.gz", "cifar100"),
        ],
    )
    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b damaged", b"1,2\n3,4\n", RECORDS[:11]])
    def test_are_known_by_their_names_where_their_content_does_not_tell(
        self, tmp_path, name, format_, content
    ):
        (tmp_path / name).write_bytes(content)
        assert recognise(tmp_path / name) == format_

    def test_of_records_with_any_bit_of_the_first_header_changed_are_not_known_by_it(self, tmp_path):
        for bit in range(96):
            content = bytearray(RECORDS)
            content[bit // 8] ^= 1 << bit % 8
            (tmp_path / "some").write_bytes(content)
            refusal(tmp_path / "some")

    def test_may_be_those_of_a_pattern(self, tmp_path):
        write(tmp_path, a_csv=b"", b_csv=b"", c_parquet=b"PAR1")
        assert recognise(tmp_path / "[ab].*") == "csv"
        assert "several formats, csv and parquet: name one" in refusal(tmp_path / "*")
        assert "there is no such file or folder" in refusal(tmp_path / "*.npz")

    @pytest.mark.parametrize("name", ["some.bin", "some.dat"])
    def test_of_fixed_length_records_are_said_to_need_a_layout(self, tmp_path, name):
        (tmp_path / name).write_bytes(bytes(100))
        assert "data.name = 'fixed_length' with the options image_shape and classes" in refusal(
            tmp_path / name
        )

    def test_that_are_one_image_are_said_to_need_a_class(self, tmp_path):
        (tmp_path / "some").write_bytes(JPEG)
        assert "each class needs a subfolder" in refusal(tmp_path / "some")

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", b"x\x9c", b"PK\3\4", os.urandom(5000)])
    def test_of_no_known_format_are_refused_with_what_would_be_taken(self, tmp_path, content):
        (tmp_path / "some.txt").write_bytes(content)
        message = refusal(tmp_path / "some.txt")
        for known in ("holds nothing that is known", "CSV", "TFRecord", "Parquet", ".npz", "IDX", "CIFAR-10"):
            assert known in message

    def test_that_are_not_there_are_refused(self, tmp_path):
        assert refusal(tmp_path / "none.csv") == "there is no such file or folder"

    def test_that_are_named_pipes_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "holds nothing that is known" in refusal(tmp_path / "pipe")

    def test_that_cannot_be_read_are_known_by_their_names(self, everybodys):
        write(everybodys, some_csv=b"", some=RECORDS)
        for name in ("some.csv", "some"):
            (everybodys / name).chmod(0)
        with as_ordinary_user():
            assert recognise(everybodys / "some.csv") == "csv"
            refusal(everybodys / "some")


class TestFolders:
    @pytest.mark.parametrize(
        "contents",
        [
            {"cat__1_jpg": JPEG, "dog__1_png": b"?"},
            {"train__cat__1_jpg": JPEG, "train__dog__1_jpg": JPEG, "val__cat__1_jpg": JPEG},
            {"cat__1": JPEG, "dog__1": JPEG},
            {"cat__more__1_jpg": JPEG},
            {"cat__1_jpg": JPEG, "readme_txt": b"hello", "dog__notes_bin": b"?"},
            {"猫__1_jpg": JPEG, "train__1_jpg": JPEG, "bus__1_jpg": JPEG},
        ],
    )
    def test_of_images_have_a_subfolder_for_each_class(self, tmp_path, contents):
        assert recognise(write(tmp_path, **contents)) == "folder"

    @pytest.mark.parametrize(
        ("contents", "format_"),
        [
            ({"a_csv": b"", "readme_md": b"# of data"}, "csv"),
            ({"labels_csv": b"", "images__1_jpg": JPEG, "images__2_jpg": JPEG}, "csv"),
            ({"labels_csv": b"", "1_jpg": JPEG}, "csv"),
            ({"train-0-of-2": RECORDS, "train-1-of-2": RECORDS, "labels_txt": b"cat\n"}, "tfrecord"),
            ({"train__0": RECORDS, "test__0": RECORDS}, "tfrecord"),
            ({"data__train-0-of-1_parquet": b"PAR1", "readme_md": b""}, "parquet"),
            ({"train-images-idx3-ubyte": IDX, "train-labels-idx1-ubyte": b"?"}, "idx"),
            ({"train-images-idx3-ubyte_gz": b"", "t10k-images-idx3-ubyte_gz": b""}, "idx"),
            ({"x_npz": npz()}, "arrays"),
            ({"x__train_npy": b"\x93NUMPY", "y__train_npy": b"\x93NUMPY"}, "arrays"),
        ],
    )
    def test_of_files_have_their_format(self, tmp_path, contents, format_):
        assert recognise(write(tmp_path, **contents)) == format_

    def test_of_cifar_are_known_by_the_names_of_their_files(self, tmp_path):
        for place in (tmp_path / "a", tmp_path / "b" / "cifar-10-batches-bin"):
            place.mkdir(parents=True)
            (place / "data_batch_1.bin").touch()
            (place / "test_batch.bin").touch()
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "cifar-100-binary.tar.gz").touch()
        assert [recognise(tmp_path / name) for name in "abc"] == ["cifar10", "cifar10", "cifar100"]

    def test_of_several_formats_are_refused_with_their_names(self, tmp_path):
        write(tmp_path, a_csv=b"", cat__1_jpg=JPEG, dog__1_jpg=JPEG, b_parquet=b"PAR1")
        assert (
            refusal(tmp_path) == "holds several formats, csv and folder and parquet: name one with data.name"
        )

    def test_of_images_alone_are_said_to_need_classes(self, tmp_path):
        assert "each class needs a subfolder" in refusal(write(tmp_path, a_jpg=JPEG, b_jpg=JPEG))
        assert "each class needs a subfolder" in refusal(write(tmp_path, train__c_jpg=JPEG))

    def test_of_records_of_unknown_layout_are_said_to_need_one(self, tmp_path):
        assert "nothing in them says their layout" in refusal(write(tmp_path, train_bin=bytes(99)))

    def test_that_are_empty_are_refused(self, tmp_path):
        assert "holds nothing that is known" in refusal(tmp_path)
        (tmp_path / "cat").mkdir()
        assert "holds nothing that is known" in refusal(tmp_path)

    def test_that_are_hidden_do_not_count(self, tmp_path):
        for name in (".foveal/a.csv", ".cache/cat/1.jpg", ".hidden.parquet"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(JPEG)
        assert "holds nothing that is known" in refusal(tmp_path)

    def test_that_contain_themselves_come_to_an_end(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").symlink_to(tmp_path)
        (tmp_path / "c").symlink_to(tmp_path / "c")
        assert "holds nothing that is known" in refusal(tmp_path)

    def test_with_names_that_are_no_text_are_read(self, tmp_path):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat\xff"))
        folder.mkdir()
        (folder / os.fsdecode(b"\xfe.jpg")).write_bytes(JPEG)
        assert recognise(tmp_path) == "folder"

    @pytest.mark.parametrize("below", [".", "cat", "cat/1.jpg"])
    def test_that_cannot_be_read_are_refused(self, everybodys, below):
        folder = write(everybodys / "data", cat__1_jpg=JPEG)
        folder.chmod(0)
        with as_ordinary_user():
            assert refusal(folder / below) == "cannot be read: Permission denied"
        folder.chmod(0o755)

    def test_below_that_cannot_be_read_are_left_to_the_reader(self, everybodys):
        write(everybodys, cat__1_jpg=JPEG, dog__1_jpg=JPEG)
        (everybodys / "cat").chmod(0)
        with as_ordinary_user():
            assert recognise(everybodys) == "folder"
        (everybodys / "cat").chmod(0o755)

    def test_of_many_files_are_not_all_opened(self, tmp_path, monkeypatch):
        opened, real = [], module._start
        monkeypatch.setattr(module, "_start", lambda path: opened.append(path) or real(path))
        for number in range(300):
            (tmp_path / f"part-{number:03}").write_bytes(RECORDS)
        assert recognise(tmp_path) == "tfrecord"
        assert len(opened) <= 100

    def test_of_many_images_are_not_all_looked_at(self, tmp_path, monkeypatch):
        looked, real = [], os.scandir
        for number in range(50):
            write(tmp_path, **{f"train__{number}__1_jpg": JPEG})
        monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or real(path))
        assert recognise(tmp_path) == "folder"
        assert len(looked) < 6
