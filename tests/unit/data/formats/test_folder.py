from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.privileges import as_ordinary_user

from foveal.data.formats.folder import FolderSource, PathList, open_folder
from foveal.data.source import Encoded
from foveal.errors import DataError, ImageError


def png(seed, shape=(4, 6, 3), kind="PNG"):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


@pytest.fixture
def make(tmp_path):
    """Writes images, each another, under the names given."""

    def make(*names, shape=(4, 6, 3)):
        for number, name in enumerate(names):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number, shape))
        return tmp_path / "data"

    return make


def files(source, root):
    """The examples: path below the root, and class."""
    targets = source.targets.tolist()
    return [(os.path.relpath(source.key(i), root), source.classes[targets[i]]) for i in range(len(source))]


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        open_folder(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestClasses:
    def test_are_the_folders_sorted_by_name(self, make):
        folder = make("dog/2.png", "cat/b.png", "cat/a.png", "Zebra/1.png")
        data = open_folder(folder)
        assert data.train.classes == ("Zebra", "cat", "dog")
        assert files(data.train, folder) == [
            ("Zebra/1.png", "Zebra"),
            ("cat/a.png", "cat"),
            ("cat/b.png", "cat"),
            ("dog/2.png", "dog"),
        ]
        assert list(data.parts()) == ["train"]

    def test_have_all_images_below_their_folder(self, make):
        folder = make("a/1.png", "a/x/y/2.png", "b/test/3.png")
        assert [name for _, name in files(open_folder(folder).train, folder)] == ["a", "a", "b"]

    def test_may_be_named_in_any_script_and_in_none(self, make):
        names = ["猫", "Hündin", "a b'c", os.fsdecode(b"\xff")]
        folder = make(*(f"{name}/1.png" for name in names))
        source = open_folder(folder).train
        assert set(source.classes) == {"猫", "Hündin", "a b'c", "\\xff"}
        assert all(name.encode() for name in source.classes)
        assert all(source.key(i).encode() for i in range(4))
        assert len(source.read(np.arange(4)).targets) == 4

    def test_may_be_given_in_another_order(self, make):
        folder = make("a/1.png", "b/2.png")
        source = open_folder(folder, classes=["c", "b", "a"]).train
        assert source.classes == ("c", "b", "a")
        assert source.targets.tolist() == [2, 1]

    def test_that_are_given_must_be_those_of_the_images(self, make):
        folder = make("cat/1.png", "dog/2.png")
        message = refusal(folder, classes=["cats", "dog"])
        assert message == f"{folder / 'cat'}: not one of the classes: did you mean 'cats'?"

    def test_without_images_are_none(self, make):
        folder = make("a/1.png", "b/2.png")
        for name in ("empty", "texts"):
            (folder / name).mkdir()
        (folder / "texts" / "x.txt").touch()
        (folder / "texts" / "x.png").write_text("no image")
        source = open_folder(folder).train
        assert source.classes == ("a", "b")
        assert source.rejected == ((f"{folder}/texts/x.png", "not an image that can be read"),)

    def test_are_two_at_least(self, make):
        folder = make("cat/1.png", "cat/2.png")
        assert refusal(folder) == (
            f"{folder}: has images of one class only, 'cat': there must be a folder of them for each class"
        )


class TestParts:
    def test_are_the_folders_of_their_names(self, make):
        folder = make("train/a/1.png", "train/b/2.png", "Val/b/3.png", "test/a/4.png", "notes/x/5.png")
        data = open_folder(folder)
        assert files(data.train, folder) == [("train/a/1.png", "a"), ("train/b/2.png", "b")]
        assert files(data.validation, folder) == [("Val/b/3.png", "b")]
        assert files(data.test, folder) == [("test/a/4.png", "a")]

    def test_may_be_given(self, make):
        folder = make("x/a/1.png", "x/b/2.png", "y/a/3.png", "train/a/4.png", "train/b/5.png", "val/a/6.png")
        data = open_folder(folder, train="x", test="y")
        assert [files(part, folder)[0][0] for part in data.parts().values()] == ["x/a/1.png", "y/a/3.png"]
        data = open_folder(folder, validation="y")
        assert [files(part, folder)[0][0] for part in data.parts().values()] == [
            "train/a/4.png",
            "y/a/3.png",
        ]

    def test_may_lack_a_class_but_not_have_one_more(self, make):
        folder = make("train/a/1.png", "train/b/2.png", "test/b/3.png")
        assert open_folder(folder).test.classes == ("a", "b")
        make("train/a/1.png", "test/wolf/3.png")
        assert refusal(folder) == f"{folder / 'test' / 'wolf'}: not one of the classes: known: a, b"

    def test_are_classes_where_there_is_no_train_part_among_other_folders(self, make):
        assert open_folder(make("test/x/1.png", "cat/x/2.png")).train.classes == ("cat", "test")

    def test_without_one_to_train_on_are_refused(self, make):
        message = refusal(make("val/a/1.png", "val/b/1.png", "test/a/1.png"))
        assert message.endswith("has a test and a validation part, and no folder named train")

    def test_that_are_given_without_one_to_train_on_are_refused(self, make):
        message = refusal(make("x/a/1.png", "y/b/1.png"), test="y")
        assert message.endswith("has a test part, and no folder named train")

    def test_that_are_two_of_a_kind_are_refused(self, make):
        message = refusal(make("train/a/1.png", "train/b/1.png", "val/a/1.png", "dev/b/1.png"))
        assert message.endswith("dev and val are both a validation part: say which is")

    def test_that_are_given_must_be_there(self, make):
        folder = make("train/a/1.png", "train/b/1.png")
        assert refusal(folder, test="none") == f"{folder / 'none'}: there is no such folder"

    def test_without_folders_of_classes_do_not_count(self, make):
        assert list(open_folder(make("train/a/1.png", "train/b/1.png", "test/1.png")).parts()) == ["train"]

    def test_have_one_shape_or_none(self, make):
        folder = make("train/a/1.png", "train/b/2.png", "test/a/3.png")
        assert open_folder(folder).test.image_shape == (4, 6, 3)
        make("train/a/1.png", shape=(4, 6))
        assert open_folder(folder).train.image_shape == (4, 6, 3)
        make("train/a/1.png", shape=(5, 6))
        data = open_folder(folder)
        assert data.train.image_shape is None
        assert data.test.image_shape is None


class TestReading:
    def test_of_small_images_of_one_size_gives_pixels(self, make):
        data = open_folder(make("a/1.png", "b/2.png"))
        pixels = data.train.read(np.array([1])).images
        assert np.array_equal(pixels[0], np.asarray(Image.open(data.train.key(1))))

    def test_of_others_and_where_they_are_not_held_gives_files(self, make):
        folder = make("a/1.png", "b/2.png")
        source = open_folder(folder, hold=False).train
        assert isinstance(source, FolderSource)
        batch = source.read(np.array([1, 0]))
        assert isinstance(batch.images, Encoded)
        assert list(batch.images.contents) == [
            (folder / name).read_bytes() for name in ("b/2.png", "a/1.png")
        ]
        assert batch.targets.tolist() == [1, 0]
        assert source.fingerprint() == open_folder(folder).train.fingerprint()

    @pytest.mark.parametrize("change", [b"", b"other bytes", None])
    def test_of_a_file_that_changed_is_an_error_that_names_it(self, make, change):
        folder = make("a/1.png", "b/2.png")
        source = open_folder(folder, hold=False).train
        path = folder / "b" / "2.png"
        path.write_bytes(path.read_bytes() + b"more" if change is None else change)
        with pytest.raises(DataError) as caught:
            source.read(np.array([0, 1]))
        assert str(caught.value).startswith(f"{path}: has changed since it was indexed: run ")

    def test_of_a_file_that_is_gone_is_an_error_that_names_it(self, make):
        folder = make("a/1.png", "b/2.png")
        source = open_folder(folder, hold=False).train
        (folder / "a" / "1.png").unlink()
        with pytest.raises(DataError) as caught:
            source.read(np.array([0]))
        assert str(caught.value) == f"{folder / 'a' / '1.png'}: cannot be read: No such file or directory"
        assert isinstance(caught.value.__cause__, OSError)

    def test_sees_what_changed_between_two_openings(self, make):
        folder = make("a/1.png", "b/2.png")
        first = open_folder(folder).train.fingerprint()
        assert open_folder(folder).train.fingerprint() == first
        make("b/2.png")
        assert open_folder(folder).train.fingerprint() != first
        make("a/1.png", "b/2.png", "b/3.png")
        assert len(open_folder(folder).train) == 3

    def test_keeps_one_hidden_file_beside_the_classes_whatever_files_are_added(self, make):
        for names in (("a/1.png",), ("a/1.png", "b/2.png"), ("a/1.png", "b/2.png", "b/3.png", "c/4.png")):
            folder = make(*names)
            open_folder(folder, classes=("a", "b", "c"))
            (index,) = (each for each in folder.iterdir() if each.name not in {"a", "b", "c"})
            assert index.name.startswith(".foveal-folder-")
            assert index.is_file()

    def test_the_second_time_looks_at_no_file(self, make, monkeypatch):
        folder = make("a/1.png", "b/2.png", "b/3.png")
        (folder / "b" / "3.png").write_text("no image")
        rejected = open_folder(folder, hold=False).train.rejected
        monkeypatch.setattr(
            "foveal.data.formats.encoded.load_image_file", lambda *file: pytest.fail(f"read {file}")
        )
        source = open_folder(folder, hold=False).train
        assert len(source) == 2
        assert source.rejected == rejected


class TestWhatIsNoImage:
    def test_is_reported_with_its_reason_and_not_fatal(self, make):
        folder = make("a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png", "lost.png")
        (folder / "a" / "2.png").write_bytes(b"")
        (folder / "a" / "3.png").write_bytes((folder / "a" / "1.png").read_bytes()[:20])
        (folder / "b" / "link.png").symlink_to("nowhere")
        source = open_folder(folder).train
        assert len(source) == 3
        assert [name for name, _ in files(source, folder)] == ["a/1.png", "b/4.png", "b/5.png"]
        reasons = dict(source.rejected)
        assert reasons.pop(f"{folder}/a/3.png").startswith("cannot be read")
        assert reasons == {
            f"{folder}/lost.png": "is in no folder of a class",
            f"{folder}/b/link.png": "is a link to nothing",
            f"{folder}/a/2.png": "is empty",
        }

    def test_and_whose_name_says_so_is_not_even_reported(self, make):
        folder = make("a/1.png", "b/2.png")
        for name in ("a/labels.txt", "b/x.JSON", "Thumbs.db", "a/.DS_Store", ".git/x.png", "a/.x/y.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("text")
        assert open_folder(folder).train.rejected == ()

    def test_is_a_file_that_may_not_be_read(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for each in ("a/1.png", "b/2.png", "b/3.png"):
                (folder / each).parent.mkdir(exist_ok=True, mode=0o755)
                (folder / each).write_bytes(png(0))
            folder.chmod(0o755)
            (folder / "b" / "3.png").chmod(0)
            with as_ordinary_user():
                source = open_folder(folder, hold=False).train
            assert source.rejected == ((f"{folder}/b/3.png", "cannot be read: Permission denied"),)

    def test_behind_a_good_header_is_found_when_it_is_read(self, make):
        folder = make("a/1.png", "b/2.png")
        path = folder / "b" / "2.png"
        path.write_bytes(path.read_bytes()[:60])
        source = open_folder(folder).train
        assert len(source.read(np.array([0])).images) == 1
        with pytest.raises(ImageError) as caught:
            source.read(np.array([1]))
        assert str(caught.value).startswith(f"{path}: cannot be read")


class TestRefusals:
    def test_of_nothing(self, tmp_path):
        assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: there is no such folder"

    def test_of_a_file(self, make):
        path = make("a/1.png") / "a" / "1.png"
        assert refusal(path) == f"{path}: is a file, not a folder of images"

    @pytest.mark.parametrize("names", [[], ["1.png", "2.png"], ["a/x.txt"]])
    def test_of_a_folder_without_images_of_classes(self, make, tmp_path, names):
        (tmp_path / "data").mkdir()
        folder = make(*names)
        assert refusal(folder) == f"{folder}: has no images: there must be a folder of them for each class"

    def test_of_files_none_of_which_is_an_image(self, make):
        folder = make("a/1.png", "b/2.png")
        for name in ("a/1.png", "b/2.png"):
            (folder / name).write_text("text")
        assert refusal(folder).startswith(f"{folder}: has no images: ")

    def test_of_a_folder_that_may_not_be_read(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "closed").mkdir(mode=0o700)
            folder.chmod(0o755)
            with as_ordinary_user():
                message = refusal(folder)
            assert message == f"{folder}/closed: the folder cannot be read: Permission denied"


def test_links_are_followed_and_loops_are_not(make, tmp_path):
    folder = make("a/1.png", "b/2.png")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "3.png").write_bytes(png(9))
    (folder / "c").symlink_to(tmp_path / "pool")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "b" / "4.png").symlink_to(folder / "a" / "1.png")
    source = open_folder(folder).train
    assert source.classes == ("a", "b", "c")
    assert [name for name, _ in files(source, folder)] == ["a/1.png", "b/2.png", "b/4.png", "c/3.png"]


def test_progress_is_told_in_bytes(make):
    calls = []

    class Reporter:
        def start(self, *each):
            calls.append(each)

        def advance(self, n):
            calls.append(n)

        def finish(self):
            calls.append("end")

    folder = make("a/1.png", "b/2.png")
    total = sum(path.stat().st_size for path in folder.rglob("*.png"))
    open_folder(folder, Reporter())
    assert calls == [("indexing", total, 0), total, "end", ("decoding", total, 0), total, "end"]


def test_a_list_of_paths_is_a_sequence_and_small():
    names = [f"/folder/class {i % 7}/picture {i}.jpeg" for i in range(2000)] + ["猫", os.fsdecode(b"\xff")]
    paths = PathList(names)
    assert list(paths) == names
    assert paths[5] == names[5]
    assert list(paths[3:6]) == names[3:6]
    with pytest.raises(IndexError):
        paths[len(names)]
    assert sum(map(sys.getsizeof, vars(paths).values())) < 60 * len(names)
