"""Small files in TensorFlow's formats: checkpoints, each with the tensors it holds, texts, and records."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import cramjam
import ml_dtypes
import numpy as np

from foveal.checkpoints.checksum import crc32c
from foveal.tensorflow.bundle import _slice_key, string_lengths
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.checkpoint_messages import (
    DTYPES,
    BundleEntryProto,
    BundleHeaderProto,
    Dim,
    Extent,
    TensorShapeProto,
    TensorSliceProto,
)
from foveal.tensorflow.example import build_example, build_sequence_example
from foveal.tensorflow.object_graph import GRAPH_KEY, TrackableObjectGraph
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import PLAIN, SNAPPY, TRAILER, varint
from foveal.tensorflow.table_writer import encode_varint, write_table
from foveal.tensorflow.v1_messages import SavedTensorSlices

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Extents = tuple[tuple[int, int], ...]  # of a slice: start and length by dimension, -1 for all of it

FOOTER = 48  # bytes at the end of a table file, which no checksum protects
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
MANY = {
    "bf16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "conv/weights": MATRIX + np.float32(0.5),
    "conv/weights/ExponentialMovingAverage": MATRIX,
    "conv/weights/Momentum": -MATRIX,
    "empty": np.empty((0, 5), np.float16),
    "global_step": np.array(7),
    "names/../é": np.array([[True], [False]]),
    "text": np.array([[b"alpha", b""], ["é".encode(), b"\0" * 200]], object),
}
SLICED = {"a": MATRIX, "b": np.arange(15, dtype=np.int64).reshape(3, 5), "c": np.array(2.5)}
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
OBJECTS = {"net/w": MATRIX, "net/w/.OPTIMIZER_SLOT/opt/momentum": -MATRIX, "step": np.array(7)}
V1 = SLICED | {
    "half": np.array([1.5, -0.0, 6e4], np.float16),
    "small": np.array([-128, 127], np.int8),
    "text": np.array([b"", b"a\0b"], object),
    "z": np.array([1 + 2j, -1j], np.complex64),
}
STATE = (
    b'model_checkpoint_path: "model.ckpt-300"\nall_model_checkpoint_paths: "/gone/model.ckpt-20"\n'
    b'all_model_checkpoint_paths: "model.ckpt-300"\nall_model_checkpoint_timestamps: 1795339025.5\n'
    b"all_model_checkpoint_timestamps: 1795339026.5\nlast_preserved_timestamp: 1795339024.25\n"
)
NAME_MAP = (
    b'[tensors]\n"conv1.weight" = { variable = "conv1/weights", layout = "HWIO" }\n"conv1.bias" = '
    b'{ variable = "conv1/biases" }\n"depthwise" = { variable = "d", layout = "HWIM", multiplier = 2 }\n'
    b'"fc.weight" = { variable = "fc/weights", layout = "IO", flattened = [7, 7, 64] }\n'
)
ODD_PIECES = (
    b"{ < ' # . 1e999 nan true 1979-05-27 \\377 \\ud800 \\U00110000 \xff \0 [google.protobuf.Any]".split()
)
ODD_PIECES += [b'"""', b"[" * 3000, b"9" * 5000]
RECORDS = [b"", *(build_example({"a": [each] * each, "b": b"x" * 40 * each}) for each in range(1, 5)), b"end"]
EXAMPLES = [
    build_example({"a": [1, -2, 300], "b": [0.5, 1.5], "c": [b"x", b"yz"], "é": 7}),
    build_sequence_example({"a": 1}, {"b": [[0.5, 1.5], [2.5, 3.5]], "c": [[b"x"], [b"", b"y"]]}),
]


def plain_bundle(folder: Path) -> Path:
    """A bundle of many dtypes, in one file; its prefix."""
    write_bundle(folder / "b", MANY)
    return folder / "b"


def packed_bundle(folder: Path) -> Path:
    """The same, but the blocks of its index are packed by Snappy."""
    prefix, content, places = plain_bundle(folder), b"", []
    path = prefix.with_name("b.index")
    original = path.read_bytes()
    for start, stop in blocks_of(original)[:2]:
        block = bytes(cramjam.snappy.compress_raw(original[start:stop]))
        places.append(encode_varint(len(content)) + encode_varint(len(block)))
        content += sealed(block, SNAPPY)
    entry = bytes([0, 1, len(places[0])]) + b"\xff" + places[0]
    index = sealed(entry + struct.pack("<II", 0, 1), PLAIN)
    handles = places[1] + encode_varint(len(content)) + encode_varint(len(index) - TRAILER.size)
    path.write_bytes(content + index + handles.ljust(40, b"\0") + original[-8:])
    return prefix


def sliced_bundle(folder: Path) -> Path:
    """A bundle in two files, with slices of the matrices in each."""
    items, data = {b"": _header(2)}, [b"", b""]
    for name, array in SLICED.items():
        parts = _parts(array)
        entries = []
        for shard, (extents, part) in enumerate(parts):
            entries.append(entry_of(part, part.tobytes(), shard_id=shard, offset=len(data[shard])))
            data[shard] += part.tobytes()
            if len(parts) > 1:
                items[_slice_key(name, extents)] = entries[-1].SerializeToString()
        if len(parts) > 1:
            entries = [entry_of(array, b"")]
            entries[0].slices.extend(TensorSliceProto(extent=_extents(extents)) for extents, _ in parts)
        items[name.encode()] = entries[0].SerializeToString()
    write_table(folder / "b.index", sorted(items.items()))
    for shard, content in enumerate(data):
        (folder / f"b.data-{shard:05}-of-00002").write_bytes(content)
    return folder / "b"


