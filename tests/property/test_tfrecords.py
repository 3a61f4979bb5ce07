from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import DataError
from foveal.tensorflow import example, records
from foveal.tensorflow.example import FixedLength, Ragged, VariableLength, build_example, parse_batch
from foveal.tensorflow.example_scan import parse
from foveal.tensorflow.record_scan import masked_crc
from foveal.tensorflow.records import RecordBlock, RecordChecksumError, RecordFile, frame, read_blocks

NAMES = ("a", "b", "image/encoded", "größe", "")
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(width=32, allow_nan=False)
values = st.one_of(
    st.lists(st.binary(max_size=4), max_size=4).map(lambda each: np.array([*each, None], object)[:-1]),
    st.lists(INT64, max_size=4).map(lambda each: np.array(each, np.int64)),
    st.lists(FLOAT, max_size=4).map(lambda each: np.array(each, np.float32)),
)
examples = st.dictionaries(st.sampled_from(NAMES), values, max_size=4).map(build_example)
DEFAULTS = {bytes: (None, b"x\0"), np.float32: (None, 0.5), np.int64: (None, -1)}
dtypes = st.sampled_from([bytes, np.float32, np.int64])
wanted = dtypes.flatmap(
    lambda dtype: st.one_of(
        st.just(VariableLength(dtype)),
        st.builds(
            FixedLength,
            st.sampled_from([(), (0,), (1,), (2,), (2, 2)]),
            st.just(dtype),
            st.sampled_from(DEFAULTS[dtype]),
        ),
    )
)
specifications = st.dictionaries(st.sampled_from(NAMES), wanted, max_size=3)


def key(position):
    return f"record {position}"


def by_library(some, specification):
    decoded = example._decode(example.Example, some, key)
    return example._columns([each.features.feature for each in decoded], specification, key)


def outcome(function, *arguments):
    """The columns, as plain values with their types; or the error."""
    try:
        columns = function(*arguments)
    except DataError as error:
        return type(error), str(error)
    return {name: plain(column) for name, column in columns.items()}


def plain(column):
    if isinstance(column, Ragged):
        return plain(column.values), plain(column.row_splits)
    # the bytes of numbers: NaN is equal to itself, and -0 is not 0
    content = column.tolist() if column.dtype == object else column.tobytes()
    return column.dtype, column.shape, content


