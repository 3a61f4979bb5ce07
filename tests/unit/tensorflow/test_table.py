from __future__ import annotations

import random
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.checkpoints.checksum import crc32c
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import MAGIC, PLAIN, SNAPPY, Table, varint
from foveal.tensorflow.table_writer import encode_varint, write_table

# the index of sharded/model.ckpt-5, as TensorFlow 2.15.1 wrote it: a data block, an empty one, the index
GOLDEN = (
    bytes.fromhex(
        "00000608021a020801"
        "0002137730080112081202080312020801280c35ab75380a"
        "010115310801120812020803120208021801281835d4d946f0"
        "01011532080112081202080312020803200c282435de952963"
        "0101173308011208120208031202080418012018283035b021ecb7"
        "00000000010000000008bff598"
        "000000000100000000c0f2a1b0"
        "000102780076000000000100000000feec09bb"
    )
    + bytes.fromhex("7b0888010e").ljust(40, b"\0")
    + bytes.fromhex("57fb808b247547db")
)
GOLDEN_KEYS = [b"", b"w0", b"w1", b"w2", b"w3"]


def entry(shared, key, value=b"", length=None):
    """One entry of a block, whatever it claims."""
    lengths = shared, len(key), len(value) if length is None else length
    return b"".join(map(encode_varint, lengths)) + key + value


def block(*entries, restarts=(0,)):
    return b"".join(entries) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def place(offset, content):
    return encode_varint(offset) + encode_varint(len(content))


def sealed(content, kind=PLAIN):
    """A block with its trailer."""
    return content + bytes([kind]) + struct.pack("<I", masked(crc32c(content + bytes([kind]))))


def table(path, *blocks, kind=PLAIN, handles=None):
    """A table file of some data blocks, with right checksums."""
    content, found = b"", []
    for each in blocks:
        found.append(place(len(content), each))
        content += sealed(each, kind)
    index = block(*(entry(0, bytes([number + 97]), each) for number, each in enumerate(handles or found)))
    metaindex = block()
    ends = place(len(content), metaindex) + place(len(content) + len(metaindex) + 5, index)
    content += sealed(metaindex) + sealed(index) + ends.ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    path.write_bytes(content)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table"


@pytest.fixture
def golden(path):
    path.write_bytes(GOLDEN)
    return path


