from __future__ import annotations

import base64
import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
from google.protobuf import descriptor_pool

from foveal.checkpoints.checksum import crc32c
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.v1 import V1Checkpoint, files_of
from foveal.tensorflow.v1_messages import SavedTensorSlices

# Written by TensorFlow 2.15.1: partitioned variables, and dtypes that the other files do not have
PARTITIONED = base64.b64decode(
    "AADOAQrLAQoSCgRjMTI4EgQSAggCGBIiAgoAChEKA2YxNhIEEgIIBBgTIgIKAAo5CglwL3dlaWdodHMSCBICCAoSAggEGAEiCAoCEAQK"
    "AhAEIgoKBAgEEAMKAhAEIgoKBAgHEAMKAhAEChMKBXBsYWluEgQSAggDGAkiAgoACioKBnEvY29scxIIEgIIAxICCAUYAyIICgIQAwoC"
    "EAMiCgoCEAMKBAgDEAIKDwoBcxIEEgIIAhgHIgIKAAoRCgN1MTYSBBICCAMYESICCgASAggBAAswAGMxMjgAAQEBgH8SLgoEYzEyOBIC"
    "CgAaImIgAAAAAAAA8D8AAAAAAAAAQAAAAAAAAACAnHUAiDzkN/4BCRpmMTYAAQEBgH8SGAoDZjE2EgIKABoNaguAfICAA9P2AYCAAgER"
    "W3Avd2VpZ2h0cwABAQKAhICEElkKCXAvd2VpZ2h0cxIICgIQBAoCEAQaQipAAAAAvwAAAD8AAMA/AAAgQAAAYEAAAJBAAACwQAAA0EAA"
    "APBAAAAIQQAAGEEAAChBAAA4QQAASEEAAFhBAABoQQ4ETYSDgIQSSwoJcC93ZWlnaHRzEgoKBAgEEAMKAhAEGjIqMAAAeEEAAIRBAACM"
    "QQAAlEEAAJxBAACkQQAArEEAALRBAAC8QQAAxEEAAMxBAADUQQ4ETYeDgIQSSwoJcC93ZWlnaHRzEgoKBAgHEAMKAhAEGjIqMAAA3EEA"
    "AORBAADsQQAA9EEAAPxBAAACQgAABkIAAApCAAAOQgAAEkIAABZCAAAaQgIKLmxhaW4AAQEBgH8SLAoFcGxhaW4SAgoAGh9SHf//////"
    "/////wH//////////3+AgICAgICAgIABAQ4/cS9jb2xzAAEBAoCDgIMSPQoGcS9jb2xzEggKAhADCgIQAxopOiec//////////8Buv//"
    "////////Adj//////////wEyUG7IAeYBhAINAi2DghIrCgZxL2NvbHMSCgoCEAMKBAgDEAIaFToT9v//////////ARSMAaoBogLAAgEH"
    "EnMAAQEBgH8SEAoBcxICCgAaB0IAQgNhAGIBCRR1MTYAAQEBgH8SEgoDdTE2EgIKABoHOgUAAf//AwAAAAABAAAAAA5n5FoAAAAAAQAA"
    "AADA8qGwAAEDAQDOBgAAAAABAAAAAGA0Z4PTBgjgBg8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAV/uAiyR1R9s="
)
PARTITIONED_VALUES = {
    "c128": np.array([1 + 2j, -1e300j]),
    "f16": np.array([1.5, -2, 6e4, -0.0], np.float16),
    "p/weights": np.arange(40, dtype=np.float32).reshape(10, 4) - np.float32(0.5),
    "plain": np.array([-1, 2**63 - 1, -(2**63)]),
    "q/cols": np.arange(15, dtype=np.int32).reshape(3, 5) * 30 - 100,
    "s": np.array([b"", b"a\0b"], object),
    "u16": np.array([0, 1, 65535], np.uint16),
}


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()
    if found.dtype != object:
        assert found.tobytes() == expected.tobytes()  # signs of zeros, too


