"""Which features of Examples are the image, in what form, the label, and plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.decode import read_header
from foveal.data.formats.columns import square
from foveal.errors import DataError, ImageError, RecipeError, suggestion
from foveal.tensorflow.example import FixedLength, VariableLength

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from foveal.tensorflow.example import Columns

    Example = Mapping[str, NDArray[Any]]
    Specification = Mapping[str, FixedLength | VariableLength]

# What writers call things, the likeliest first: TF-Slim, TensorFlow's examples, TensorFlow Datasets.
IMAGE_NAMES = ("image/encoded", "image_raw", "image", "encoded", "jpeg", "png", "jpg", "img")
LABEL_NAMES = ("image/class/label", "label", "labels", "class", "target", "cls")
ROW_NAMES = ("features", "x")
_SIZE_NAMES = (
    ("image/height", "height", "rows"),
    ("image/width", "width", "cols"),
    ("image/channels", "channels", "depth", "image/depth"),
)
_VALUE_LIMIT = 1 << 28  # values of a feature, or of an image
_DTYPES = {"bytes": bytes, "float32": np.float32, "int64": np.int64}


@dataclass(frozen=True)
class Layout:
    """Where an Example has its image and its label.

    Attributes:
        label: the feature with the label.
        label_is_text: it holds bytes, else an int64.
        image: the feature with the image; None where the example is a row of numbers.
        dtype: what that holds: bytes, or int64 or float32, a value for each pixel.
        shape: height, width and channels of every image; None where its bytes are an image file.
        sizes: the features that say so, and what.
        rows: the features that make up a row.
    """

    label: str
    label_is_text: bool
    image: str | None
    dtype: Any
    shape: tuple[int, int, int] | None
    sizes: Mapping[str, int]
    rows: Mapping[str, FixedLength]

    @property
    def is_encoded(self) -> bool:
        """Images are image files."""
        return self.shape is None

    @property
    def labels(self) -> Specification:
        """What to parse for the label."""
        return {self.label: FixedLength((), bytes if self.label_is_text else np.int64)}

    @property
    def stated_sizes(self) -> Specification:
        """What to parse for the sizes that every record states."""
        return {name: FixedLength((), np.int64, default=size) for name, size in self.sizes.items()}

    def check_sizes(self, columns: Columns, key: Callable[[int], str]) -> None:
        """Refuse records that state another size than the first one.

        Raises:
            DataError: there is one.
        """
        for name, size in self.sizes.items():
            values = np.asarray(columns[name])
            if (wrong := np.flatnonzero(values != size)).size:
                raise DataError(
                    f"{key(int(wrong[0]))}: feature {name!r} is {values[wrong[0]]}, that of the first record "
                    f"{size}: only image files may differ in size"
                )

    @property
    def images(self) -> Specification:
        """What to parse for the image, or the row."""
        if self.image is None:
            return self.rows
        count = 1 if self.shape is None else math.prod(self.shape)
        return {self.image: FixedLength(() if self.dtype is bytes else (count,), self.dtype)}

    @property
    def pixel_dtype(self) -> np.dtype[Any]:
        """Of the images that :meth:`pixels` gives."""
        return np.dtype(np.uint8 if self.image is not None and self.dtype is not np.float32 else np.float32)

    def pixels(
        self, columns: Columns, count: int, key: Callable[[int], str]
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The images, or rows, in the columns of ``count`` Examples: uint8 or float32 ``[B, H, W, C]``.

        Raises:
            DataError: one has another number of bytes than of pixels, or values that are no pixels.
        """
        assert self.shape is not None
        if self.image is None:
            flat = [np.asarray(columns[name], np.float32).reshape(count, -1) for name in self.rows]
            return np.concatenate(flat, axis=1).reshape(count, *self.shape)
        values = np.asarray(columns[self.image])
        if self.dtype is not bytes:
            if self.dtype is np.float32:
                return values.reshape(count, *self.shape)
            wrong = np.flatnonzero(((values < 0) | (values > 255)).reshape(count, -1).any(axis=1))
            self._refuse(wrong, key, "has values that are no pixels, whole numbers from 0 to 255")
            return values.astype(np.uint8).reshape(count, *self.shape)
        lengths = np.fromiter(map(len, values), np.int64, count)
        wrong = np.flatnonzero(lengths != math.prod(self.shape))
        found = f"has {lengths[wrong[0]]} bytes" if wrong.size else ""
        self._refuse(wrong, key, f"{found}, not the {math.prod(self.shape)} of {_times(self.shape)} pixels")
        return np.frombuffer(bytearray().join(values), np.uint8).reshape(count, *self.shape)

    def _refuse(self, wrong: NDArray[np.intp], key: Callable[[int], str], problem: str) -> None:
        if wrong.size:
            raise DataError(f"{key(int(wrong[0]))}: feature {self.image!r} {problem}")


