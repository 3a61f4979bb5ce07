"""Data by name: known data sets, and files of the known formats.

A known data set's files are taken from the folder the user names, else ``$FOVEAL_DATA/NAME``, else the user's
cache folder, else they are downloaded into the cache folder.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import platformdirs

from foveal.data.download import RemoteFile, fetch_all
from foveal.data.formats.cifar import CIFAR10_ARCHIVE, CIFAR100_ARCHIVE, open_cifar10, open_cifar100
from foveal.data.formats.idx import read_idx_pair
from foveal.data.source import ArraySource, DataSet
from foveal.errors import DataError, RecipeError, UnknownNameError
from foveal.registry import call_factory, load_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foveal.data.download import ProgressReporter
    from foveal.recipe import DataPart
    from foveal.recipe.schema import Split

_DIGITS = tuple("0123456789")

_MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
_MNIST_FILES = tuple(
    RemoteFile(name, size, sha256, tuple(mirror + name for mirror in _MNIST_MIRRORS))
    for name, size, sha256 in (
        (
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
)


def open_data(part: DataPart, *, progress: ProgressReporter | None = None) -> DataSet:
    """The data a recipe trains on, with what it holds out.

    Args:
        part: the recipe's ``data`` table.
        progress: told of downloads and of indexing.

    Raises:
        DataError: files are missing, malformed or inconsistent.
        UnknownNameError: no data set has that name.
    """
    data = _open(part.name, part.options, part.path, progress)
    if part.validation is None and part.split is None:
        return data
    if part.split is not None:
        return _split(data, part, part.split, progress)
    if data.validation is not None:
        raise RecipeError("data.validation: these data have a validation part of their own; leave it out")
    return _hold_out(data, part.validation or 0)


def open_path(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the field's word
    options: Mapping[str, Any] = MappingProxyType({}),
    progress: ProgressReporter | None = None,
) -> DataSet:
    """The data at a path, in any known format.

    Args:
        path: a file, a folder or a pattern, as the format wants it.
        format: its name; by default it is recognised by contents.
        options: the format's, as in a recipe.
        progress: told of indexing.

    Raises:
        DataError: files are missing, malformed or inconsistent, or of no known format.
        UnknownNameError: no format, or no option of it, has that name.
    """
    if format is not None and format not in KNOWN and format not in _FORMATS:
        raise UnknownNameError("format", format, [*KNOWN, *_FORMATS])
    return _open(format or "auto", options, path, progress)


def _open(
    name: str, options: Mapping[str, Any], path: Path | None, progress: ProgressReporter | None
) -> DataSet:
    if ":" in name:
        factory = load_factory(name, "data.name")
        data = call_factory(factory, name, "data.options", {"path": path, **options} if path else options)
        if not isinstance(data, DataSet):
            raise RecipeError(f"data.name: {name} returned {type(data).__name__}, not a foveal DataSet")
        return data
    if name not in KNOWN and name not in _FORMATS and name != "auto":
        hint = "(your own: data.name = 'package.module:factory')"
        raise UnknownNameError("data set or format", name, [*KNOWN, *_FORMATS, "auto"], hint)
    if path is None and name not in KNOWN:
        raise RecipeError(f"data.name = {name!r} is a format: say with --data where the files are")
    if path is not None and name == "auto":
        from foveal.data.formats.recognise import recognise

        name = recognise(path)
    opener = KNOWN.get(name) or load_factory(_FORMATS[name], "data.name")
    opened: DataSet = call_factory(opener, name, "data.options", options, path, progress)
    return opened


def _digits(folder: Path | None, _progress: ProgressReporter | None) -> DataSet:
    if folder is not None:
        raise RecipeError(f"data.path = {str(folder)!r}: the digits come with foveal; leave --data out")
    with resources.as_file(resources.files("foveal.data") / "digits" / "digits.npz") as path:
        arrays = np.load(path, allow_pickle=False)
        images, labels, part = arrays["images"], arrays["labels"], arrays["part"]
    pixels = np.round(images * (255 / 16)).astype(np.uint8)[..., None]
    train, validation, test = (
        ArraySource(
            pixels[part == number], labels[part == number].astype(np.int64), _DIGITS, f"digits {name}"
        )
        for number, name in enumerate(("train", "validation", "test"))
    )
    return DataSet(train, validation, test)


def _mnist(folder: Path | None, progress: ProgressReporter | None) -> DataSet:
    folder = locate("mnist", folder, _MNIST_FILES, progress)
    train, test = (
        read_idx_pair(
            _find(folder, f"{part}-images", "idx3"), _find(folder, f"{part}-labels", "idx1"), _DIGITS
        )
        for part in ("train", "t10k")
    )
    return DataSet(train, test=test)


def _cifar10(path: Path | None, progress: ProgressReporter | None) -> DataSet:
    return open_cifar10(path or locate("cifar10", None, (CIFAR10_ARCHIVE,), progress), progress)


def _cifar100(
    path: Path | None, progress: ProgressReporter | None, labels: Literal["fine", "coarse"] = "fine"
) -> DataSet:
    return open_cifar100(path or locate("cifar100", None, (CIFAR100_ARCHIVE,), progress), labels, progress)


KNOWN: dict[str, Callable[..., DataSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}
_FORMATS = {  # imported when they are used: some need slow libraries
    "arrays": "foveal.data.formats.arrays:open_arrays",
    "csv": "foveal.data.formats.table:open_csv",
    "fixed_length": "foveal.data.formats.fixed_length:open_fixed_length",
    "folder": "foveal.data.formats.folder:open_folder",
    "idx": "foveal.data.formats.idx:open_idx",
    "parquet": "foveal.data.formats.parquet:open_parquet",
    "tfrecord": "foveal.data.formats.tfrecords:open_tfrecords",
}


def locate(
    name: str, folder: Path | None, files: tuple[RemoteFile, ...], progress: ProgressReporter | None
) -> Path:
    """The folder that holds a data set's files, downloading them if nobody has put them anywhere.

    Raises:
        DataError: ``folder`` is given but is not a folder with files in it, or the download failed.
    """
    if folder is not None:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise DataError(f"{folder}: {what}; --data names the folder that holds the files of {name}")
        return folder
    if (root := os.environ.get("FOVEAL_DATA")) and (Path(root) / name).is_dir():
        return Path(root) / name
    cache = platformdirs.user_cache_path("foveal") / name
    fetch_all(files, cache, progress=progress)
    return cache


def _find(folder: Path, stem: str, kind: str) -> Path:
    """An IDX file by the names it is published and unpacked under: - or . before the kind, .gz or not."""
    names = [f"{stem}{joint}{kind}-ubyte{end}" for end in ("", ".gz") for joint in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds neither {names[0]} nor {names[0]}.gz: give another folder with --data")


def _hold_out(data: DataSet, count: int) -> DataSet:
    """Move the first ``count`` training examples to the validation part."""
    if count == 0:
        return data
    size = len(data.train)
    if count >= size:
        raise RecipeError(f"data.validation = {count} leaves nothing of {size} examples to train on")
    from foveal.data.combine import skip, take

    return DataSet(skip(data.train, count), take(data.train, count), data.test)


def _split(data: DataSet, part: DataPart, split: Split, progress: ProgressReporter | None) -> DataSet:
    """Set shares of the training examples aside, equal images together."""
    shares = {"validation": split.validation, "test": split.test}
    for name in data.parts():
        if shares.get(name) and not split.only_missing:
            raise RecipeError(f"data.split.{name}: these data have a {name} part of their own; leave it out")
        shares.pop(name, None)
    if not any(shares.values()):
        return data
    if split.alike:
        from foveal.data.grouping import split_alike

        parts = split_alike(data.train, shares, progress=progress)
        if any(share and name not in parts for name, share in shares.items()):
            raise DataError(
                f"{part.path or part.name}: too few images that differ to hold any out: a class needs at "
                "least two, better twenty"
            )
    else:
        from foveal.data.combine import split as split_equal

        parts = split_equal(data.train, shares)
    return DataSet(parts["train"], parts.get("validation", data.validation), parts.get("test", data.test))
