from __future__ import annotations

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from foveal.checkpoints.checksum import crc32c
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.tensorflow import bundle_writer
from foveal.tensorflow.bundle import Bundle, _slice_key
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.checkpoint_messages import (
    DTYPES,
    BundleEntryProto,
    BundleHeaderProto,
    Dim,
    TensorShapeProto,
)
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import Table
from foveal.tensorflow.table_writer import write_table

EXPECTED = {
    "dtypes_v2/model.ckpt-300": "dtypes",
    "partitioned/model.ckpt-7": "partitioned",
    "sharded/model.ckpt-5": "sharded",
    "slots_adam/model.ckpt-3": "slots_adam",
    "slots_momentum/model.ckpt-3": "slots_momentum",
    "slots_rmsprop/model.ckpt-3": "slots_rmsprop",
}
ALL = -1
TEXT = 7
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def head(shards=1, **fields):
    header = BundleHeaderProto(num_shards=shards, **fields)
    header.version.producer = 1
    return header.SerializeToString()


def entry(shape, data, offset=0, *, kind=1, size=None, crc=None, slices=(), shard=0):
    """The entry of a tensor, whatever it claims."""
    size = len(data) if size is None else size
    crc = masked(crc32c(data)) if crc is None else crc
    dims = TensorShapeProto(dim=[Dim(size=each) for each in shape]).SerializeToString()
    message = BundleEntryProto(dtype=kind, shape=dims, offset=offset, size=size, crc32c=crc, shard_id=shard)
    for extents in slices:
        added = message.slices.add()
        for start, length in extents:
            added.extent.add(start=start, **({} if length == ALL else {"length": length}))
    return message.SerializeToString()


def bundle(folder, entries, data=b"", header=None):
    """The prefix of a bundle of some entries, with right checksums of the index."""
    keys = {name if isinstance(name, bytes) else name.encode(): value for name, value in entries.items()}
    keys[b""] = head() if header is None else header
    write_table(folder / "b.index", sorted(keys.items()))
    (folder / "b.data-00000-of-00001").write_bytes(data)
    return folder / "b"


def sliced(folder, parts, shape, kind=1, left_out=()):
    """A bundle of a tensor ``t`` in slices: ``(extents, array)`` each."""
    entries, data = {}, b""
    slices = [extents for extents, _ in parts]
    entries["t"] = entry(shape, b"", slices=slices, crc=0, kind=kind)
    for number, (extents, part) in enumerate(parts):
        if number not in left_out:
            content = part.tobytes()
            entries[_slice_key("t", extents)] = entry(part.shape, content, len(data), kind=kind)
            data += content
    return bundle(folder, entries, data)


def same(found, expected):
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tolist() == expected.tolist()
    )


def everything(prefix):
    found = Bundle(prefix)
    return {name: found.get(name) for name in found.names()}


