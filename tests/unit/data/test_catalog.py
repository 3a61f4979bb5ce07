from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from foveal.data import catalog, download
from foveal.data.catalog import open_data
from foveal.errors import DataError, DownloadError, RecipeError, UnknownNameError
from foveal.recipe import DataPart

PARTS = {"train": 12, "t10k": 4}


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch, tmp_path):
    """No folder and no cache of the user's, and one mirror at which nobody listens, asked once."""
    monkeypatch.delenv("FOVEAL_DATA", raising=False)
    files = tuple(replace(file, urls=("http://127.0.0.1:9/",)) for file in catalog._MNIST_FILES)
    monkeypatch.setattr(catalog, "_MNIST_FILES", files)
    monkeypatch.setattr(download, "_PAUSES", ())
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)


def write_mnist(folder, *, joint="-", end="", first=0):
    """A small data set in MNIST's files: pixel 0 of each image is its number, its label the last digit."""
    folder.mkdir(parents=True)
    for part, count in PARTS.items():
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:, 0, 0] = first + np.arange(count)
        contents = {
            f"{part}-images{joint}idx3-ubyte": struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes(),
            f"{part}-labels{joint}idx1-ubyte": struct.pack(">2I", 0x801, count)
            + bytes((first + number) % 10 for number in range(count)),
        }
        for name, content in contents.items():
            (folder / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    return folder


def open_mnist(path=None, **changes):
    return open_data(DataPart(name="mnist", path=path, **changes))


def read_all(source):
    return source.read(np.arange(len(source)))


class TestDigits:
    def test_has_three_parts_of_known_sizes(self):
        data = open_data(DataPart(name="digits"))
        assert {name: len(part) for name, part in data.parts().items()} == {
            "train": 1200,
            "validation": 197,
            "test": 400,
        }
        assert data.train.image_shape == (8, 8, 1)
        assert data.train.classes == tuple("0123456789")

    def test_has_every_class_in_every_part(self):
        for part in open_data(DataPart(name="digits")).parts().values():
            assert set(read_all(part).targets.tolist()) == set(range(10))

    def test_has_parts_that_are_disjoint_and_cover_the_1797_examples(self):
        stored = np.load(Path(catalog.__file__).parent / "digits" / "digits.npz")
        assert len(stored["part"]) == 1797
        assert np.bincount(stored["part"]).tolist() == [1200, 197, 400]
        everything = sorted(
            (image.tobytes(), target)
            for part in open_data(DataPart(name="digits")).parts().values()
            for image, target in zip(*(read_all(part).images, read_all(part).targets), strict=True)
        )
        pixels = np.round(stored["images"] * (255 / 16)).astype(np.uint8)
        assert everything == sorted(
            (image.tobytes(), label) for image, label in zip(pixels, stored["labels"], strict=True)
        )

    def test_has_no_image_in_two_parts(self):
        images = [
            {image.tobytes() for image in read_all(part).images}
            for part in open_data(DataPart(name="digits")).parts().values()
        ]
        assert [len(one & other) for one, other in ((images[0], images[1]), (images[0], images[2]))] == [0, 0]
        assert len(images[1] & images[2]) == 0

    def test_uses_the_whole_range_of_grey(self):
        images = read_all(open_data(DataPart(name="digits")).train).images
        assert images.min() == 0
        assert images.max() == 255
        assert len(np.unique(images)) == 17

    def test_is_the_same_data_every_time(self):
        first, second = (open_data(DataPart(name="digits")).train.fingerprint() for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("changes", [{"path": "folder"}, {"options": {"a": 1}}])
    def test_takes_neither_a_folder_nor_options(self, changes):
        with pytest.raises((RecipeError, UnknownNameError), match=r"data\.(path|options)"):
            open_data(DataPart(name="digits", **changes))


def test_cifar100_takes_its_coarse_labels_as_an_option(tmp_path):
    with pytest.raises(RecipeError, match="fine and coarse"):
        open_data(DataPart(name="cifar100", path=tmp_path, options={"labels": "middling"}))


class TestDigitsKeys:
    def test_names_the_part_and_record_of_an_example(self):
        assert open_data(DataPart(name="digits")).part("test").key(3) == "digits test record 3"


class TestMnist:
    @pytest.mark.parametrize("joint", ["-", "."])
    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_is_read_under_each_name_its_files_have(self, tmp_path, joint, end):
        data = open_mnist(write_mnist(tmp_path / "files", joint=joint, end=end))
        assert list(data.parts()) == ["train", "test"]
        assert data.train.image_shape == (28, 28, 1)
        for part, count in zip(data.parts().values(), PARTS.values(), strict=True):
            batch = read_all(part)
            assert batch.images[:, 0, 0, 0].tolist() == list(range(count))
            assert batch.targets.tolist() == [number % 10 for number in range(count)]

    def test_names_the_file_and_record_of_an_example(self, tmp_path):
        folder = write_mnist(tmp_path / "files")
        assert open_mnist(folder).train.key(7) == f"{folder / 'train-images-idx3-ubyte'} record 7"

    @pytest.mark.parametrize("part", PARTS)
    @pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
    def test_without_one_of_its_files_names_it(self, tmp_path, part, kind):
        folder = write_mnist(tmp_path / "files")
        name = f"{part}-{kind}-ubyte"
        (folder / name).unlink()
        with pytest.raises(DataError) as caught:
            open_mnist(folder)
        assert str(caught.value).startswith(f"{folder}: holds neither {name} nor {name}.gz")

    def test_in_a_folder_that_does_not_exist_is_refused(self, tmp_path):
        with pytest.raises(DataError) as caught:
            open_mnist(tmp_path / "nowhere")
        assert str(caught.value) == (
            f"{tmp_path / 'nowhere'}: does not exist; --data names the folder that holds the files of mnist"
        )

    def test_in_a_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="file: is not a folder; --data names the folder"):
            open_mnist(tmp_path / "file")

    def test_in_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="holds neither train-images-idx3-ubyte nor"):
            open_mnist(tmp_path)

    def test_of_the_real_files_has_its_known_sizes(self, shared_data):
        data = open_mnist(shared_data / "mnist")
        assert (len(data.train), len(data.part("test"))) == (60_000, 10_000)
        assert data.train.image_shape == (28, 28, 1)
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert np.bincount(read_all(data.train).targets).tolist() == counts
        assert read_all(data.part("test")).targets[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


class TestWhereFilesAreLookedFor:
    def test_in_the_folder_of_the_environment_variable(self, tmp_path, monkeypatch):
        write_mnist(tmp_path / "data" / "mnist", first=5)
        monkeypatch.setenv("FOVEAL_DATA", str(tmp_path / "data"))
        assert read_all(open_mnist().train).images[0, 0, 0, 0] == 5

    def test_in_the_folder_the_user_names_before_any_other(self, tmp_path, monkeypatch):
        write_mnist(tmp_path / "data" / "mnist", first=5)
        monkeypatch.setenv("FOVEAL_DATA", str(tmp_path / "data"))
        assert read_all(open_mnist(write_mnist(tmp_path / "mine", first=9)).train).images[0, 0, 0, 0] == 9

    def test_in_the_cache_last(self, tmp_path, monkeypatch):
        cache = write_mnist(tmp_path / "cache" / "foveal" / "mnist", end=".gz", first=3)
        files = tuple(replace(file, size=(cache / file.name).stat().st_size) for file in catalog._MNIST_FILES)
        monkeypatch.setattr(catalog, "_MNIST_FILES", files)
        monkeypatch.setenv("FOVEAL_DATA", str(tmp_path / "data without mnist"))
        assert read_all(open_mnist().train).images[0, 0, 0, 0] == 3

    @pytest.mark.parametrize("variable", [None, ""])
    def test_and_when_they_are_nowhere_and_cannot_be_downloaded_the_advice_says_where_to_put_them(
        self, tmp_path, monkeypatch, variable
    ):
        if variable is not None:
            monkeypatch.setenv("FOVEAL_DATA", variable)
        with pytest.raises(DownloadError) as caught:
            open_mnist()
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith("could not download train-images-idx3-ubyte.gz (127.0.0.1:9: ")
        assert all(file.name in message for file in catalog._MNIST_FILES)
        assert f"in {tmp_path / 'cache' / 'foveal' / 'mnist'}, or give another folder with --data" in message


class TestValidation:
    def test_is_made_of_the_first_training_examples(self, tmp_path):
        folder = write_mnist(tmp_path / "files")
        whole, data = open_mnist(folder), open_mnist(folder, validation=5)
        assert read_all(data.part("validation")).images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert read_all(data.train).images[:, 0, 0, 0].tolist() == [5, 6, 7, 8, 9, 10, 11]
        assert data.part("test").fingerprint() == whole.part("test").fingerprint()
        assert data.train.key(0) == whole.train.key(5)

    @pytest.mark.parametrize("count", [None, 0])
    def test_of_nothing_is_not_made(self, tmp_path, count):
        data = open_mnist(write_mnist(tmp_path / "files"), validation=count)
        assert list(data.parts()) == ["train", "test"]
        assert len(data.train) == 12

    def test_may_leave_one_example_to_train_on_but_not_none(self, tmp_path):
        folder = write_mnist(tmp_path / "files")
        assert len(open_mnist(folder, validation=11).train) == 1
        for count in (12, 13):
            with pytest.raises(RecipeError, match=f"data.validation = {count} leaves nothing of 12 examples"):
                open_mnist(folder, validation=count)

    def test_is_refused_for_data_that_have_a_validation_part(self):
        with pytest.raises(RecipeError, match="have a validation part of their own"):
            open_data(DataPart(name="digits", validation=10))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mnst", "did you mean 'mnist'?"),
        ("digit", "did you mean 'digits'?"),
        (
            "xyz",
            "known: arrays, auto, cifar10, cifar100, csv, digits, fixed_length, folder, idx, mnist, "  # noqa: ISC004
            "parquet, tfrecord",
        ),
    ],
)
def test_an_unknown_data_set_is_refused_with_the_nearest_name(name, advice):
    with pytest.raises(UnknownNameError) as caught:
        open_data(DataPart(name=name))
    assert str(caught.value) == (
        f"no data set or format named '{name}': {advice} (your own: data.name = 'package.module:factory')"
    )