def varint(value):
    value %= 1 << 64
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def table(*entries):
    """A table file of one block in which no key shares anything with another."""

    def block(entries):
        content = b"".join(
            b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in entries
        )
        content += struct.pack("<II", 0, 1) + b"\0"
        return content + struct.pack("<I", masked(crc32c(content)))

    data, meta = block(entries), block([])
    place = varint(0) + varint(len(data) - 5)
    index = block([(b"\xff", place)])
    handles = varint(len(data)) + varint(len(meta) - 5)
    handles += varint(len(data) + len(meta)) + varint(len(index) - 5)
    return data + meta + index + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def extents(owner, region):
    for each in region:
        extent = owner.extent.add()
        if each is not None:
            extent.start, extent.length = each


def header(*tensors, **versions):
    """The value of the empty key: of each tensor its name, shape, number of its dtype, and regions."""
    message = SavedTensorSlices()
    message.meta.versions.producer = 1
    for field, value in versions.items():
        setattr(message.meta.versions, field, value)
    for name, shape, number, *regions in tensors:
        tensor = message.meta.tensor.add(name=name, type=number)
        tensor.shape.SetInParent()
        for size in shape:
            tensor.shape.dim.add(size=size)
        for region in regions:
            extents(tensor.slice.add(), region)
    return b"", message.SerializeToString()


def stored(key, name, region, **fields):
    """An entry with a slice: ``fields`` has the bytes of the elements."""
    message = SavedTensorSlices()
    message.data.name = name
    extents(message.data.slice, region)
    for field, content in fields.items():
        getattr(message.data.data, f"{field}_val").extend(
            [content] if isinstance(content, bytes) else content
        )
    return key, message.SerializeToString()


def floats(*values):
    return np.array(values, "<f4").tobytes()


@pytest.fixture
def checkpoint(tmp_path):
    """Opens what a table of some entries, or a file of some bytes, holds."""

    def opened(*entries):
        path = tmp_path / "model.ckpt-1"
        path.write_bytes(entries[0] if isinstance(entries[0], bytes) else table(*entries))
        return V1Checkpoint(path)

    return opened


class TestWhatTensorFlowWrote:
    def test_has_the_expected_values(self, fixtures):
        expected = {
            key.replace("|", "/"): value for key, value in np.load(fixtures / "dtypes_expected.npz").items()
        }
        checkpoint = V1Checkpoint(fixtures / "dtypes_v1" / "model.ckpt-300")
        assert set(expected) - set(checkpoint.names()) == {"text", "f16", "u16", "bf16_as_f32"}
        assert checkpoint.names() == sorted(set(expected) & set(checkpoint.names()))
        for name in checkpoint.names():
            same(checkpoint.get(name), expected[name])
            assert checkpoint.shape(name) == expected[name].shape
            assert checkpoint.dtype(name) == expected[name].dtype

    def test_before_training_was_zeros(self, fixtures):
        last = V1Checkpoint(fixtures / "dtypes_v1" / "model.ckpt-300")
        first = V1Checkpoint(fixtures / "dtypes_v1" / "model.ckpt-20")
        assert first.names() == last.names()
        for name in first.names():
            same(first.get(name), np.zeros(last.shape(name), last.dtype(name)))

    def test_in_slices_is_joined(self, checkpoint):
        found = checkpoint(PARTITIONED)
        assert found.names() == list(PARTITIONED_VALUES)
        for name, expected in PARTITIONED_VALUES.items():
            same(found.get(name), expected)
            assert found.shape(name) == expected.shape
            assert found.dtype(name) == expected.dtype

    def test_is_given_as_arrays_that_can_be_changed_without_changing_the_next(self, checkpoint):
        found = checkpoint(PARTITIONED)
        for name, expected in PARTITIONED_VALUES.items():
            found.get(name).fill(0)
            same(found.get(name), expected)

    def test_in_several_files_is_put_together(self, tmp_path):
        both = (
            header(("a", (2, 2), 1, [(0, 1), None])),
            header(("a", (2, 2), 1, [(1, 1), None]), ("b", (), 3, [])),
        )
        (tmp_path / "m-00000-of-00002").write_bytes(
            table(both[0], stored(b"a", "a", [(0, 1), None], float=floats(1, 2)))
        )
        (tmp_path / "m-00001-of-00002").write_bytes(
            table(
                both[1],
                stored(b"a", "a", [(1, 1), None], float=floats(3, 4)),
                stored(b"b", "b", [], int=varint(-7)),
            )
        )
        found = V1Checkpoint(tmp_path / "m-?????-of-00002")
        assert found.names() == ["a", "b"]
        same(found.get("a"), np.array([[1, 2], [3, 4]], np.float32))
        same(found.get("b"), np.array(-7, np.int32))

    def test_is_the_index_of_a_v2_checkpoint_is_an_error_with_a_hint(self, fixtures):
        with pytest.raises(
            CheckpointError, match=r"byte 0: this is no V1 checkpoint.* name that without .index"
        ):
            V1Checkpoint(fixtures / "dtypes_v2" / "model.ckpt-300.index")