def samples():
    """A tensor of every dtype, and of odd shapes."""
    draw = np.random.default_rng(0)
    tensors = {}
    for dtype in DTYPES.values():
        if dtype == np.object_:
            continue
        content = draw.integers(0, 2 if dtype == np.bool_ else 100, (3, 5))
        tensors[f"kind/{dtype.name}"] = content.astype(dtype)
    return tensors | {
        "text": np.array([b"a", b"", b"\0" * 300, "é".encode()], object).reshape(2, 2),
        "no text": np.empty((0, 2), object),
        "one text": np.array(b"one", object),
        "empty": np.empty((0, 5), np.float32),
        "scalar": np.array(2.5, np.float32),
        "zeros\0in/names/../é": np.array([1, 2], np.int64),
    }


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize(("prefix", "name"), EXPECTED.items())
    def test_gives_the_expected_values(self, fixtures, prefix, name):
        found = Bundle(fixtures / prefix)
        expected = np.load(fixtures / f"{name}_expected.npz")
        names = {"bf16_as_f32": "bf16"} | {
            key: key.replace("|", "/") for key in expected if "bf16" not in key
        }
        assert found.names() == sorted(names[key] for key in expected)
        for key, value in expected.items():
            array = found.get(names[key])
            if key == "text":
                array = np.array([each.hex() for each in array.tolist()], value.dtype)
            if key == "bf16_as_f32":
                assert array.dtype == ml_dtypes.bfloat16
                array = array.astype(np.float32)
            assert same(array, value), key

    def test_has_the_strings_and_zeros_of_another_step(self, fixtures):
        first, last = (everything(fixtures / "dtypes_v2" / f"model.ckpt-{step}") for step in (20, 300))
        assert first["text"].tolist() == last["text"].tolist() == [b"alpha", b"", "éè".encode(), b"x" * 300]
        assert not first["big"].any()

    def test_is_read_with_shapes_and_dtypes_as_named(self, fixtures):
        prefixes = sorted(fixtures.glob("*/*.index"))
        assert len(prefixes) > 9
        for index in prefixes:
            found = Bundle(index.with_suffix(""))
            for name in found.names():
                array = found.get(name)
                assert (array.shape, array.dtype) == (found.shape(name), found.dtype(name))
                assert array.flags.writeable

    @pytest.mark.parametrize(
        "prefix", [each for each in EXPECTED if "part" not in each and "shard" not in each]
    )
    def test_is_written_again_byte_for_byte(self, fixtures, tmp_path, prefix):
        write_bundle(tmp_path / "again", everything(fixtures / prefix))
        for end in ("index", "data-00000-of-00001"):
            assert (tmp_path / f"again.{end}").read_bytes() == (fixtures / f"{prefix}.{end}").read_bytes()

    def test_calls_slices_as_these_bytes_do(self):
        # from TensorFlow 2.15.1, of SaveV2 with "300 2 200 100,200:-:90,110", and of partitioned/
        key = _slice_key("b", ((100, 200), (0, ALL), (90, 110)))
        assert key == b"\0b\0\1\1\3\xc0d\xc0\xc8\x80\x7f\xc0Z\xc0n"
        assert _slice_key("p/weights", ((4, 3), (0, 4))) == b"\0p/weights\0\1\1\2\x84\x83\x80\x84"

    def test_is_read_by_threads_at_once(self, fixtures):
        found = Bundle(fixtures / "dtypes_v2" / "model.ckpt-300")
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(found.get, found.names() * 3))
        assert all(map(same, arrays, [found.get(name) for name in found.names()] * 3))


class TestReading:
    def test_of_a_name_that_is_not_there_suggests_one(self, tmp_path):
        write_bundle(tmp_path / "b", {"conv/weights": MATRIX})
        with pytest.raises(
            CheckpointError, match=r"b\.index: no tensor is named 'conv/weight': did you mean"
        ):
            Bundle(tmp_path / "b").get("conv/weight")
        for name in ("", "\0", "x", "\udc80"):
            with pytest.raises(CheckpointError, match="name one of those it has"):
                Bundle(tmp_path / "b").shape(name)

    def test_of_no_checkpoint_and_of_missing_data_names_the_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"none\.index: No such file"):
            Bundle(tmp_path / "none")
        write_bundle(tmp_path / "b", {"t": MATRIX})
        (tmp_path / "b.data-00000-of-00001").unlink()
        assert Bundle(tmp_path / "b").shape("t") == (3, 4)
        with pytest.raises(CheckpointError, match=r"b\.data-00000-of-00001: No such file"):
            Bundle(tmp_path / "b").get("t")

    def test_of_the_other_byte_order(self, tmp_path):
        values = {"i": np.arange(4, dtype=np.int32), "c": np.array([1 + 2j], np.complex64), "h": MATRIX}
        values["h"] = values["h"].astype(ml_dtypes.bfloat16)
        kinds = {"i": 3, "c": 8, "h": 14}
        data, entries = b"", {}
        for name, value in values.items():
            content = value.view({2: "u2", 4: "u4", 8: "u4"}[value.itemsize]).byteswap().tobytes()
            entries[name] = entry(value.shape, content, len(data), kind=kinds[name])
            data += content
        lengths = struct.pack(">II", 1, 0)
        rest = struct.pack(">I", masked(crc32c(lengths))) + b"x"
        summed = masked(crc32c(lengths + rest))
        entries["text"] = entry((2,), b"\1\0" + rest, len(data), kind=TEXT, crc=summed)
        found = everything(bundle(tmp_path, entries, data + b"\1\0" + rest, head(endianness=1)))
        assert found.pop("text").tolist() == [b"x", b""]
        assert all(same(found[name], values[name]) for name in values)

    def test_needs_no_names_that_are_safe_as_paths(self, tmp_path):
        content = MATRIX.tobytes()
        assert same(
            everything(bundle(tmp_path, {"../../t": entry((3, 4), content)}, content))["../../t"], MATRIX
        )


