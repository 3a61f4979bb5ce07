"""The messages of checkpoints' tables, in a package and a descriptor pool of our own.

Specification: TensorFlow's ``core/protobuf/tensor_bundle.proto``, ``core/framework/versions.proto``,
``tensor_shape.proto``, ``tensor_slice.proto`` and ``types.proto``. Nothing is registered where others look,
so TensorFlow may live in the same process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from google.protobuf import (  # type: ignore[import-untyped]  # its wheels have no stubs
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGE: Final = "foveal.tensorflow"
FILE: Final = "foveal/tensorflow/checkpoint.proto"
POOL: Final = descriptor_pool.DescriptorPool()

STRING: Final = 7  # DT_STRING
DTYPES: Final[Mapping[int, np.dtype[Any]]] = {
    number: np.dtype(kind)
    for number, kind in {
        1: np.float32,
        2: np.float64,
        3: np.int32,
        4: np.uint8,
        5: np.int16,
        6: np.int8,
        STRING: np.object_,
        8: np.complex64,
        9: np.int64,
        10: np.bool_,
        14: ml_dtypes.bfloat16,
        17: np.uint16,
        18: np.complex128,
        19: np.float16,
        22: np.uint32,
        23: np.uint64,
        24: ml_dtypes.float8_e5m2,
        25: ml_dtypes.float8_e4m3fn,
    }.items()
}
"""NumPy's dtypes by the number that TensorFlow's ``DataType`` gives them; strings are objects: bytes."""

_TYPES = descriptor_pb2.FieldDescriptorProto
INT32, INT64, BOOL, TEXT, BYTES, FIXED32 = (
    _TYPES.TYPE_INT32,
    _TYPES.TYPE_INT64,
    _TYPES.TYPE_BOOL,
    _TYPES.TYPE_STRING,
    _TYPES.TYPE_BYTES,
    _TYPES.TYPE_FIXED32,
)


def define(
    name: str, messages: Mapping[str, Sequence[tuple[int, str, str | int]]], *dependencies: str
) -> list[Any]:
    """The classes of some messages, which become known to ``POOL`` as the file ``name``.

    Args:
        name: of the file that would hold their definitions.
        messages: by name their fields: number, name, and kind: the name of a message or one of protobuf's
            types. A ``*`` before the field's name marks a repeated one, a ``?`` one that may be told from its
            default.
        dependencies: names of other files of ``POOL`` whose messages are used.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=name, package=PACKAGE, syntax="proto3", dependency=dependencies
    )
    for message, fields in messages.items():
        owner = file.message_type.add(name=message)
        for number, field, kind in fields:
            added = owner.field.add(name=field.lstrip("*?"), number=number)
            added.label = _TYPES.LABEL_REPEATED if field[0] == "*" else _TYPES.LABEL_OPTIONAL
            if isinstance(kind, int):
                added.type = kind
            else:
                added.type, added.type_name = _TYPES.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            if field[0] == "?":
                added.oneof_index = len(owner.oneof_decl)
                owner.oneof_decl.add(name=f"has_{added.name}")
    POOL.AddSerializedFile(file.SerializeToString())
    return [
        message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{message}"))
        for message in messages
    ]


_ENTRY = [
    (1, "dtype", INT32),
    (2, "?shape", BYTES),  # a TensorShapeProto, decoded apart: an index repeats few shapes often
    (3, "shard_id", INT32),
    (4, "offset", INT64),
    (5, "size", INT64),
    (6, "crc32c", FIXED32),
]

(
    VersionDef,
    Dim,
    TensorShapeProto,
    Extent,
    TensorSliceProto,
    BundleHeaderProto,
    BundleEntryProto,
    BundleEntryHead,
) = define(
    FILE,
    {
        "VersionDef": [(1, "producer", INT32), (2, "min_consumer", INT32), (3, "*bad_consumers", INT32)],
        "Dim": [(1, "size", INT64), (2, "name", TEXT)],
        "TensorShapeProto": [(2, "*dim", "Dim"), (3, "unknown_rank", BOOL)],
        "Extent": [(1, "start", INT64), (2, "?length", INT64)],
        "TensorSliceProto": [(1, "*extent", "Extent")],
        "BundleHeaderProto": [
            (1, "num_shards", INT32),
            (2, "endianness", INT32),
            (3, "version", "VersionDef"),
        ],
        "BundleEntryProto": [*_ENTRY, (7, "*slices", "TensorSliceProto")],
        "BundleEntryHead": [*_ENTRY, (7, "?slices", BYTES)],  # the same, to ask fast whether there are any
    },
)