class TestElements:
    @pytest.mark.parametrize(
        ("number", "fields", "expected"),
        [
            (1, {"float": floats(1.5, -0.0)}, np.array([1.5, -0.0], np.float32)),
            (1, {"float": [floats(1.5), floats(2)]}, np.array([1.5, 2], np.float32)),  # packed in two pieces
            (2, {"double": np.array([1.5, 1e300], "<f8").tobytes()}, np.array([1.5, 1e300])),
            (3, {"int": varint(-(2**31)) + varint(2**31 - 1)}, np.array([-(2**31), 2**31 - 1], np.int32)),
            (4, {"int": varint(0) + varint(255)}, np.array([0, 255], np.uint8)),
            (5, {"int": varint(-(2**15)) + varint(2**15 - 1)}, np.array([-(2**15), 2**15 - 1], np.int16)),
            (6, {"int": varint(-128) + varint(127)}, np.array([-128, 127], np.int8)),
            (7, {"string": [b"\xff", b"x" * 300]}, np.array([b"\xff", b"x" * 300], object)),
            (8, {"scomplex": floats(1, 2, 3, 4)}, np.array([1 + 2j, 3 + 4j], np.complex64)),
            (9, {"int64": varint(-(2**63)) + varint(300)}, np.array([-(2**63), 300])),
            (10, {"bool": b"\1\0"}, np.array([True, False])),
            (17, {"int": varint(65535) + b"\x80\0"}, np.array([65535, 0], np.uint16)),
            (18, {"dcomplex": np.array([1, 2, 3, 4], "<f8").tobytes()}, np.array([1 + 2j, 3 + 4j])),
            (19, {"half": varint(0x3E00) + varint(0xFC00)}, np.array([1.5, -np.inf], np.float16)),
        ],
    )
    def test_of_every_dtype_are_decoded(self, checkpoint, number, fields, expected):
        found = checkpoint(header(("a", (2,), number, [None])), stored(b"a", "a", [None], **fields))
        assert found.dtype("a") == expected.dtype
        same(found.get("a"), expected)

    def test_of_many_integers_are_decoded_piece_by_piece(self, checkpoint):
        values = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 300_000) >> np.arange(300_000) % 64
        content = b"".join(varint(int(value)) for value in values)
        assert len(content) > 1 << 20
        found = checkpoint(header(("a", (300_000,), 9, [None])), stored(b"a", "a", [None], int64=content))
        same(found.get("a"), values)

    @pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 1 << 40)])
    @pytest.mark.parametrize("number", [1, 7, 9])
    def test_may_be_none(self, checkpoint, shape, number):
        region = [None] * len(shape)
        found = checkpoint(header(("a", shape, number, region)), stored(b"a", "a", region))
        assert found.get("a").shape == shape

    @pytest.mark.parametrize(
        ("number", "fields", "problem"),
        [
            (1, {"float": floats(1)}, "has 4 bytes, not 8"),
            (1, {"float": floats(1, 2, 3)}, "has 12 bytes, not 8"),
            (1, {"float": b"1234567"}, "has 7 bytes, not 8"),
            (1, {"double": b"12345678"}, "has 0 bytes, not 8"),
            (1, {}, "has 0 bytes, not 8"),
            (7, {"string": [b"a"]}, "has 1 strings, not 2"),
            (3, {"int": b"\1"}, "has 1 integers, not 2"),
            (3, {"int": b"\1\1\1"}, "has 3 integers, not 2"),
            (3, {"int": b"\1\1\x80"}, "has an integer that does not end"),
            (9, {"int64": b"\1" + b"\x80" * 10 + b"\1"}, "has an integer of more than ten bytes"),
            (3, {"int": varint(1) + varint(2**31)}, "has integers that are no int32"),
            (4, {"int": varint(1) + varint(-1)}, "has integers that are no uint8"),
            (6, {"int": varint(1) + varint(128)}, "has integers that are no int8"),
            (10, {"bool": b"\1\2"}, "has integers that are no bool"),
            (19, {"half": varint(1) + varint(65536)}, "has integers that are no uint16"),
        ],
    )
    def test_that_do_not_fit_are_an_error_with_the_place(self, checkpoint, number, fields, problem):
        listed = header(("a/b", (2,), number, [None]))
        found = checkpoint(listed, stored(b"a", "a/b", [None], **fields))
        place = 4 + (len(listed[1]) > 127) - 1 + len(listed[1])
        with pytest.raises(DamagedCheckpointError, match="damaged") as caught:
            found.get("a/b")
        assert str(caught.value).startswith(
            f"{found.path}: byte {place}: slice [0:2] of tensor 'a/b' {problem}: "
        )