@dataclass(frozen=True)
class LayoutOptions:
    """What the user says about the features; what is None is found out from the first Example.

    Attributes:
        image: the feature with the image; ``""`` if there is none.
        label: the feature with the label.
        shape: height, width and channels of images that are not image files.
        features: other features, or those that make up a row where there is no image.
    """

    image: str | None
    label: str | None
    shape: Sequence[int] | None
    features: Specification

    def layout(self, example: Example, key: str) -> Layout:
        """The layout of data whose first Example is given.

        Raises:
            DataError: it does not have what is asked for, or it is not clear which features are what.
        """
        label = _choose(example, self.label, LABEL_NAMES, "label", key)
        if label is None:
            raise DataError(
                f"{key}: which feature is the label? Give data.options.label; {_listing(example)}"
            )
        if example[label].dtype == np.float32 or example[label].size != 1:
            raise DataError(f"{key}: feature {label!r} is no label, one int64 or text: {_listing(example)}")
        is_text = example[label].dtype == np.dtype(object)
        others = {name: values for name, values in example.items() if name != label}
        image = _choose(others, self.image, IMAGE_NAMES, "image", key)
        if image is None:
            rows = self._rows(others, key)
            size = sum(wanted.size for wanted in rows.values())
            return Layout(label, is_text, None, None, (1, 1, size), {}, rows)
        dtype = {"O": bytes, "i": np.int64, "f": np.float32}[example[image].dtype.kind]
        sizes = {} if self.shape is not None else _stated_sizes(example)
        shape = self._shape(example, image, list(sizes.values()), key)
        return Layout(label, is_text, image, dtype, shape, sizes if shape is not None else {}, {})

    def _rows(self, example: Example, key: str) -> dict[str, FixedLength]:
        """The features that make up a row of numbers."""
        wanted: Specification = self.features or {
            name: FixedLength((example[name].size,), example[name].dtype)
            for name in ROW_NAMES
            if name in example and example[name].dtype != object and example[name].size
        }
        if not wanted:
            raise DataError(
                f"{key}: which feature is the image? Give data.options.image, or data.options.features for "
                f"plain numbers; {_listing(example)}"
            )
        rows = {}
        for name, each in wanted.items():
            if not isinstance(each, FixedLength) or each.dtype is bytes or not each.size:
                raise RecipeError(
                    f"data.options.features.{name}: without an image, features are numbers, float32 or "
                    "int64, of a fixed shape"
                )
            rows[name] = each
        return rows

    def _shape(
        self, example: Example, image: str, stated: Sequence[int], key: str
    ) -> tuple[int, int, int] | None:
        values = example[image]
        if self.shape is not None:
            height, width, channels = self.shape
            return height, width, channels
        count = values.size
        if values.dtype == object:
            if count != 1:
                raise DataError(f"{key}: feature {image!r} has {count} values, not one image")
            try:
                read_header(values[0], key)
            except ImageError:
                count = len(values[0])
            else:
                return None
        if len(stated) >= 2 and min(stated) > 0:
            height, width = stated[:2]
            channels = stated[2] if len(stated) > 2 else max(1, count // (height * width))
            if height * width * channels == count:
                return height, width, channels
        elif (shape := square(count)) is not None:
            return shape
        raise DataError(
            f"{key}: feature {image!r} is no image file, and the shape of its {count} values is not clear: "
            "give data.options.shape, height, width and channels"
        )


def options_of(
    image: str | None, label: str | None, shape: Sequence[int] | None, features: Mapping[str, Any] | None
) -> LayoutOptions:
    """Check a recipe's options.

    Raises:
        RecipeError: one is malformed.
    """
    for name, value in (("image", image), ("label", label)):
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"data.options.{name} = {value!r}: the name of a feature")
    if shape is not None and not (_are_sizes(shape) and len(shape) == 3 and min(shape) > 0):
        raise RecipeError(f"data.options.shape = {shape}: height, width and channels, each at least 1")
    if features is not None and not isinstance(features, dict):
        raise RecipeError("data.options.features: a table for each feature: {shape = [2], dtype = 'float32'}")
    wanted = {name: _wanted(name, given) for name, given in (features or {}).items()}
    return LayoutOptions(image, label, shape, wanted)