def varint(number, longer=0):
    """A varint, with so many bytes more than it needs."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number | 128, *[128] * (longer - 1), 0]) if longer else bytes([*out, number])


def field(tag, content):
    return varint(tag) + varint(len(content)) + content


# Messages as nobody writes them, and everybody has to read: fields twice, in any order, and unknown ones.
longer = st.sampled_from([0, 0, 0, 1, 2, 9])
unknown = st.sampled_from(
    [b"\x20\x05", b"\x2a\x01x", b"\x25abcd", b"\x39abcdefgh", b"\x23\x24", b"\x0b\x0c", b""]
)
integers = st.builds(varint, st.integers(0, 2**64 - 1), longer)
lists = {
    0x0A: st.one_of(st.binary(max_size=3).map(lambda each: field(0x0A, each)), unknown),
    0x12: st.one_of(
        st.binary(min_size=4, max_size=4).map(lambda each: b"\x0d" + each),
        st.binary(max_size=9).map(lambda each: field(0x0A, each)),
        unknown,
    ),
    0x1A: st.one_of(
        integers.map(lambda each: b"\x08" + each),
        st.lists(integers, max_size=3).map(lambda each: field(0x0A, b"".join(each))),
        unknown,
    ),
}
kinds = st.sampled_from([*lists])
a_list = kinds.flatmap(
    lambda tag: st.lists(lists[tag], max_size=3).map(lambda each: field(tag, b"".join(each)))
)
features = st.lists(st.one_of(a_list, a_list, unknown), max_size=2).map(b"".join)
names = st.one_of(
    st.sampled_from(NAMES).map(str.encode),
    st.sampled_from([b"\xff", b"\xc0\x80", "é".encode(), b"\xed\xa0\x80"]),
)
entries = st.lists(
    st.one_of(
        names.map(lambda each: field(0x0A, each)), features.map(lambda each: field(0x12, each)), unknown
    ),
    max_size=3,
).map(b"".join)
usual = st.tuples(names, features).map(lambda each: field(0x0A, each[0]) + field(0x12, each[1]))
maps = st.lists(st.one_of(usual, usual, entries).map(lambda each: field(0x0A, each)), max_size=3).map(
    b"".join
)
odd = st.lists(st.one_of(maps.map(lambda each: field(0x0A, each)), unknown), max_size=2).map(b"".join)


class TestTheScannerAndTheLibraryAgree:
    @given(st.lists(examples, min_size=1, max_size=4), specifications)
    @settings(max_examples=100, deadline=None)
    def test_on_what_the_library_builds(self, some, specification):
        assert outcome(parse_batch, some, specification, key) == outcome(by_library, some, specification)

    @given(st.lists(odd, min_size=1, max_size=2), specifications)
    @settings(max_examples=200, deadline=None)
    def test_on_messages_that_nobody_builds(self, some, specification):
        assert outcome(parse_batch, some, specification, key) == outcome(by_library, some, specification)

    @given(examples.filter(bool), specifications, st.data())
    @settings(max_examples=200, deadline=None)
    def test_on_damaged_messages(self, record, specification, data):
        damaged = bytearray(record)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
            damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        some = [record, bytes(damaged)]
        assert outcome(parse_batch, some, specification, key) == outcome(by_library, some, specification)

    @given(examples)
    @settings(max_examples=30, deadline=None)
    def test_on_messages_that_are_cut_off(self, record):
        specification = {"a": VariableLength(np.int64), "b": VariableLength(bytes)}
        for length in range(len(record)):
            some = [record[:length]]
            assert outcome(parse_batch, some, specification, key) == outcome(by_library, some, specification)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values))
@settings(max_examples=30, deadline=None)
def test_the_scanner_does_not_give_up_on_what_is_usual(features):
    dtypes = {"O": bytes, "i": np.int64, "f": np.float32}
    specification = {name: VariableLength(dtypes[each.dtype.kind]) for name, each in features.items()}
    found = parse(RecordBlock.of([build_example(features)]), specification)
    assert {name: column[0].tolist() for name, column in found.items()} == {
        name: each.tolist() for name, each in features.items()
    }


@given(st.binary(max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_the_compiled_checksum_is_that_of_the_library(content, data):
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    assert masked_crc(np.frombuffer(content, np.uint8), start, stop) == records.masked_crc(
        content[start:stop]
    )


@pytest.fixture(scope="module", params=["compiled", "plain"])
def scanner(request):
    """With Numba, and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(records, "_scanner", lambda: (records._find, -1))
        patch.setattr(records, "_BLOCK", 64)
        patch.setattr(records, "_SHORT", 20)
        yield


@pytest.mark.usefixtures("scanner")
class TestBlocks:
    @given(st.lists(st.binary(max_size=50), max_size=8), st.data())
    @settings(max_examples=60, deadline=None)
    def test_hold_the_records_whatever_their_lengths(self, tmp_path_factory, some, data):
        path = tmp_path_factory.mktemp("records") / "file"
        path.write_bytes(b"".join(map(frame, some)))
        found = list(read_blocks(path))
        assert [each for block in found for each in block.records] == some
        assert [n for block in found for n in range(block.number, block.number + len(block.records))] == list(
            range(len(some))
        )
        with RecordFile(path) as file:
            assert [o for block in found for o in block.offsets.tolist()] == file.index[:, 0].tolist()
            order = data.draw(st.lists(st.integers(0, len(some) - 1), max_size=5)) if some else []
            assert list(file.read_block(order)) == [some[each] for each in order]

    def test_find_every_flipped_bit_and_keep_what_can_be_kept(self, tmp_path):
        some = [b"hello", b"", b"0123456789" * 4]
        content = b"".join(map(frame, some))
        for bit in range(len(content) * 8):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path = tmp_path / "file"
            path.write_bytes(damaged)
            record = sum(bit // 8 >= start for start in (21, 37))
            found = []
            with pytest.raises(records.RecordError) as caught:
                found.extend(read_blocks(path))
            assert caught.value.record == record
            assert [each for block in found for each in block.records] == some[:record]
            kept, start = [], (0, 21, 37)[record]
            if bit // 8 - start < 12:
                with pytest.raises(RecordChecksumError):
                    kept.extend(read_blocks(path, damaged="keep"))
                continue
            kept.extend(read_blocks(path, damaged="keep"))
            intact = [each for block in kept for each in block.intact.tolist()]
            assert intact == [number != record for number in range(3)]