def refused(path, offset, problem):
    with pytest.raises(DamagedCheckpointError) as caught:
        list(Table(path))
    assert str(caught.value).startswith(f"{path}: byte {offset}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


class TestWhatTensorFlowWrote:
    def test_is_what_these_bytes_are(self, golden):
        entries = dict(Table(golden))
        assert list(entries) == GOLDEN_KEYS
        assert entries[b""].hex() == "08021a020801"
        assert entries[b"w1"].hex() == "0801120812020803120208021801281835d4d946f0"

    def test_is_written_again_byte_for_byte(self, fixtures, path):
        files = sorted(fixtures.glob("*/*.index"))
        assert len(files) > 9
        for file in files:
            write_table(path, Table(file))
            assert path.read_bytes() == file.read_bytes(), file

    def test_of_many_blocks_is_read_in_order(self, fixtures):
        keys = [key for key, _ in Table(fixtures / "dtypes_v1" / "model.ckpt-300")]
        assert keys == sorted(keys)
        assert (len(keys), keys[0]) == (135, b"")


class TestReading:
    def test_gives_the_place_of_each_entry(self, golden):
        places = [(each.key, each.offset) for each in Table(golden).entries()]
        assert places[:3] == [(b"", 0), (b"w0", 9), (b"w1", 33)]

    def test_twice_gives_the_same(self, golden):
        table = Table(str(golden))
        assert list(table) == list(table)
        assert table.path == golden

    def test_of_no_entries(self, path):
        assert list(Table(table(path))) == []
        assert list(Table(table(path, block(restarts=())))) == []

    def test_of_several_blocks_and_restarts(self, path):
        first = block(entry(0, b"aa"), entry(1, b"b"), entry(0, b"ac"), restarts=(0, 9))
        second = block(entry(0, b"b" * 300, b"v" * 200))
        assert list(Table(table(path, first, second))) == [
            (b"aa", b""),
            (b"ab", b""),
            (b"ac", b""),
            (b"b" * 300, b"v" * 200),
        ]

    def test_of_a_missing_file_or_a_folder_is_a_named_error(self, tmp_path):
        with pytest.raises(CheckpointError, match="missing: No such file"):
            Table(tmp_path / "missing")
        with pytest.raises(DamagedCheckpointError):
            Table(tmp_path)


class TestSnappy:
    def test_is_unpacked(self, path):
        cramjam = pytest.importorskip("cramjam")
        content = block(entry(0, b"key", b"value" * 100), entry(1, b"z"))
        packed = bytes(cramjam.snappy.compress_raw(content))
        assert len(packed) < len(content)
        read = list(Table(table(path, packed, kind=SNAPPY)).entries())
        assert read == [(b"key", b"value" * 100, 0), (b"kz", b"", 0)]

    def test_is_refused_where_it_is_not_installed(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "cramjam", None)
        with pytest.raises(CheckpointError, match=r"byte 0: .*Snappy: pip install cramjam") as caught:
            list(Table(table(path, b"\0", kind=SNAPPY)))
        assert not isinstance(caught.value, DamagedCheckpointError)

    @pytest.mark.parametrize(
        ("packed", "problem"),
        [
            (b"\xff\xff\xff\xff\x0f", "5 bytes in Snappy cannot give the 4294967295"),
            (b"\xff\xff\xff\xff\x7f", "more than 32 bits"),
            (b"\xff", "cut off"),
            (b"\x0c\x04abc", "cannot be unpacked"),
            (b"\x08\x00a\xfe\x00\x00", "cannot be unpacked"),  # a copy from no distance
        ],
    )
    def test_that_is_damaged_or_claims_too_much_is_refused(self, path, packed, problem):
        pytest.importorskip("cramjam")
        refused(table(path, packed, kind=SNAPPY), 0, problem)


class TestDamage:
    def test_by_cutting_off_at_any_byte_is_found(self, golden):
        for size in range(len(GOLDEN)):
            golden.write_bytes(GOLDEN[:size])
            with pytest.raises(DamagedCheckpointError, match="byte"):
                list(Table(golden))

    def test_of_any_bit_is_found(self, golden):
        good, loaded = list(Table(golden)), []
        for at in range(8 * len(GOLDEN)):
            content = bytearray(GOLDEN)
            content[at // 8] ^= 1 << at % 8
            golden.write_bytes(content)
            try:
                assert list(Table(golden)) == good
                loaded.append(at)
            except DamagedCheckpointError as error:
                assert ": byte " in str(error)  # noqa: PT017  # one of the bits may be flipped
        assert loaded == [8 * 159 + 7]  # which makes 14 of two bytes: 8e 00

    def test_says_where(self, golden):
        golden.write_bytes(GOLDEN[:40] + b"!" + GOLDEN[41:])
        refused(golden, 0, "the checksum of a block is")
        golden.write_bytes(GOLDEN[:-1] + b"!")
        refused(golden, len(GOLDEN) - 8, "not the db4775248b80fb57 that ends a table file")
        golden.write_bytes(b"short")
        refused(golden, 5, "too short")

    def test_of_a_file_that_shrinks_while_it_is_read_is_found(self, golden):
        table = Table(golden)
        golden.write_bytes(GOLDEN[:50])
        with pytest.raises(DamagedCheckpointError, match="byte 50: the file ended while it was read"):
            list(table)

    @pytest.mark.parametrize(
        ("content", "offset", "problem"),
        [
            (block(entry(0, b"a", b"", length=9)), 0, "reach beyond its block"),
            (block(entry(0, b"a"), entry(2, b"b")), 4, "or its key"),
            (block(entry(1, b"a")), 0, "or its key"),
            (block(entry(0, b"b"), entry(0, b"a")), 4, "the key b'a' is not in order"),
            (block(entry(0, b"b"), entry(1, b"")), 4, "the key b'b' is not in order"),
            (block(entry(0, b"a"), restarts=(1,)), 4, "a restart of a block"),
            (block(entry(0, b"a"), restarts=()), 0, "cannot have 0 restarts"),
            (b"\0\0\0\0\xff\xff\xff\x7f", 0, "cannot have 2147483647 restarts"),
            (b"\1\0", 0, "a block of 2 bytes"),
            (block(b"\xff\xff\xff\xff\xff\x01\0"), 0, "more than 32 bits"),
            (block(b"\0\xff"), 0, "reach beyond its block"),
            (b"\x80\x80\x80" + block(), 0, "reach beyond its block"),
        ],
    )
    def test_behind_right_checksums_is_found(self, path, content, offset, problem):
        refused(table(path, content), offset, problem)

    def test_of_an_unknown_packing_is_found(self, path):
        refused(table(path, block(), kind=2), 8, "packed in an unknown way, number 2")

    @pytest.mark.parametrize(
        ("handles", "problem"),
        [
            ([b"\0\x08", b"\0\x08"], "overlaps another"),
            ([b"\0\x64"], "a block of 100 bytes at byte 0 reaches beyond byte 39"),
            ([b"\xff" * 9 + b"\x01\x08"], "reaches beyond"),
            ([b"\xff" * 10 + b"\x01\x08"], "the place of a block is an integer of more than 64 bits"),
            ([b"\0"], "the place of a block is cut off"),
            ([b"\0\x08\0"], "more than the place of a block"),
        ],
    )
    def test_of_the_index_is_found(self, path, handles, problem):
        with pytest.raises(DamagedCheckpointError, match=problem):
            Table(table(path, block(), block(), handles=handles))

    def test_of_keys_out_of_order_from_block_to_block_is_found(self, path):
        refused(table(path, block(entry(0, b"b")), block(entry(0, b"b"))), 17, "not in order")

    def test_that_would_unpack_to_much_memory_is_found_before(self, path):
        chain = (entry(30_000 + each, b"x") for each in range(10_000))  # of each key the whole one before
        table(path, entry(0, b"k" * 30_000) + b"".join(chain) + block())
        tracemalloc.start()
        with pytest.raises(DamagedCheckpointError, match="of keys"):
            list(Table(path))
        assert tracemalloc.get_traced_memory()[1] < 70 * path.stat().st_size
        tracemalloc.stop()

    def test_of_any_kind_behind_right_checksums_ends_in_a_named_error_or_in_order(self, path):
        draw = random.Random(5)
        whole = block(*(entry(0, b"%d" % each, bytes(each)) for each in range(10)))
        for _ in range(1500):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 3)):
                content[draw.randrange(len(content))] = draw.choice([0, 1, 4, 127, 128, 255])
            table(path, bytes(content[: draw.choice([None, draw.randrange(len(content))])]))
            try:
                keys = [key for key, _ in Table(path)]
            except DamagedCheckpointError:
                continue
            assert keys == sorted(set(keys))