class TestDamage:
    def test_of_any_byte_is_found(self, tmp_path):
        path = tmp_path / "model.ckpt-1"
        for size in range(len(PARTITIONED)):
            path.write_bytes(PARTITIONED[:size])
            with pytest.raises(DamagedCheckpointError, match=r"model\.ckpt-1: byte \d+: "):
                V1Checkpoint(path).get("f16")
        for at in range(len(PARTITIONED)):
            path.write_bytes(
                PARTITIONED[:at] + bytes([PARTITIONED[at] ^ 1 << at % 8]) + PARTITIONED[at + 1 :]
            )
            with pytest.raises(CheckpointError, match=r"model\.ckpt-1: byte \d+: "):
                V1Checkpoint(path).get("f16")

    def test_that_a_checksum_was_made_for_is_a_named_error_or_loads(self, checkpoint):
        """Whatever the messages hold: the table around them is right."""
        tensors = header(("a", (2, 2), 1, [(0, 1), None], [(1, 1), None]), ("b", (1,), 3, [None]))
        entries = [
            tensors,
            stored(b"a", "a", [(0, 1), None], float=floats(1, 2)),
            stored(b"b", "a", [(1, 1), None], float=floats(3, 4)),
            stored(b"c", "b", [None], int=varint(-1)),
        ]
        same(checkpoint(*entries).get("a"), np.array([[1, 2], [3, 4]], np.float32))
        loaded = 0
        for which, (key, value) in enumerate(entries):
            for bit in range(8 * len(value)):
                changed = bytearray(value)
                changed[bit // 8] ^= 1 << bit % 8
                mutated = [*entries[:which], (key, bytes(changed)), *entries[which + 1 :]]
                with contextlib.suppress(CheckpointError):
                    found = checkpoint(*mutated)
                    for name in found.names():
                        assert found.get(name).shape == found.shape(name)
                    loaded += 1
        assert loaded > 100  # such as with other values

    def test_cannot_make_it_take_memory(self, checkpoint):
        sizes = [(1 << 58,), (1 << 29, 1 << 29), (1 << 40,), (1 << 34,)]
        tracemalloc.start()
        try:
            for shape in sizes:
                for region in ([None] * len(shape), [(0, 1)] * len(shape)):
                    found = checkpoint(
                        header(("a", shape, 1, region)), stored(b"a", "a", region, float=floats(1))
                    )
                    with pytest.raises(
                        DamagedCheckpointError, match=r"has 4 bytes, not|have 1 elements, its"
                    ):
                        found.get("a")
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("regions", "problem"),
        [
            ([[(0, 2)], [(1, 2)]], r"slice \[1:3\] of tensor 'a' overlaps another"),
            ([[(0, 2)], [(3, 1)]], r"the slices of tensor 'a' have 3 elements, its shape 4"),
            ([[(0, 2)], [(0, 3)]], r"the slices of tensor 'a' have 5 elements, its shape 4"),
            ([], r"the slices of tensor 'a' have 0 elements, its shape 4"),
            ([[(0, 4)], [None]], r"slice \[0:4\] of tensor 'a' is listed twice"),
            ([[(2, 3)]], r"slice \[2:5\] of tensor 'a' is not within its shape \(4,\)"),
            ([[(-1, 2)]], r"slice \[-1:1\] of tensor 'a' is not within"),
            ([[(2, -1)]], r"slice \[2:1\] of tensor 'a' is not within"),
            ([[(1 << 62, 1 << 62)]], r"slice \[\d+:\d+\] of tensor 'a' is not within"),
            ([[None, None]], r"a slice of tensor 'a' has 2 dimensions, not 1"),
            ([[]], r"a slice of tensor 'a' has 0 dimensions, not 1"),
        ],
    )
    def test_of_slices_that_do_not_make_up_the_tensor_is_found(self, checkpoint, regions, problem):
        entries = [
            stored(
                bytes([97 + at]), "a", region, float=bytes(4 * sum(each[1] % 5 for each in region if each))
            )
            for at, region in enumerate(regions)
        ]
        with pytest.raises(DamagedCheckpointError, match=rf"ckpt-1: byte 0: {problem}"):
            checkpoint(header(("a", (4,), 1, *regions)), *entries).get("a")

    def test_of_a_slice_that_is_listed_and_not_stored_is_found(self, checkpoint):
        found = checkpoint(
            header(("a", (2,), 1, [(0, 1)], [(1, 1)]), ("b", (), 1, [])),
            stored(b"a", "a", [(0, 1)], float=floats(1)),
            stored(b"b", "b", [], float=floats(2)),
        )
        with pytest.raises(
            DamagedCheckpointError, match=r"slice \[1:2\] of tensor 'a' is listed, but nowhere"
        ):
            found.get("a")
        same(found.get("b"), np.array(2, np.float32))

    @pytest.mark.parametrize(
        ("entry", "problem"),
        [
            (
                stored(b"b", "a", [(0, 1)], float=floats(1)),
                r"a slice of tensor 'a' is stored, but nowhere listed",
            ),
            (
                stored(b"b", "b", [None], float=floats(1)),
                r"a slice of tensor 'b' is stored, but nowhere listed",
            ),
            (stored(b"b", "a", [None], float=floats(1, 2)), r"slice \[0:2\] of tensor 'a' is stored twice"),
            ((b"b", b"\xff"), r"the value of key b'b' is no SavedTensorSlices: "),
            ((b"b", b"\x12\x03\x0a\x01\xff"), r"the value of key b'b' is no SavedTensorSlices: "),
            ((b"b", b"\x1b" * 1000), r"the value of key b'b' is no SavedTensorSlices: "),
        ],
    )
    def test_of_an_entry_that_does_not_belong_is_found(self, checkpoint, entry, problem):
        found = checkpoint(
            header(("a", (2,), 1, [None])), stored(b"a", "a", [None], float=floats(1, 2)), entry
        )
        with pytest.raises(DamagedCheckpointError, match=rf"ckpt-1: byte [1-9]\d*: {problem}"):
            found.get("a")

    @pytest.mark.parametrize(
        ("entries", "problem"),
        [
            ([], "the header of a V1 checkpoint is missing"),
            ([(b"a", b"")], "the header of a V1 checkpoint is missing"),
            ([(b"", b"\xff")], "the value of key b'' is no SavedTensorSlices"),
            ([(b"", b"")], "this is no V1 checkpoint"),
            ([stored(b"", "a", [])], "this is no V1 checkpoint"),
            ([header(("a", (-1,), 1))], "tensor 'a' has no full shape"),
            ([header(("a", (1 << 59,), 1))], "tensor 'a' has an impossible shape of 1 dimensions"),
            ([header(("a", (1 << 62, 0), 1))], "tensor 'a' has an impossible shape of 2 dimensions"),
            ([header(("a", (1,) * 65, 1))], "tensor 'a' has an impossible shape of 65 dimensions"),
            ([header(("a", (1,), 1), ("a", (2,), 1))], "tensor 'a' is listed twice, with different"),
            ([header(("a", (1,), 1), ("a", (1,), 2))], "tensor 'a' is listed twice, with different"),
            ([header(min_consumer=2)], "it needs a reader of version 2, this one has 1"),
        ],
    )
    def test_of_the_header_is_found_when_it_is_opened(self, tmp_path, entries, problem):
        (tmp_path / "model.ckpt-1").write_bytes(table(*entries))
        with pytest.raises(CheckpointError, match=rf"ckpt-1: byte 0: {problem}"):
            V1Checkpoint(tmp_path / "model.ckpt-1")


