"""``tf.train.Example`` and ``SequenceExample``: records of named values, parsed by the batch and built.

Batches are parsed by a compiled scanner (``example_scan.py``) where the records have the form that every
writer gives them, else by the protobuf library, which says what things mean and words the errors.

    ExampleError (a DataError)     names the record and, but for the first, the feature
    ├── MalformedExampleError      the bytes are no such message
    ├── MissingFeatureError        the record lacks the feature, and there is no default
    ├── FeatureTypeError           it holds bytes, floats or integers, and others were asked for
    └── FeatureLengthError         it has more or fewer values than were asked for
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.errors import DataError, UsageError
from foveal.tensorflow.example_messages import Example, SequenceExample
from foveal.tensorflow.records import RecordBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Columns = dict[str, "NDArray[Any] | Ragged"]
    Place = Callable[[int], tuple[str, str, int | None]]  # what an error at a position names

_DTYPES = {"bytes_list": object, "float_list": np.float32, "int64_list": np.int64}
_HOLDS = {"bytes_list": "bytes", "float_list": "float32", "int64_list": "int64"}


class ExampleError(DataError):
    """A record does not hold what was asked for.

    Attributes:
        key: the record.
        feature: the feature, None when the record as a whole is wrong.
        step: the step of a sequence, from 0; None elsewhere.
    """

    def __init__(self, key: str, feature: str | None, step: int | None, problem: str) -> None:
        self.key, self.feature, self.step = key, feature, step
        name = "" if feature is None else f" feature {feature!r}"
        super().__init__(f"{key}:{name}{'' if step is None else f' in step {step}'} {problem}")


class MalformedExampleError(ExampleError):
    """The bytes are not a message of the expected kind."""


class MissingFeatureError(ExampleError):
    """The record lacks a feature that has no default."""


class FeatureTypeError(ExampleError):
    """The feature holds another type than was asked for."""


class FeatureLengthError(ExampleError):
    """The feature has another number of values than was asked for."""


@dataclass(frozen=True)
class FixedLength:
    """A feature with the same number of values in every record.

    Attributes:
        shape: the shape of one record's values; ``()`` for a single one.
        dtype: bytes, float32 or int64.
        default: stands in where the feature is missing: one value, or as many as the shape has.

    Raises:
        UsageError: the shape or the dtype is impossible, or the default does not fit them.
    """

    shape: tuple[int, ...]
    dtype: Any
    default: Any = None

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.shape):
            raise UsageError(f"a feature's shape has no sizes below 0: {self.shape}")
        _ = self.kind, self.filling

    @cached_property
    def kind(self) -> str:
        """The name of the message that holds such values."""
        return _kind(self.dtype)

    @cached_property
    def size(self) -> int:
        """How many values a record has."""
        return math.prod(self.shape)

    @cached_property
    def filling(self) -> list[Any] | None:
        """The values of the default, flat."""
        if self.default is None:
            return None
        try:
            values = _typed_as(self.kind, self.default).reshape(np.shape(self.default))
            return list(np.broadcast_to(values, self.shape).ravel().tolist())
        except (TypeError, ValueError) as error:
            wanted = f"{_HOLDS[self.kind]} of shape {self.shape}"
            raise UsageError(f"the default {self.default!r} does not give {wanted}: {error}") from None


@dataclass(frozen=True)
class VariableLength:
    """A feature with any number of values; where it is missing there are none.

    Attributes:
        dtype: bytes, float32 or int64.

    Raises:
        UsageError: it is none of these.
    """

    dtype: Any

    def __post_init__(self) -> None:
        _ = self.kind

    @cached_property
    def kind(self) -> str:
        """The name of the message that holds such values."""
        return _kind(self.dtype)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths.

    Attributes:
        values: those of all rows, one after another: ``[V]`` or ``[V, ...]``, or rows themselves.
        row_splits: int64 ``[rows + 1]``; row ``i`` is ``values[row_splits[i]:row_splits[i + 1]]``.
    """

    values: NDArray[Any] | Ragged
    row_splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def __getitem__(self, row: int) -> NDArray[Any] | Ragged:
        """One row, from 0; shares the memory."""
        if row < 0:
            raise IndexError(f"rows are counted from 0, not {row}")
        start, stop = self.row_splits[row], self.row_splits[row + 1]
        if isinstance(self.values, Ragged):
            inner = self.values.row_splits[start : stop + 1]
            return Ragged(self.values.values[inner[0] : inner[-1]], inner - inner[0])  # type: ignore[index]
        return self.values[start:stop]