def _wanted(name: str, given: Any) -> FixedLength | VariableLength:
    where = f"data.options.features.{name}"
    if not isinstance(given, dict) or (unknown := {*given} - {"shape", "dtype", "default"}):
        found = repr(given) if not isinstance(given, dict) else f"unknown {', '.join(sorted(unknown))}"
        raise RecipeError(f"{where}: {found}: a table of dtype, shape and default")
    if (dtype := given.get("dtype", "float32")) not in list(_DTYPES):
        raise RecipeError(f"{where}.dtype = {dtype!r}: {suggestion(str(dtype), _DTYPES)}")
    if (shape := given.get("shape")) is None:
        if "default" in given:
            raise RecipeError(f"{where}: a default needs a shape: [] for one value")
        return VariableLength(_DTYPES[dtype])
    if not _are_sizes(shape):
        raise RecipeError(f"{where}.shape = {shape!r}: a list of sizes, [] for one value")
    default = given.get("default")
    return FixedLength(
        tuple(shape), _DTYPES[dtype], default.encode() if isinstance(default, str) else default
    )


def _are_sizes(shape: Any) -> bool:
    """Whether it is a list of sizes, of no more values than could be meant."""
    whole = isinstance(shape, list | tuple) and all(type(size) is int and size >= 0 for size in shape)
    return whole and math.prod(shape) <= _VALUE_LIMIT


def _choose(example: Example, asked: str | None, customary: Sequence[str], what: str, key: str) -> str | None:
    """The feature that is asked for, or the first with a customary name; None if there is none."""
    if asked is None:
        return next((name for name in customary if name in example), None)
    if asked == "":
        return None
    if asked not in example:
        raise DataError(f"{key}: has no feature {asked!r} for the {what}: {suggestion(asked, example)}")
    return asked


def _stated_sizes(example: Example) -> dict[str, int]:
    """The features with height and width, and channels if there is one; none unless both are there."""
    found = []
    for names in _SIZE_NAMES:
        known = (name for name in names if name in example and example[name].dtype == np.int64)
        found.append(next((name for name in known if example[name].size == 1), None))
    height, width, channels = found
    if height is None or width is None:
        return {}
    return {name: int(example[name][0]) for name in (height, width, channels) if name is not None}


def _listing(example: Example) -> str:
    kinds = {"O": "bytes", "i": "int64", "f": "float32"}
    features = [f"{name} ({kinds[each.dtype.kind]} x {each.size})" for name, each in sorted(example.items())]
    more = f", and {len(features) - 20} more" if len(features) > 20 else ""
    return f"it has {', '.join(features[:20]) or 'none'}{more}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
