"""CIFAR-10 and CIFAR-100 in their binary versions: 50,000 photographs of 32x32 to learn from, 10,000 to test.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. A record is one label byte (in CIFAR-100 two, the coarse
and then the fine label) and 3,072 pixel bytes, channels first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

import platformdirs

from foveal.data.download import RemoteFile
from foveal.data.formats.archive import unpack_once
from foveal.data.formats.fixed_length import FixedLengthSource, RecordLayout
from foveal.data.source import DataSet
from foveal.errors import DataError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.data.download import ProgressReporter

# Sizes and digests as TensorFlow Datasets lists them (url_checksums/cifar10.txt and cifar100.txt).
CIFAR10_ARCHIVE = RemoteFile(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
CIFAR100_ARCHIVE = RemoteFile(
    "cifar-100-binary.tar.gz",
    168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
)

_UNPACKED_LIMIT = 1 << 30  # bytes; either set has 184 MB


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_COARSE = _words(
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices "
    "household_furniture insects large_carnivores large_man-made_outdoor_things "
    "large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals non-insect_invertebrates "
    "people reptiles small_mammals trees vehicles_1 vehicles_2"
)
_FINE = _words(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel "
    "can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur "
    "dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion "
    "lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree "
    "pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea "
    "seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table "
    "tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman "
    "worm"
)


class _Version(NamedTuple):
    """How one of the two is published."""

    name: str
    published: RemoteFile
    train: tuple[str, ...]
    test: tuple[str, ...]
    folder: str  # in the archive
    archives: re.Pattern[str]  # names of archives that may hold it
    marks: tuple[str, ...]  # files that no other data set has


_ARCHIVE_END = r"\.(tar|tar\.gz|tgz|tar\.xz|txz|zip)"
_CIFAR10 = _Version(
    "CIFAR-10",
    CIFAR10_ARCHIVE,
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    ("test_batch.bin",),
    "cifar-10-batches-bin",
    re.compile(r"cifar-?10([-_].*bin.*)?" + _ARCHIVE_END),
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
)
_CIFAR100 = _Version(
    "CIFAR-100",
    CIFAR100_ARCHIVE,
    ("train.bin",),
    ("test.bin",),
    "cifar-100-binary",
    re.compile(r"cifar-?100([-_].*bin.*)?" + _ARCHIVE_END),
    ("fine_label_names.txt", "coarse_label_names.txt"),
)


def open_cifar10(
    path: Path, progress: ProgressReporter | None = None, *, cache: Path | None = None
) -> DataSet:
    """CIFAR-10, from its archive, unpacked or not.

    Args:
        path: the archive (``.tar.gz`` as published, or ``.tar.xz``, ``.tar``, ``.zip``), the folder with its
            files, or a folder that holds either.
        progress: told how the archive is unpacked.
        cache: where archives are unpacked, once; by default in the user's cache folder.

    Returns:
        ``train`` and ``test``, uint8 ``[N, 32, 32, 3]``, held in memory.

    Raises:
        DataError: there is nothing of the kind at ``path``, or a file of it is missing or malformed.
    """
    folder = _locate(_CIFAR10, path, progress, cache)
    classes = _names(folder / "batches.meta.txt", _TEN)
    return _open(_CIFAR10, folder, RecordLayout(image_shape=(32, 32, 3)), classes)


def open_cifar100(
    path: Path,
    labels: Literal["fine", "coarse"] = "fine",
    progress: ProgressReporter | None = None,
    *,
    cache: Path | None = None,
) -> DataSet:
    """CIFAR-100, with its 100 classes or with the 20 groups of them; see ``open_cifar10``.

    Raises:
        DataError: there is nothing of the kind at ``path``, or a file of it is missing or malformed.
        RecipeError: ``labels`` is neither fine nor coarse.
    """
    if labels not in {"fine", "coarse"}:
        raise RecipeError(f"labels = {labels!r}: CIFAR-100 has fine and coarse labels")
    folder = _locate(_CIFAR100, path, progress, cache)
    classes = _names(folder / f"{labels}_label_names.txt", _FINE if labels == "fine" else _COARSE)
    layout = RecordLayout(image_shape=(32, 32, 3), label_bytes=2, label_at=1 if labels == "fine" else 0)
    return _open(_CIFAR100, folder, layout, classes)


def find_cifar(path: Path) -> list[str]:
    """Which of the two may be opened at ``path``, by the names of files: ``"cifar10"``, ``"cifar100"``.

    Raises:
        OSError: ``path`` cannot be read.
    """
    return [name for name, version in (("cifar10", _CIFAR10), ("cifar100", _CIFAR100)) if _is(version, path)]


def _is(version: _Version, path: Path) -> bool:
    if not path.is_dir():
        return version.archives.fullmatch(path.name.lower()) is not None
    places = (path, path / version.folder)
    return any((place / mark).is_file() for place in places for mark in version.marks) or bool(
        _archives_in(version, path)
    )


def _open(version: _Version, folder: Path, layout: RecordLayout, classes: tuple[str, ...]) -> DataSet:
    train, test = (
        FixedLengthSource([folder / name for name in names], layout, classes)
        for names in (version.train, version.test)
    )
    return DataSet(train, test=test)


def _locate(version: _Version, path: Path, progress: ProgressReporter | None, cache: Path | None) -> Path:
    """The folder with the files, unpacked if need be."""
    try:
        if path.is_dir():
            if (folder := _unpacked(version, path)) is not None:
                return folder
            path = _archive_in(version, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    into = cache or platformdirs.user_cache_path("foveal") / "unpacked"
    unpacked = unpack_once(path, into, limit_bytes=_UNPACKED_LIMIT, progress=progress)
    if (folder := _unpacked(version, unpacked)) is not None:
        return folder
    raise DataError(f"{path}: holds no {version.test[0]}: it is not the binary version of {version.name}")


def _unpacked(version: _Version, folder: Path) -> Path | None:
    """Where some of the files are, in the folder or in the archive's; what is missing is found later."""
    for place in (folder, folder / version.folder):
        if any((place / name).is_file() for name in (*version.train, *version.test)):
            return place
    return None


def _archives_in(version: _Version, folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if version.archives.fullmatch(each.name.lower()))


def _archive_in(version: _Version, folder: Path) -> Path:
    found = _archives_in(version, folder)
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise DataError(f"{folder}: holds several archives of {version.name}: {names}; name one of them")
    if not found:
        raise DataError(
            f"{folder}: holds neither {version.test[0]} nor {version.published.name}: "
            "give another folder with --data"
        )
    return found[0]


def _names(path: Path, known: tuple[str, ...]) -> tuple[str, ...]:
    """The class names in a text file, one a line; the published ones if there is no such file."""
    try:
        with path.open("rb") as file:
            text = file.read(1 << 16).decode()
    except FileNotFoundError:
        return known
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in UTF-8") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != len(known):
        raise DataError(f"{path}: holds {len(names)} class names instead of {len(known)}")
    return names
