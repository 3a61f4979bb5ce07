"""The messages ``Example`` and ``SequenceExample``, in a package and a descriptor pool of our own.

Specification: TensorFlow's ``core/example/example.proto`` and ``feature.proto``. Nothing is registered where
others look, so TensorFlow may live in the same process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]  # its wheels have no stubs
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)


def _messages() -> tuple[Any, Any]:
    """The classes of Example and SequenceExample."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="foveal/tensorflow/example.proto", package="foveal.tensorflow", syntax="proto3"
    )

    def field(owner: Any, number: int, name: str, kind: str | int, *, repeated: bool = False) -> Any:
        label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
        if isinstance(kind, int):
            return owner.field.add(name=name, number=number, label=label, type=kind)
        full = f".{file.package}.{kind}"
        return owner.field.add(name=name, number=number, label=label, type=types.TYPE_MESSAGE, type_name=full)

    def mapping(owner: Any, number: int, name: str, entry: str, kind: str) -> None:
        nested = owner.nested_type.add(name=entry)
        nested.options.map_entry = True
        field(nested, 1, "key", types.TYPE_STRING)
        field(nested, 2, "value", kind)
        field(owner, number, name, f"{owner.name}.{entry}", repeated=True)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    lists = ("BytesList", types.TYPE_BYTES), ("FloatList", types.TYPE_FLOAT), ("Int64List", types.TYPE_INT64)
    kinds = ("bytes_list", "float_list", "int64_list")
    for number, (kind, (name, value)) in enumerate(zip(kinds, lists, strict=True), 1):
        field(file.message_type.add(name=name), 1, "value", value, repeated=True)
        field(feature, number, kind, name).oneof_index = 0
    mapping(file.message_type.add(name="Features"), 1, "feature", "FeatureEntry", "Feature")
    field(file.message_type.add(name="FeatureList"), 1, "feature", "Feature", repeated=True)
    lists_of_lists = file.message_type.add(name="FeatureLists")
    mapping(lists_of_lists, 1, "feature_list", "FeatureListEntry", "FeatureList")
    field(file.message_type.add(name="Example"), 1, "features", "Features")
    sequence = file.message_type.add(name="SequenceExample")
    field(sequence, 1, "context", "Features")
    field(sequence, 2, "feature_lists", "FeatureLists")

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = (f"{file.package}.{each}" for each in ("Example", "SequenceExample"))
    example, sequence_example = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names
    )
    return example, sequence_example


Example, SequenceExample = _messages()