class TestACheckpoint:
    def test_without_a_tensor_of_a_name_says_so(self, checkpoint):
        found = checkpoint(PARTITIONED)
        for ask in (found.get, found.shape, found.dtype):
            with pytest.raises(
                CheckpointError, match=r"no tensor is named 'p/weight': did you mean 'p/weights'\?"
            ):
                ask("p/weight")
        with pytest.raises(CheckpointError, match=r"no tensor is named '\.\./x': name one of those it has"):
            found.get("../x")

    @pytest.mark.parametrize("number", [0, 11, 14, 20, 101, -1])
    def test_with_a_dtype_that_is_not_supported_gives_the_other_tensors(self, checkpoint, number):
        found = checkpoint(
            header(("a", (1,), number, [None]), ("b", (1,), 1, [None])),
            stored(b"a", "a", [None], int=b"\0"),
            stored(b"b", "b", [None], float=floats(1)),
        )
        assert found.names() == ["a", "b"]
        assert found.shape("a") == (1,)
        for ask in (found.get, found.dtype):
            with pytest.raises(
                CheckpointError, match=rf"tensor 'a' has TensorFlow's dtype number {number}, which"
            ):
                ask("a")
        same(found.get("b"), np.array([1], np.float32))

    def test_that_is_missing_is_an_error(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"^cannot read .*ckpt-1: No such file"):
            V1Checkpoint(tmp_path / "model.ckpt-1")

    @pytest.mark.parametrize(
        ("shards", "problem"), [("00002", "cannot read .*-00000-of-00002"), ("00000", "0 files")]
    )
    def test_of_which_files_are_missing_is_an_error(self, tmp_path, shards, problem):
        with pytest.raises(CheckpointError, match=problem):
            V1Checkpoint(tmp_path / f"m-?????-of-{shards}")

    def test_without_tensors_has_no_names(self, checkpoint):
        assert checkpoint(header()).names() == []


def test_files_are_counted_only_where_the_name_is_a_pattern(tmp_path):
    assert list(files_of(tmp_path / "m")) == [tmp_path / "m"]
    assert list(files_of(tmp_path / "m-00000-of-00002")) == [tmp_path / "m-00000-of-00002"]
    assert [path.name for path in files_of(tmp_path / "m-?????-of-00002")] == [
        "m-00000-of-00002",
        "m-00001-of-00002",
    ]


def test_the_messages_are_registered_nowhere_that_others_look():
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("foveal.tensorflow.SavedTensorSlices")