class TestSlices:
    def test_of_several_dimensions_are_joined(self, tmp_path):
        whole = np.arange(60, dtype=np.int32).reshape(5, 4, 3)
        parts = [
            (((0, 2), (0, ALL), (0, ALL)), whole[:2]),
            (((2, 3), (0, 1), (0, 3)), whole[2:, :1]),
            (((2, 3), (1, 3), (0, ALL)), whole[2:, 1:]),
            (((5, 0), (0, ALL), (0, ALL)), whole[5:]),
        ]
        found = Bundle(sliced(tmp_path, parts, whole.shape, kind=3))
        assert found.names() == ["t"]
        assert same(found.get("t"), whole)

    def test_of_strings_and_of_a_single_value_are_joined(self, tmp_path):
        assert same(Bundle(sliced(tmp_path, [((), MATRIX[1, 1])], ())).get("t"), np.array(MATRIX[1, 1]))

    @pytest.mark.parametrize(
        ("rows", "problem"),
        [
            ([(0, 1), (2, 1)], "have 8 elements, not 12"),
            ([(0, 2), (1, 2)], "have 16 elements, not 12"),
            ([(0, 2), (1, 1)], "slices of tensor 't' overlap"),
            ([(0, 2), (2, 2)], "does not fit its shape"),
            ([(-1, 1), (1, 2)], "does not fit its shape"),
        ],
    )
    def test_that_overlap_or_leave_something_out_are_refused(self, tmp_path, rows, problem):
        parts = [(((start, length), (0, ALL)), np.ones((length, 4), np.float32)) for start, length in rows]
        with pytest.raises(DamagedCheckpointError, match=rf"b\.index: byte \d+: .*{problem}"):
            Bundle(sliced(tmp_path, parts, (3, 4))).get("t")

    def test_that_are_missing_or_of_another_rank_or_shape_are_refused(self, tmp_path):
        parts = [(((0, 1), (0, ALL)), MATRIX[:1]), (((1, 2), (0, ALL)), MATRIX[1:])]
        with pytest.raises(DamagedCheckpointError, match=r"slice \(\(1, 2\), \(0, -1\)\).* is missing"):
            Bundle(sliced(tmp_path, parts, (3, 4), left_out=[1])).get("t")
        for extents in (((0, 3),), ((0, 1),) * 300, ((1, ALL), (0, ALL)), ((0, -2), (0, ALL))):
            entries = {"t": entry((3, 4), b"", slices=[extents])}
            with pytest.raises(DamagedCheckpointError, match="does not fit its shape"):
                Bundle(bundle(tmp_path, entries)).get("t")
        with pytest.raises(DamagedCheckpointError, match="stored with another shape or dtype"):
            Bundle(sliced(tmp_path, [(((0, 3), (0, 2)), MATRIX)], (3, 2))).get("t")

    def test_of_a_size_that_no_file_has_are_refused_before_memory_is_taken(self, tmp_path):
        big = 1 << 50
        key = _slice_key("t", ((0, ALL),))
        entries = {"t": entry((big,), b"", slices=[((0, ALL),)]), key: entry((big,), b"", size=4 * big)}
        with pytest.raises(DamagedCheckpointError, match=r"data-00000-of-00001: byte 0: it ends"):
            Bundle(bundle(tmp_path, entries)).get("t")


