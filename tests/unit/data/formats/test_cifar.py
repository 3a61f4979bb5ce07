from __future__ import annotations

import re
import shutil
import tarfile
import time
import zipfile

import numpy as np
import platformdirs
import pytest

from foveal.data.formats.cifar import (
    _COARSE,
    _FINE,
    _TEN,
    CIFAR10_ARCHIVE,
    CIFAR100_ARCHIVE,
    find_cifar,
    open_cifar10,
    open_cifar100,
)
from foveal.errors import DataError, RecipeError

TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
EACH = 4  # records in a file
MODES = {".tar.gz": "w:gz", ".tar.xz": "w:xz", ".tar": "w"}


def records(count, first, classes, label_bytes=1):
    """Label ``number % classes``, the coarse one half of it; pixels ``number`` red, 100 green, 200 blue."""
    content = b""
    for number in range(first, first + count):
        label = number % classes
        content += bytes([label // 5, label] if label_bytes == 2 else [label])
        content += bytes([number]) * 1024 + bytes([100]) * 1024 + bytes([200]) * 1024
    return content


@pytest.fixture
def ten(tmp_path):
    """A small CIFAR-10 in a folder of the published name."""
    folder = tmp_path / "made" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for place, name in enumerate([*TRAIN, "test_batch.bin"]):
        (folder / name).write_bytes(records(EACH, EACH * place, 10))
    (folder / "batches.meta.txt").write_text("\n".join(_TEN) + "\n\n")
    (folder / "readme.html").write_text("see the page\n")
    return folder


@pytest.fixture
def hundred(tmp_path):
    folder = tmp_path / "made" / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(records(120, 0, 100, 2))
    (folder / "test.bin").write_bytes(records(7, 60, 100, 2))
    (folder / "fine_label_names.txt").write_text("\n".join(_FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(_COARSE) + "\n")
    return folder


def archive(folder, path):
    """Pack a folder as it is published: the files below its name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for each in folder.iterdir():
                packed.write(each, f"{folder.name}/{each.name}")
    else:
        with tarfile.open(path, next(mode for end, mode in MODES.items() if path.name.endswith(end))) as tar:
            tar.add(folder, folder.name)
    return path


def check_ten(data):
    assert data.train.classes == data.test.classes == _TEN
    assert data.validation is None
    assert data.train.image_shape == (32, 32, 3)
    assert (len(data.train), len(data.test)) == (5 * EACH, EACH)
    batch = data.train.read(np.arange(5 * EACH))
    assert batch.targets.tolist() == [number % 10 for number in range(5 * EACH)]
    assert np.array_equal(batch.images[:, 3, 7, 0], np.arange(5 * EACH))
    assert np.all(batch.images[..., 1] == 100)
    assert np.all(batch.images[..., 2] == 200)
    assert data.test.read(np.array([0])).images[0, 0, 0].tolist() == [5 * EACH, 100, 200]


class TestWhereItIs:
    def test_may_be_the_folder_of_its_files(self, ten):
        check_ten(open_cifar10(ten))

    def test_may_be_the_folder_above(self, ten):
        check_ten(open_cifar10(ten.parent))

    @pytest.mark.parametrize("end", [*MODES, ".zip"])
    def test_may_be_an_archive(self, ten, tmp_path, end):
        check_ten(open_cifar10(archive(ten, tmp_path / f"any name{end}"), cache=tmp_path / "cache"))

    @pytest.mark.parametrize(
        "name",
        [
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin.tar.xz",
            "cifar10.zip",
            "CIFAR-10-Binary.tar",
        ],
    )
    def test_may_be_a_folder_with_an_archive_and_others(self, ten, tmp_path, name):
        folder = tmp_path / "data"
        folder.mkdir()
        archive(ten, folder / "kept.tar").rename(folder / "other.tar")
        for other in ("cifar-100-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-matlab.tar.gz"):
            (folder / other).touch()
        end = next(end for end in (*MODES, ".zip") if name.endswith(end))
        archive(ten, tmp_path / f"packed{end}").rename(folder / name)
        check_ten(open_cifar10(folder, cache=tmp_path / "cache"))

    def test_may_be_an_archive_whose_files_are_in_no_folder(self, ten, tmp_path):
        path = tmp_path / "flat.tar"
        with tarfile.open(path, "w") as tar:
            for each in ten.iterdir():
                tar.add(each, each.name)
        check_ten(open_cifar10(path, cache=tmp_path / "cache"))

    def test_is_unpacked_once_in_the_cache_of_the_user(self, ten, tmp_path, monkeypatch):
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "home" / name)
        path = archive(ten, tmp_path / "x.tar")
        for _ in range(2):
            check_ten(open_cifar10(path))
        (folder,) = (each for each in (tmp_path / "home/foveal/unpacked").iterdir() if each.is_dir())
        shutil.rmtree(folder / "cifar-10-batches-bin")
        with pytest.raises(DataError, match=r"holds no test_batch\.bin"):
            open_cifar10(path)

    def test_is_told_to_the_progress_when_it_is_unpacked(self, ten, tmp_path):
        class Report:
            seen = ()

            def start(self, name, total_bytes, done_bytes):
                self.seen += ((name, total_bytes, done_bytes),)

            def advance(self, n): ...

            def finish(self): ...

        path, report = archive(ten, tmp_path / "x.tar.gz"), Report()
        open_cifar10(path, report, cache=tmp_path / "cache")
        assert report.seen == (("unpacking x.tar.gz", path.stat().st_size, 0),)


class TestRefused:
    def refusal(self, path, tmp_path, opener=open_cifar10):
        with pytest.raises(DataError) as caught:
            opener(path, cache=tmp_path / "cache")
        return str(caught.value)

    def test_is_a_place_that_does_not_exist(self, tmp_path):
        path = tmp_path / "nothing"
        assert self.refusal(path, tmp_path) == f"{path}: there is no such file"

    def test_is_a_folder_without_either(self, tmp_path):
        message = f"{tmp_path}: holds neither test_batch.bin nor cifar-10-binary.tar.gz: "
        assert self.refusal(tmp_path, tmp_path).startswith(message)

    def test_is_a_folder_with_several_archives(self, tmp_path):
        for name in ("cifar-10-binary.tar.gz", "cifar10.zip"):
            (tmp_path / name).touch()
        message = f"{tmp_path}: holds several archives of CIFAR-10: cifar-10-binary.tar.gz, cifar10.zip; "
        assert self.refusal(tmp_path, tmp_path).startswith(message)

    def test_is_an_archive_of_something_else(self, hundred, tmp_path):
        path = archive(hundred, tmp_path / "x.tar")
        assert self.refusal(path, tmp_path) == (
            f"{path}: holds no test_batch.bin: it is not the binary version of CIFAR-10"
        )

    @pytest.mark.parametrize("name", [*TRAIN, "test_batch.bin"])
    def test_is_a_folder_without_one_of_the_files(self, ten, tmp_path, name):
        (ten / name).unlink()
        assert self.refusal(ten, tmp_path) == f"{ten / name}: there is no such file"

    @pytest.mark.parametrize("name", [*TRAIN, "test_batch.bin"])
    def test_is_a_file_that_is_cut_off(self, ten, tmp_path, name):
        (ten / name).write_bytes((ten / name).read_bytes()[:-1])
        message = f"{ten / name}: 3 records of 3073 bytes and 3072 bytes over: "
        assert self.refusal(ten, tmp_path).startswith(message)

    def test_is_a_label_of_no_class(self, ten, tmp_path):
        content = bytearray((ten / TRAIN[2]).read_bytes())
        content[3073] = 10
        (ten / TRAIN[2]).write_bytes(content)
        assert self.refusal(ten, tmp_path) == (
            f"{ten / TRAIN[2]} record 1: label 10 is out of range: there are 10 classes, 0 to 9"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"cat\ndog\n", "holds 2 class names instead of 10"),
            (b"", "holds 0 class names instead of 10"),
            (b"\xff" * 10, "is not text in UTF-8"),
            (b"name\n" * 100_000, "class names instead of 10"),
        ],
    )
    def test_are_other_class_names_than_there_are_classes(self, ten, tmp_path, text, message):
        path = ten / "batches.meta.txt"
        path.write_bytes(text)
        assert self.refusal(ten, tmp_path).startswith(f"{path}: ")
        assert self.refusal(ten, tmp_path).endswith(message)

    def test_is_a_damaged_archive(self, ten, tmp_path):
        path = archive(ten, tmp_path / "x.tar.xz")
        path.write_bytes(path.read_bytes()[:-20])
        assert self.refusal(path, tmp_path).startswith(f"{path}: damaged, cut off, or not an archive: ")


class TestClassNames:
    def test_are_those_of_the_file(self, ten):
        (ten / "batches.meta.txt").write_text("".join(f" {number}\r\n" for number in range(10)))
        assert open_cifar10(ten).train.classes == tuple("0123456789")

    def test_are_the_published_ones_without_a_file(self, ten, hundred):
        (ten / "batches.meta.txt").unlink()
        check_ten(open_cifar10(ten))
        for name in ("fine", "coarse"):
            (hundred / f"{name}_label_names.txt").unlink()
        assert open_cifar100(hundred).train.classes == _FINE
        assert open_cifar100(hundred, "coarse").train.classes == _COARSE

    def test_are_as_many_as_there_are_classes_and_no_two_are_the_same(self):
        for names, count in ((_TEN, 10), (_COARSE, 20), (_FINE, 100)):
            assert len(set(names)) == len(names) == count
            assert list(names) == sorted(names)


class TestCifar100:
    def test_has_fine_labels(self, hundred):
        data = open_cifar100(hundred)
        assert data.train.classes == _FINE
        assert (len(data.train), len(data.test)) == (120, 7)
        batch = data.train.read(np.arange(120))
        assert batch.targets.tolist() == [number % 100 for number in range(120)]
        assert np.array_equal(batch.images[:, 31, 31, 0], np.arange(120))
        assert data.test.read(np.arange(7)).targets.tolist() == list(range(60, 67))

    def test_has_coarse_labels(self, hundred):
        data = open_cifar100(hundred.parent, labels="coarse")
        assert data.train.classes == _COARSE
        targets = data.train.read(np.arange(120)).targets
        assert targets.tolist() == [number % 100 // 5 for number in range(120)]

    def test_has_no_others(self, hundred):
        with pytest.raises(RecipeError, match="labels = 'both': CIFAR-100 has fine and coarse labels"):
            open_cifar100(hundred, "both")

    def test_is_read_from_its_archive(self, hundred, ten, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        archive(hundred, folder / "cifar-100-binary.tar.gz")
        archive(ten, folder / "cifar-10-binary.tar.gz")
        assert len(open_cifar100(folder, cache=tmp_path / "cache").train) == 120
        check_ten(open_cifar10(folder, cache=tmp_path / "cache"))

    def test_is_refused_where_it_is_not(self, tmp_path):
        message = r"holds neither test\.bin nor cifar-100-binary\.tar\.gz"
        with pytest.raises(DataError, match=message):
            open_cifar100(tmp_path, cache=tmp_path / "cache")


class TestFinding:
    def test_knows_folders_by_their_files(self, ten, hundred, tmp_path):
        assert find_cifar(ten) == ["cifar10"]
        assert find_cifar(hundred) == ["cifar100"]
        assert find_cifar(ten.parent) == ["cifar10", "cifar100"]
        assert find_cifar(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("cifar-10-binary.tar.gz", ["cifar10"]),
            ("CIFAR-100-binary.tar.xz", ["cifar100"]),
            ("cifar10.zip", ["cifar10"]),
            ("cifar-10-python.tar.gz", []),
            ("cifar.tar", []),
        ],
    )
    def test_knows_archives_by_their_names(self, tmp_path, name, found):
        (tmp_path / name).touch()
        assert find_cifar(tmp_path / name) == find_cifar(tmp_path) == found

    def test_does_not_take_other_records_for_it(self, tmp_path):
        for name in ("train.bin", "test.bin"):
            (tmp_path / name).touch()
        assert find_cifar(tmp_path) == []


@pytest.mark.parametrize("file", [CIFAR10_ARCHIVE, CIFAR100_ARCHIVE])
def test_the_published_archives_are_described(file):
    assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert 168_000_000 < file.size < 171_000_000
    assert all(url.startswith("https://") and url.endswith(f"/{file.name}") for url in file.urls)


@pytest.mark.slow
def test_the_real_cifar_10_is_read(shared_data, tmp_path):
    start = time.perf_counter()
    data = open_cifar10(shared_data, cache=tmp_path)
    unpacked = time.perf_counter()
    again = open_cifar10(shared_data, cache=tmp_path)
    assert time.perf_counter() - unpacked < 0.5 * (unpacked - start)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.train.classes == _TEN
    for part, each in ((data.train, 5000), (data.test, 1000)):
        batch = part.read(np.arange(len(part)))
        assert np.bincount(batch.targets).tolist() == [each] * 10
    pixels = data.train.read(np.arange(50_000)).images.reshape(-1, 3)
    # The mean and deviation of each channel of the training images, known from many papers.
    assert np.allclose(pixels.mean(0) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.allclose(pixels.std(0) / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert data.train.fingerprint() == again.train.fingerprint() != data.test.fingerprint()