def parse_batch(
    records: Sequence[bytes] | RecordBlock,
    specification: Mapping[str, FixedLength | VariableLength],
    key: Callable[[int], str] = "record {} of the batch".format,
) -> Columns:
    """The features of some Examples; others that the records have are left out.

    Args:
        records: ``B`` serialized Examples; quickest as a block, as ``RecordFile.read_block`` gives it.
        specification: the features, by name.
        key: names the record at a position of the batch, for messages.

    Returns:
        By name, in the order of the specification: ``[B, *shape]`` for a fixed length, else a :class:`Ragged`
        of ``B`` rows. float32, int64, or object (bytes).

    Raises:
        ExampleError: one of its kinds: a record does not hold what was asked for.
    """
    scan = _scanner()
    if scan is not None and len(records):
        block = records if isinstance(records, RecordBlock) else RecordBlock.of(records)
        if (columns := scan(block, specification)) is not None:
            return columns
    decoded = _decode(Example, records, key)
    return _columns([each.features.feature for each in decoded], specification, key)


def parse_sequence_batch(
    records: Sequence[bytes],
    context: Mapping[str, FixedLength | VariableLength],
    sequences: Mapping[str, FixedLength | VariableLength],
    key: Callable[[int], str] = "record {} of the batch".format,
) -> tuple[Columns, dict[str, Ragged]]:
    """The features of some SequenceExamples.

    Args:
        records: ``B`` serialized SequenceExamples.
        context: features of the record as a whole, by name.
        sequences: features of each of its steps, by name.
        key: names the record at a position of the batch, for messages.

    Returns:
        The context as from :func:`parse_batch`; and the sequences by name, each a :class:`Ragged` whose rows
        are the records: values ``[all steps, *shape]`` for a fixed length, else a :class:`Ragged` whose rows
        are the steps. A record without the sequence has no steps; that is an error for a fixed length without
        a default.

    Raises:
        ExampleError: one of its kinds: a record does not hold what was asked for.
    """
    decoded = _decode(SequenceExample, records, key)
    lists = [each.feature_lists.feature_list for each in decoded]
    return (
        _columns([each.context.feature for each in decoded], context, key),
        {name: _sequence(lists, name, wanted, key) for name, wanted in sequences.items()},
    )


def parse_example(record: bytes, key: str = "the record") -> dict[str, NDArray[Any]]:
    """All features of one Example, whatever they are: flat arrays of float32, int64 or object (bytes).

    Raises:
        MalformedExampleError: it is no Example.
    """
    arrays = {}
    (decoded,) = _decode(Example, [record], lambda _: key)
    for name, feature in sorted(decoded.features.feature.items()):
        if kind := feature.WhichOneof("kind"):  # one of no kind counts as missing, as for TensorFlow
            arrays[name] = _array(getattr(feature, kind).value[:], kind)
    return arrays


def build_example(features: Mapping[str, Any]) -> bytes:
    """A serialized Example; the same features give the same bytes.

    Args:
        features: values by name: bytes, integers or floats; one, or lists or an array of them, which are
            stored flat. Booleans are stored as integers.

    Raises:
        UsageError: a value is none of these, or does not fit int64 or float32.
    """
    example = Example()
    _fill(example.features, features)
    return bytes(example.SerializeToString(deterministic=True))


def build_sequence_example(context: Mapping[str, Any], sequences: Mapping[str, Sequence[Any]]) -> bytes:
    """A serialized SequenceExample; the same features give the same bytes.

    Args:
        context: features of the whole, as for :func:`build_example`.
        sequences: by name, the values of each step.

    Raises:
        UsageError: a value cannot be stored.
    """
    example = SequenceExample()
    _fill(example.context, context)
    for name, steps in sequences.items():
        feature_list = example.feature_lists.feature_list[name]
        for step in steps:
            _set(feature_list.feature.add(), name, step)
    return bytes(example.SerializeToString(deterministic=True))


@cache
def _scanner() -> Callable[[RecordBlock, Mapping[str, FixedLength | VariableLength]], Columns | None] | None:
    """The compiled parser; None where there is no Numba."""
    try:
        from foveal.tensorflow.example_scan import parse
    except ImportError:
        return None
    return parse


def _decode(kind: Any, records: Iterable[bytes], key: Callable[[int], str]) -> list[Any]:
    decoded = []
    for position, record in enumerate(records):
        try:
            decoded.append(kind.FromString(record))
        except DecodeError as error:
            problem = f"is not a tf.train.{kind.__name__}: {error}"
            raise MalformedExampleError(key(position), None, None, problem) from None
    return decoded


def _columns(maps: list[Any], specification: Mapping[str, Any], key: Callable[[int], str]) -> Columns:
    def column(name: str, wanted: FixedLength | VariableLength) -> NDArray[Any] | Ragged:
        # [] adds what is missing, without a kind: which is how a missing feature may also look in the file
        return _column([each[name] for each in maps], wanted, lambda at: (key(at), name, None))

    return {name: column(name, wanted) for name, wanted in specification.items()}