MODULE = """
import numpy as np
from foveal import ArraySource, DataSet

def make(path=None, count=6):
    source = ArraySource(np.zeros((count, 2, 2, 1), np.uint8), np.zeros(count, np.int64), ("x",), str(path))
    return DataSet(source)

def nothing():
    return None

def picky(count):
    raise ValueError("count must be odd")
"""


class TestOwnFactory:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path, monkeypatch):
        (tmp_path / "my_own_data.py").write_text(MODULE)
        monkeypatch.syspath_prepend(tmp_path)

    def test_is_called_with_the_options(self):
        data = open_data(DataPart(name="my_own_data:make", options={"count": 3}))
        assert len(data.train) == 3
        assert data.train.key(0) == "None record 0"

    def test_is_given_the_path_if_there_is_one(self, tmp_path):
        data = open_data(DataPart(name="my_own_data:make", path=tmp_path))
        assert data.train.key(0) == f"{tmp_path} record 0"

    def test_gets_a_validation_part_held_out(self):
        data = open_data(DataPart(name="my_own_data:make", validation=2))
        assert {name: len(part) for name, part in data.parts().items()} == {"train": 4, "validation": 2}

    @pytest.mark.parametrize(
        ("part", "error", "message"),
        [
            ({"name": "my_own_data:mak"}, UnknownNameError, "no function named 'mak': did you mean 'make'"),
            ({"name": "my_own_datum:make"}, RecipeError, "data.name = .*cannot import my_own_datum"),
            ({"name": "my_own_data:nothing"}, RecipeError, "returned NoneType, not a foveal DataSet"),
            (
                {"name": "my_own_data:make", "options": {"cuont": 1}},
                UnknownNameError,
                r"'cuont': did you mean 'count'\? \(data.options\)",
            ),
            ({"name": "my_own_data:picky", "options": {"count": 2}}, RecipeError, "count must be odd"),
            ({"name": ":make"}, RecipeError, "':make': write 'package.module:factory'"),
            ({"name": ".my_own_data:make"}, RecipeError, "write 'package.module:factory'"),
            ({"name": "my_own_data:picky"}, RecipeError, "missing 1 required positional argument: 'count'"),
        ],
    )
    def test_that_cannot_be_used_is_refused(self, part, error, message):
        with pytest.raises(error, match=message):
            open_data(DataPart(**part))