def objects_bundle(folder: Path) -> Path:
    """An object-based checkpoint: a variable with its slot, and a step; the objects know each other."""
    graph = TrackableObjectGraph()
    root, net, optimizer, *variables = (graph.nodes.add() for _ in range(6))
    for node, children in (
        (root, {"net": 1, "opt": 2, "step": 5}),
        (net, {"w": 3, "up": 0}),
        (optimizer, {"net": 1}),
    ):
        for name, number in children.items():
            node.children.add(node_id=number, local_name=name)
    optimizer.slot_variables.add(original_variable_node_id=3, slot_name="momentum", slot_variable_node_id=4)
    for node, name in zip(variables, OBJECTS, strict=True):
        node.attributes.add(name="VARIABLE_VALUE", full_name=name, checkpoint_key=f"{name}{SUFFIX}")
    tensors = {f"{name}{SUFFIX}": value for name, value in OBJECTS.items()}
    write_bundle(folder / "b", tensors | {GRAPH_KEY: np.array(graph.SerializeToString(), object)})
    return folder / "b"


def strings_bundle(folder: Path, lengths: list[int], content: bytes) -> Path:
    """A bundle of strings that claim to be so long, all checksums of which are right."""
    summed = string_lengths(lengths, "little")
    rest = masked(crc32c(summed)).to_bytes(4, "little") + content
    stored = b"".join(map(encode_varint, lengths)) + rest
    entry = entry_of(np.empty(len(lengths), object), stored)
    entry.crc32c = masked(crc32c(summed + rest))
    write_table(folder / "b.index", [(b"", _header(1)), (b"text", entry.SerializeToString())])
    (folder / "b.data-00000-of-00001").write_bytes(stored)
    return folder / "b"


def v1_checkpoint(folder: Path) -> Path:
    """A V1 checkpoint in two files, with slices of the matrices in each; the pattern of their names."""
    for shard in range(2):
        header, items = SavedTensorSlices(), {}
        header.meta.versions.producer = 1
        for name, array in V1.items():
            for extents, part in _parts(array)[shard : shard + 1]:
                tensor = header.meta.tensor.add(name=name, type=NUMBERS[array.dtype])
                tensor.shape.dim.extend(Dim(size=size) for size in array.shape)
                tensor.slice.add(extent=_extents(extents))
                stored = SavedTensorSlices()
                stored.data.name = name
                stored.data.slice.extent.extend(_extents(extents))
                field, content = _elements(part)
                getattr(stored.data.data, field).extend(content)
                items[_slice_key(name, extents)] = stored.SerializeToString()
        items[b""] = header.SerializeToString()
        write_table(folder / f"m-0000{shard}-of-00002", sorted(items.items()))
    return folder / "m-?????-of-00002"


def _header(shards: int) -> bytes:
    header = BundleHeaderProto(num_shards=shards)
    header.version.producer = 1
    return bytes(header.SerializeToString())


def entry_of(array: NDArray[Any], content: bytes, **fields: int) -> Any:
    """The entry of a tensor in the index of a bundle."""
    return BundleEntryProto(
        dtype=NUMBERS[array.dtype],
        shape=shape_of(array.shape),
        size=len(content),
        crc32c=masked(crc32c(content)),
        **fields,
    )


def shape_of(sizes: tuple[int, ...]) -> bytes:
    """A shape as it stands there."""
    return bytes(TensorShapeProto(dim=[Dim(size=size) for size in sizes]).SerializeToString())


def blocks_of(content: bytes) -> list[tuple[int, int]]:
    """Where the blocks of a table file begin and end that has one with data: that, metaindex and index."""
    at, handles = len(content) - FOOTER, []
    for _ in range(4):
        number, at = varint(content, at)
        handles.append(number)
    meta, meta_size, index, index_size = handles
    return [(0, meta - TRAILER.size), (meta, meta + meta_size), (index, index + index_size)]


def sealed(block: bytes, kind: int) -> bytes:
    """A block of a table with its trailer, whose checksum is right."""
    return block + TRAILER.pack(kind, masked(crc32c(block + bytes([kind]))))


def _parts(array: NDArray[Any]) -> list[tuple[Extents, NDArray[Any]]]:
    """Two slices of a matrix; of anything else itself."""
    if array.ndim < 2:
        return [(((0, -1),) * array.ndim, array)]
    return [(((0, 1), (0, -1)), array[:1]), (((1, 2), (0, -1)), array[1:])]


def _extents(extents: Extents) -> list[Any]:
    return [Extent(start=start, **({} if length < 0 else {"length": length})) for start, length in extents]


def _elements(array: NDArray[Any]) -> tuple[str, list[bytes]]:
    """The field of a V1 checkpoint that has such elements, and what stands there."""
    if array.dtype == object:
        return "string_val", array.tolist()
    fixed = {"float32": "float_val", "float64": "double_val", "complex64": "scomplex_val"}
    if array.dtype.name in fixed:
        return fixed[array.dtype.name], [array.tobytes()]
    bits = array.view(np.uint16) if array.dtype == np.float16 else array
    field = {"float16": "half_val", "int64": "int64_val"}.get(array.dtype.name, "int_val")
    return field, [b"".join(encode_varint(each % 2**64) for each in bits.ravel().tolist())]
