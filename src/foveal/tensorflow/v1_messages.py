"""The messages of V1 checkpoints, in the package and the descriptor pool of ``checkpoint_messages.py``.

Specification: TensorFlow's ``core/util/saved_tensor_slice.proto`` and ``core/framework/tensor.proto``. Packed
lists of numbers are declared as bytes, which look the same in the file: NumPy decodes them much faster.
"""

from __future__ import annotations

from typing import Final

from google.protobuf import descriptor_pb2  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.tensorflow.checkpoint_messages import FILE, INT32, TEXT, define

_BYTES: Final[int] = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES

SavedTensorSlices = define(
    "foveal/tensorflow/saved_tensor_slices.proto",
    {
        "TensorProto": [
            (5, "*float_val", _BYTES),  # binary32, little-endian
            (6, "*double_val", _BYTES),  # binary64
            (7, "*int_val", _BYTES),  # varints
            (8, "*string_val", _BYTES),  # one for each value, as declared by TensorFlow
            (9, "*scomplex_val", _BYTES),  # binary32: real, imaginary, real, ...
            (10, "*int64_val", _BYTES),  # varints
            (11, "*bool_val", _BYTES),  # varints
            (12, "*dcomplex_val", _BYTES),  # binary64: real, imaginary, real, ...
            (13, "*half_val", _BYTES),  # varints: the bits of a binary16
        ],
        "SavedSlice": [(1, "name", TEXT), (2, "slice", "TensorSliceProto"), (3, "data", "TensorProto")],
        "SavedSliceMeta": [
            (1, "name", TEXT),
            (2, "shape", "TensorShapeProto"),
            (3, "type", INT32),
            (4, "*slice", "TensorSliceProto"),
        ],
        "SavedTensorSliceMeta": [(1, "*tensor", "SavedSliceMeta"), (2, "versions", "VersionDef")],
        "SavedTensorSlices": [(1, "meta", "SavedTensorSliceMeta"), (2, "data", "SavedSlice")],
    },
    FILE,
)[-1]