class TestWriting:
    def test_gives_the_bytes_that_tensorflow_writes(self, golden, tmp_path):
        write_table(tmp_path / "again", Table(golden))
        assert (tmp_path / "again").read_bytes() == GOLDEN

    @given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=300), max_size=60))
    @settings(max_examples=60, deadline=None)
    def test_of_anything_is_read_again(self, tmp_path_factory, entries):
        path = tmp_path_factory.mktemp("table") / "table"
        write_table(path, sorted(entries.items()))
        assert list(Table(path)) == sorted(entries.items())

    def test_of_much_makes_several_blocks(self, path):
        entries = [(b"scope/%06d/weights" % each, bytes(100)) for each in range(6000)]
        write_table(path, entries)
        assert list(Table(path)) == entries
        sizes = [size for _, size in Table(path)._handles]
        assert len(sizes) == 3
        assert all(1 << 18 <= size < (1 << 18) + 200 for size in sizes[:-1])

    def test_of_keys_out_of_order_changes_nothing(self, golden):
        for keys in ([b"b", b"a"], [b"a", b"a"]):
            with pytest.raises(ValueError, match="does not come after"):
                write_table(golden, [(key, b"") for key in keys])
        assert golden.read_bytes() == GOLDEN

    @pytest.mark.parametrize("number", [0, 127, 128, 300, 2**32 - 1, 2**64 - 1])
    def test_of_integers_is_read_again(self, number):
        encoded = encode_varint(number)
        assert varint(encoded + b"\xff", 0) == (number, len(encoded))