class TestDamage:
    @pytest.fixture
    def prefix(self, tmp_path):
        write_bundle(tmp_path / "b", {"m": MATRIX, "text": np.array([b"one", b""], object), "z": np.int64(3)})
        return tmp_path / "b"

    def test_by_cutting_off_at_any_byte_is_found(self, prefix):
        for end in ("index", "data-00000-of-00001"):
            path = Path(f"{prefix}.{end}")
            content = path.read_bytes()
            for size in range(len(content)):
                path.write_bytes(content[:size])
                with pytest.raises(DamagedCheckpointError, match=rf"{end}: byte \d+: "):
                    everything(prefix)
            path.write_bytes(content)

    def test_of_any_bit_is_found(self, prefix):
        good = everything(prefix)
        for end in ("index", "data-00000-of-00001"):
            path = Path(f"{prefix}.{end}")
            content, loaded = path.read_bytes(), 0
            for at in range(8 * len(content)):
                path.write_bytes(content)
                with path.open("r+b") as file:
                    file.seek(at // 8)
                    file.write(bytes([content[at // 8] ^ 1 << at % 8]))
                try:
                    found = everything(prefix)
                except DamagedCheckpointError as error:
                    assert ": byte " in str(error)  # noqa: PT017  # a bit may be one that changes nothing
                else:
                    loaded += 1
                    assert all(same(found[name], good[name]) for name in good)
            assert loaded <= (end == "index")
            path.write_bytes(content)

    def test_of_a_tensor_leaves_the_others(self, prefix):
        path = Path(f"{prefix}.data-00000-of-00001")
        path.write_bytes(b"!" + path.read_bytes()[1:])
        found = Bundle(prefix)
        with pytest.raises(DamagedCheckpointError, match=r"00001: byte 0: the checksum of tensor 'm' is"):
            found.get("m")
        assert found.get("z") == 3

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"shape": (3, 5)}, r"shape \(3, 5\) cannot have 48 bytes"),
            ({"shape": (3, 4), "size": 44}, "cannot have 44 bytes"),
            ({"shape": (1 << 30, 1 << 40)}, "too large"),
            ({"shape": (0, 1 << 62)}, "too large"),
            ({"shape": (-3, -4)}, "negative"),
            ({"shape": (1,) * 65}, "over 64 dimensions"),
            ({"shape": (1 << 20,), "size": 1 << 22}, "it ends"),
            ({"shape": (3, 4), "offset": 1}, "it ends"),
            ({"shape": (3, 4), "offset": -1}, "at byte -1"),
            ({"shape": (3, 4), "offset": (1 << 63) - 1}, "it ends"),
            ({"shape": (3, 4), "shard": 1}, "of file 1 of 1"),
            ({"shape": (3, 4), "shard": -1}, "of file -1 of 1"),
            ({"shape": (3, 4), "crc": 1}, "checksum of tensor 't'"),
            ({"shape": (48,), "kind": 10}, "neither true nor false"),
            ({"shape": (45,), "kind": TEXT}, "cannot have 48 bytes"),
            ({"shape": (4,), "kind": TEXT}, "the strings of tensor 't' have 0 bytes, not 40"),
        ],
    )
    def test_of_an_entry_behind_right_checksums_is_found(self, tmp_path, fields, problem):
        data = MATRIX.tobytes()
        with pytest.raises(DamagedCheckpointError, match=rf": byte \d+: .*{problem}"):
            everything(bundle(tmp_path, {"t": entry(data=data, **fields)}, data))

    def test_of_a_dtype_that_is_not_supported_is_said_when_it_is_needed(self, tmp_path):
        found = Bundle(bundle(tmp_path, {"t": entry((1,), b"a", kind=21)}, b"a"))
        assert (found.names(), found.shape("t")) == (["t"], (1,))
        for ask in (found.dtype, found.get):
            with pytest.raises(CheckpointError, match="TensorFlow's dtype number 21, which is not supported"):
                ask("t")

    @pytest.mark.parametrize(
        ("data", "crc", "problem"),
        [
            (b"\1\1\0\0\0\0ab", None, "checksum of the lengths"),
            (b"\1\2\0\0\0\0ab", None, "the strings of tensor 't' have 3 bytes, not 2"),
            (b"\1" + b"\xff" * 7, None, "the length of a string of tensor 't' is cut off"),
            (b"\xff" * 10, None, "more than 64 bits"),
            (
                b"\1\1" + struct.pack("<I", masked(crc32c(struct.pack("<II", 1, 1)))) + b"ab",
                1,
                "of tensor 't'",
            ),
        ],
    )
    def test_of_strings_is_found(self, tmp_path, data, crc, problem):
        entries = {"t": entry((2,), data, kind=TEXT, crc=crc)}
        with pytest.raises(DamagedCheckpointError, match=rf"00001: byte \d+: .*({problem})"):
            everything(bundle(tmp_path, entries, data))

    def test_of_tensors_that_share_bytes_is_found(self, tmp_path):
        data = MATRIX.tobytes()
        entries = {"a": entry((3, 4), data), "b": entry((1,), data[44:], 44)}
        with pytest.raises(
            DamagedCheckpointError, match=r"index: byte \d+: two tensors share byte 44 of file 0"
        ):
            Bundle(bundle(tmp_path, entries, data))

    @pytest.mark.parametrize(
        ("header", "problem"),
        [
            (head(shards=0), "cannot have 0 files"),
            (head(shards=-1), "cannot have -1 files"),
            (head(endianness=2), "no byte order of number 2"),
            (b"\xff", "the header of the bundle cannot be decoded"),
        ],
    )
    def test_of_the_header_is_found(self, tmp_path, header, problem):
        with pytest.raises(DamagedCheckpointError, match=f"index: byte 0: .*{problem}"):
            Bundle(bundle(tmp_path, {}, header=header))

    def test_of_a_missing_header_an_entry_or_a_name_is_found(self, tmp_path):
        write_table(tmp_path / "b.index", [])
        with pytest.raises(DamagedCheckpointError, match="the header of the bundle is missing"):
            Bundle(tmp_path / "b")
        write_table(tmp_path / "b.index", [(b"t", entry((), b""))])
        with pytest.raises(DamagedCheckpointError, match="the header of the bundle is missing"):
            Bundle(tmp_path / "b")
        with pytest.raises(DamagedCheckpointError, match=r"byte 9: the entry of 't' cannot be decoded"):
            Bundle(bundle(tmp_path, {"t": b"\xff"}))
        with pytest.raises(DamagedCheckpointError, match=r"the name b'\\xff' of a tensor is not UTF-8"):
            Bundle(bundle(tmp_path, {b"\xff": entry((), b"")}))

    def test_is_not_what_a_newer_format_is(self, tmp_path):
        newer = BundleHeaderProto(num_shards=1)
        newer.version.min_consumer = 2
        with pytest.raises(CheckpointError, match=r"needs a reader of version 2 .*: update foveal") as caught:
            Bundle(bundle(tmp_path, {}, header=newer.SerializeToString()))
        assert not isinstance(caught.value, DamagedCheckpointError)

    def test_of_any_kind_behind_right_checksums_ends_in_a_named_error(self, tmp_path):
        draw = random.Random(7)
        prefix = sliced(tmp_path, [(((0, 1), (0, ALL)), MATRIX[:1]), (((1, 2), (0, 4)), MATRIX[1:])], (3, 4))
        entries = dict(Table(f"{prefix}.index"))
        assert same(Bundle(prefix).get("t"), MATRIX)
        for _ in range(1000):
            changed = dict(entries)
            key = draw.choice(list(entries))
            value = bytearray(entries[key])
            value[draw.randrange(len(value))] = draw.choice([0, 1, 2, 8, 127, 128, 255])
            changed[key] = bytes(value)
            write_table_quickly(tmp_path / "b.index", changed)
            try:
                found = everything(prefix)
            except CheckpointError as error:
                assert "\n" not in str(error)  # noqa: PT017  # some changes are of no consequence
            else:
                assert all(each.size <= 12 for each in found.values())


def write_table_quickly(path, entries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foveal.tensorflow.table_writer.write_atomically", Path.write_bytes)
        write_table(path, sorted(entries.items()))


class TestWriting:
    def test_of_every_dtype_and_shape_is_read_again(self, tmp_path):
        tensors = samples()
        write_bundle(tmp_path / "folder" / "b", tensors)
        found = everything(tmp_path / "folder" / "b")
        assert found.keys() == tensors.keys()
        assert all(same(found[name], tensors[name]) for name in tensors)
        assert sorted(each.name for each in (tmp_path / "folder").iterdir()) == [
            "b.data-00000-of-00001",
            "b.index",
        ]

    def test_takes_numbers_lists_and_arrays_of_any_order(self, tmp_path):
        write_bundle(
            tmp_path / "b",
            {"n": 3, "l": [[1.5]], "t": MATRIX.T, "b": MATRIX.astype(">f4")},
        )
        found = everything(tmp_path / "b")
        assert same(found["t"], MATRIX.T)
        assert same(found["b"], MATRIX)
        assert (found["n"].dtype, found["n"], found["l"].tolist()) == (np.int64, 3, [[1.5]])

    def test_of_nothing_is_read_again(self, tmp_path):
        write_bundle(tmp_path / "b", {})
        assert Bundle(str(tmp_path / "b")).names() == []

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("", 1, "cannot be named ''"),
            ("\0a", 1, "cannot be named"),
            ("\udc80", 1, "cannot be named"),
            ("t", np.array(["a"]), "no dtype <U1: give strings as an array of objects"),
            ("t", np.array([b"a"]), r"no dtype \|S1: give strings as an array of objects"),
            ("t", np.array(["a"], object), "its objects are not all bytes"),
            ("t", np.zeros(1, "M8[s]"), "TensorFlow has no dtype"),
        ],
    )
    def test_of_what_cannot_be_stored_changes_nothing(self, tmp_path, name, value, problem):
        write_bundle(tmp_path / "b", {"t": MATRIX})
        with pytest.raises(CheckpointError, match=problem):
            write_bundle(tmp_path / "b", {"m": MATRIX, name: value})
        assert same(everything(tmp_path / "b")["t"], MATRIX)

    def test_that_fails_leaves_the_old_checkpoint_or_none(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        write_bundle(tmp_path / "b", {"t": MATRIX})
        with monkeypatch.context() as patch:
            patch.setattr(bundle_writer, "_write", full)
            with pytest.raises(OSError, match="No space"):
                write_bundle(tmp_path / "b", {"t": MATRIX + 1})
        assert same(everything(tmp_path / "b")["t"], MATRIX)
        assert len(list(tmp_path.iterdir())) == 2
        monkeypatch.setattr(bundle_writer, "write_table", full)
        with pytest.raises(OSError, match="No space"):
            write_bundle(tmp_path / "b", {"t": MATRIX + 1})
        with pytest.raises(CheckpointError, match="No such file"):
            Bundle(tmp_path / "b")

    def test_is_loaded_by_tensorflow_in_the_same_process(self, tmp_path):
        tensorflow = pytest.importorskip("tensorflow")
        tensors = samples()
        write_bundle(tmp_path / "b", tensors)
        reader = tensorflow.train.load_checkpoint(str(tmp_path / "b"))
        assert reader.get_variable_to_shape_map() == {
            name: list(value.shape) for name, value in tensors.items()
        }
        for name, value in tensors.items():
            assert np.asarray(reader.get_tensor(name)).tolist() == value.tolist(), name
        assert everything(tmp_path / "b").keys() == tensors.keys()