def _sequence(
    lists: list[Any], name: str, wanted: FixedLength | VariableLength, key: Callable[[int], str]
) -> Ragged:
    steps: list[Any] = []
    splits = [0]
    for position, each in enumerate(lists):
        found = each.get(name)
        if found is not None:
            steps.extend(found.feature)
        elif isinstance(wanted, FixedLength) and wanted.filling is None:
            raise MissingFeatureError(key(position), name, None, "is missing, and has no default")
        splits.append(len(steps))
    rows = np.array(splits, np.int64)

    def place(step: int) -> tuple[str, str, int]:
        row = int(np.searchsorted(rows, step, side="right")) - 1
        return key(row), name, step - int(rows[row])

    return Ragged(_column(steps, wanted, place), rows)


def _column(features: list[Any], wanted: FixedLength | VariableLength, place: Place) -> NDArray[Any] | Ragged:
    """One feature of all records."""
    size = wanted.size if isinstance(wanted, FixedLength) else None
    values_of = attrgetter(f"{wanted.kind}.value")
    flat: list[Any] = []
    splits = [0]
    for position, feature in enumerate(features):
        values = values_of(feature)
        if not values:  # only now is it worth asking why
            values = _stand_in(feature, wanted, position, place)
        if size is not None and len(values) != size:
            problem = f"has {len(values)} values, not the {size} of shape {wanted.shape}"  # type: ignore[union-attr]
            raise FeatureLengthError(*place(position), problem)
        flat.extend(values[:])  # a slice is a list: twice as fast as the library's own iteration
        splits.append(len(flat))
    array = _array(flat, wanted.kind)
    if isinstance(wanted, FixedLength):
        return array.reshape(len(features), *wanted.shape)
    return Ragged(array, np.array(splits, np.int64))


def _stand_in(
    feature: Any, wanted: FixedLength | VariableLength, position: int, place: Place
) -> Sequence[Any]:
    """The values of a feature that has none of the wanted kind: none at all, or the default."""
    found = feature.WhichOneof("kind")
    if found is not None and found != wanted.kind:
        raise FeatureTypeError(*place(position), f"holds {_HOLDS[found]}, not {_HOLDS[wanted.kind]}")
    if found is not None or isinstance(wanted, VariableLength):
        return ()
    if wanted.filling is None:  # for TensorFlow, too, one of no kind is missing
        raise MissingFeatureError(*place(position), "is missing, and has no default")
    return wanted.filling


def _fill(features: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        _set(features.feature[name], name, value)


def _set(feature: Any, name: str, value: Any) -> None:
    try:
        kind, values = _typed(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"feature {name!r} cannot be stored: {error}") from None
    stored = getattr(feature, kind)
    stored.SetInParent()  # a list without values has a type all the same
    stored.value.extend(values)


def _typed(value: Any) -> tuple[str, list[Any]]:
    """The kind of list that holds some values, and the values, flat.

    Lists are looked at value by value: NumPy would make floats of large integers, and cut zeros off bytes.
    """
    flat = np.asarray(value, object).ravel().tolist()
    types = set(map(type, flat))
    if isinstance(value, np.ndarray):  # these have a type even when they are empty
        types = {value.dtype.type} if value.dtype != object else types or {bytes}

    def all_are(*kinds: type) -> bool:
        return all(issubclass(each, kinds) for each in types)

    if not types:
        raise TypeError("an empty list has no type: give an empty array of int64, float32 or object (bytes)")
    if np.bytes_ in types:
        raise TypeError("NumPy's own bytes lose zeros at their end: give bytes, or an array of dtype object")
    if all_are(bytes):
        return "bytes_list", flat
    if all_are(int, np.integer, np.bool_):
        if flat and not -(1 << 63) <= min(flat) <= max(flat) < 1 << 63:
            raise ValueError("an integer is out of the range of int64")
        return "int64_list", list(map(int, flat))
    if all_are(int, float, np.integer, np.floating, np.bool_):
        return "float_list", _float32(flat)
    names = ", ".join(sorted(each.__name__ for each in types))
    raise TypeError(f"it must be bytes, integers or floats, and all alike, not {names}")


def _typed_as(kind: str, value: Any) -> NDArray[Any]:
    found, flat = _typed(value)
    if found != kind and (found, kind) != ("int64_list", "float_list"):
        raise TypeError(f"it is {_HOLDS[found]}")
    return _array(flat, kind)


def _float32(flat: list[Any]) -> list[float]:
    wide = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(wide)).any():
        raise ValueError("a number is out of the range of float32")
    return list(narrow.tolist())


def _array(flat: list[Any], kind: str) -> NDArray[Any]:
    return np.array(flat, _DTYPES[kind])


def _kind(dtype: Any) -> str:
    if dtype is bytes:
        return "bytes_list"
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = np.dtype(object)
    kinds = {np.dtype(np.float32): "float_list", np.dtype(np.int64): "int64_list"}
    if known not in kinds:
        raise UsageError(f"the dtype of a feature is bytes, float32 or int64, not {dtype!r}")
    return kinds[known]
