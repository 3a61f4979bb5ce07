from __future__ import annotations

import gc
import gzip
import os
import struct
import tempfile
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import DataError, UsageError
from foveal.tensorflow import record_writer, records
from foveal.tensorflow.record_writer import RecordWriter
from foveal.tensorflow.records import (
    RecordChecksumError,
    RecordError,
    RecordFile,
    RecordLimitError,
    TruncatedRecordError,
    UnpackingError,
    frame,
    index_records,
    masked_crc,
    read_records,
)

THREE = [b"hello", b"", b"0123456789" * 2]  # stand at the bytes 0, 21 and 37 of 73
PACK = {None: bytes, "gzip": gzip.compress, "zlib": zlib.compress}
# sequence.tfrecord, as TensorFlow 2.15.1 wrote it
GOLDEN = bytes.fromhex(
    "3900000000000000 8b0737f1 0a110a0f0a066c656e67746812051a030a01031224 0a220a06746f6b656e7312180a061a04"
    "0a0200000a061a040a0201010a061a040a020204 283d554c"
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "three.tfrecord"
    path.write_bytes(b"".join(map(frame, THREE)))
    return path


def datas(path, **options):
    return [record.data for record in read_records(path, **options)]


def random_access(path):
    with RecordFile(path) as file:
        return file.read(range(len(file)))


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def header(length):
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


class TestWhatTensorFlowWrote:
    @pytest.mark.parametrize("name", ["examples.tfrecord", "examples.tfrecord.gz", "examples.tfrecord.zlib"])
    def test_is_recognised_and_read(self, fixtures, name):
        found = list(read_records(fixtures / name))
        assert [record.number for record in found] == list(range(57))
        assert b"".join(frame(each.data) for each in found) == (fixtures / "examples.tfrecord").read_bytes()

    def test_is_read_at_random(self, fixtures):
        expected = datas(fixtures / "examples.tfrecord")
        with RecordFile(fixtures / "examples.tfrecord") as file:
            assert file.read([56, 0, 20, 20]) == [expected[each] for each in (56, 0, 20, 20)]

    @pytest.mark.parametrize("read", [datas, random_access])
    def test_with_a_flipped_bit_names_the_record(self, fixtures, read):
        path = fixtures / "examples_flipped_record_20.tfrecord"
        with pytest.raises(RecordChecksumError, match=r"record 20, at byte \d+: .*data") as caught:
            read(path)
        assert (caught.value.path, caught.value.record) == (path, 20)

    def test_is_given_out_up_to_the_flipped_bit_and_read_around_it(self, fixtures):
        path, whole = fixtures / "examples_flipped_record_20.tfrecord", fixtures / "examples.tfrecord"
        stream = read_records(path)
        assert [next(stream).data for _ in range(20)] == datas(whole)[:20]
        with RecordFile(path) as file:
            assert file.read([19, 21]) == [datas(whole)[each] for each in (19, 21)]

    @pytest.mark.parametrize("read", [datas, random_access, index_records])
    def test_and_was_cut_off_names_the_record(self, fixtures, read):
        with pytest.raises(TruncatedRecordError, match=r"record 20, at byte \d+: cut off") as caught:
            read(fixtures / "examples_truncated_in_record_20.tfrecord")
        assert caught.value.record == 20

    def test_is_what_these_bytes_are(self, tmp_path):
        (tmp_path / "golden").write_bytes(GOLDEN)
        assert datas(tmp_path / "golden") == [GOLDEN[12:-4]]
        assert frame(GOLDEN[12:-4]) == GOLDEN


class TestReading:
    @pytest.mark.parametrize("compression", PACK)
    @pytest.mark.parametrize("named", [True, False])
    def test_gives_every_record_with_its_place(self, tmp_path, path, compression, named):
        packed = tmp_path / "packed"
        packed.write_bytes(PACK[compression](path.read_bytes()))
        found = list(read_records(packed, compression=compression if named else "auto"))
        assert found == [(THREE[0], 0, 0), (THREE[1], 1, 21), (THREE[2], 2, 37)]

    @pytest.mark.parametrize("compression", PACK)
    def test_of_a_file_without_records_gives_none(self, tmp_path, compression):
        (tmp_path / "empty").write_bytes(PACK[compression](b""))
        assert datas(tmp_path / "empty") == []

    def test_of_gzip_members_after_each_other_gives_the_records_of_all(self, tmp_path):
        (tmp_path / "two.gz").write_bytes(gzip.compress(frame(b"a")) + gzip.compress(frame(b"b")))
        assert datas(tmp_path / "two.gz") == [b"a", b"b"]

    @pytest.mark.parametrize("length", [0x8B1F, 0x9C78])
    def test_takes_no_length_for_the_mark_of_a_compression(self, tmp_path, length):
        (tmp_path / "plain").write_bytes(frame(bytes(length)))
        assert datas(tmp_path / "plain") == [bytes(length)]

    @pytest.mark.parametrize("compression", PACK)
    def test_of_records_longer_than_any_buffer(self, tmp_path, compression, monkeypatch):
        monkeypatch.setattr(records, "_PIECE", 1 << 17)
        long = [np.random.default_rng(each).bytes(300_000) for each in range(2)]
        with RecordWriter(tmp_path / "long", compression) as writer:
            for data in long:
                writer.write(data)
        assert datas(tmp_path / "long") == long

    def test_of_a_pipe(self, tmp_path, path):
        os.mkfifo(tmp_path / "pipe")
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit((tmp_path / "pipe").write_bytes, path.read_bytes())
            assert datas(tmp_path / "pipe") == THREE
            written.result()

    def test_that_stops_early_closes_the_file(self, path):
        before = open_files()
        stream = read_records(path)
        next(stream)
        assert open_files() == before + 1
        stream.close()
        assert open_files() == before

    @pytest.mark.parametrize("read", [datas, random_access, index_records])
    def test_of_no_file_and_of_a_folder_says_so(self, tmp_path, read):
        with pytest.raises(DataError, match=r"missing: cannot be opened: No such file"):
            read(tmp_path / "missing")
        with pytest.raises(DataError, match="Is a directory"):
            read(tmp_path)

    def test_refuses_a_compression_it_does_not_know(self, path):
        with pytest.raises(UsageError, match="'bz2'"):
            datas(path, compression="bz2")


class TestDamage:
    @pytest.mark.parametrize("read", [datas, random_access])
    @pytest.mark.parametrize(
        ("size", "record", "where"),
        [
            (5, 0, "in its header, after 5 of 12 bytes"),
            (14, 0, "in its data: 5 bytes, of which there are 2"),
            (17, 0, "in its footer, after 0 of 4 bytes"),
            (36, 1, "in its footer, after 3 of 4 bytes"),
            (40, 2, "in its header, after 3 of 12 bytes"),
        ],
    )
    def test_by_cutting_off_is_said_precisely(self, path, read, size, record, where):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(TruncatedRecordError) as caught:
            read(path)
        offset = (0, 21, 37)[record]
        assert str(caught.value) == f"{path} record {record}, at byte {offset}: cut off {where}"
        assert (caught.value.record, caught.value.offset) == (record, offset)

    @pytest.mark.parametrize(("byte", "what"), [(40, "length"), (46, "length"), (50, "data"), (70, "data")])
    @pytest.mark.parametrize("read", [datas, random_access])
    def test_of_length_and_data_and_of_their_checksums_is_told_apart(self, path, read, byte, what):
        content = bytearray(path.read_bytes())
        content[byte] ^= 4
        path.write_bytes(content)
        with pytest.raises(
            RecordChecksumError, match=rf"record 2, at byte 37: the checksum of its {what} is"
        ):
            read(path)

    @pytest.mark.parametrize("read", [datas, random_access])
    def test_by_cutting_off_at_any_byte_is_found(self, path, read):
        content = path.read_bytes()
        for size in range(len(content)):
            path.write_bytes(content[:size])
            if size in (0, 21, 37):  # the ends of records: such a file is whole
                assert read(path) == THREE[: (0, 21, 37).index(size)]
            else:
                with pytest.raises(TruncatedRecordError):
                    read(path)

    @pytest.mark.parametrize("compression", [None, "auto", "random access"])
    def test_of_any_single_bit_is_found(self, path, compression):
        content = path.read_bytes()
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(RecordError):
                random_access(path) if compression == "random access" else datas(
                    path, compression=compression
                )

    @pytest.mark.parametrize("compression", ["gzip", "zlib"])
    def test_by_cutting_off_a_compressed_file_at_any_byte_is_found(self, tmp_path, path, compression):
        packed = PACK[compression](path.read_bytes())
        for size in range(len(packed)):
            (tmp_path / "packed").write_bytes(packed[:size])
            with pytest.raises(UnpackingError, match=r"record \d, at byte \d+: .*cut off"):
                datas(tmp_path / "packed", compression=compression)

    @pytest.mark.parametrize("compression", ["gzip", "zlib"])
    def test_of_any_bit_of_a_compressed_file_is_found_or_changes_nothing(self, tmp_path, path, compression):
        packed, found = PACK[compression](path.read_bytes()), 0
        for bit in range(8 * len(packed)):
            flipped = bytearray(packed)
            flipped[bit // 8] ^= 1 << bit % 8
            (tmp_path / "packed").write_bytes(flipped)
            try:
                assert datas(tmp_path / "packed") == THREE
            except RecordError:
                found += 1
        assert found > 0.8 * 8 * len(packed)  # gzip's header has a time and a system that nothing depends on

    @pytest.mark.parametrize(
        ("compression", "more"), [("gzip", b"more"), ("zlib", b"more"), ("zlib", zlib.compress(frame(b"x")))]
    )
    def test_by_bytes_after_the_end_is_found(self, tmp_path, path, compression, more):
        (tmp_path / "packed").write_bytes(PACK[compression](path.read_bytes()) + more)
        with pytest.raises(UnpackingError, match="record 3, at byte 73: cannot be unpacked"):
            datas(tmp_path / "packed")

    @pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40])
    @pytest.mark.parametrize("compression", PACK)
    def test_by_a_huge_length_takes_no_memory(self, tmp_path, compression, length):
        (tmp_path / "huge").write_bytes(PACK[compression](frame(b"good") + header(length) + b"abc"))
        wrong = RecordLimitError if compression else TruncatedRecordError
        tracemalloc.start()
        try:
            with pytest.raises(wrong, match=rf"record 1, at byte 20: .*{length} bytes"):
                datas(tmp_path / "huge")
            with pytest.raises(RecordError):
                index_records(tmp_path / "huge")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_by_a_length_below_the_limit_takes_no_more_memory_than_there_are_data(self, tmp_path):
        (tmp_path / "lie.gz").write_bytes(gzip.compress(header(1 << 29) + b"abc"))
        tracemalloc.start()
        try:
            with pytest.raises(TruncatedRecordError, match="of which there are 3"):
                datas(tmp_path / "lie.gz")
            assert tracemalloc.get_traced_memory()[1] < 40 << 20
        finally:
            tracemalloc.stop()

    def test_limit_is_the_callers(self, tmp_path, path):
        (tmp_path / "packed").write_bytes(gzip.compress(path.read_bytes()))
        assert datas(tmp_path / "packed", limit=20) == THREE
        with pytest.raises(
            RecordLimitError, match="record 2, at byte 37: claims 20 bytes, more than the limit of 19"
        ):
            datas(tmp_path / "packed", limit=19)


class TestIndex:
    def test_has_the_place_of_each_header_and_the_length_of_each_data(self, path):
        index = index_records(path)
        assert index.dtype == np.int64
        assert index.tolist() == [[0, 5], [21, 0], [37, 20]]

    def test_of_an_empty_file_is_empty(self, tmp_path):
        (tmp_path / "empty").touch()
        assert index_records(tmp_path / "empty").shape == (0, 2)
        assert random_access(tmp_path / "empty") == []

    def test_is_the_same_whatever_the_lengths(self, tmp_path):
        lengths = np.random.default_rng(0).choice([0, 1, 100, 4068, 4080, 4084, 4096, 9000], 300).tolist()
        lengths[0] = 4096 - 11 - 16  # 11 bytes of the next header are in the first page
        with RecordWriter(tmp_path / "many") as writer:
            for length in lengths:
                writer.write(bytes(length))
        index = index_records(tmp_path / "many")
        assert index[:, 1].tolist() == lengths
        assert index[:, 0].tolist() == [record.offset for record in read_records(tmp_path / "many")]

    @pytest.mark.parametrize("compression", ["gzip", "zlib"])
    def test_of_a_compressed_file_is_refused_with_a_reason(self, tmp_path, path, compression):
        (tmp_path / "packed").write_bytes(PACK[compression](path.read_bytes()))
        for read in (index_records, random_access):
            with pytest.raises(RecordError, match="compressed: unpack it"):
                read(tmp_path / "packed")


@pytest.mark.parametrize("hold", [0, 1 << 20], ids=["on disk", "in memory"])
class TestRandomAccess:
    def test_gives_what_is_asked_for_in_that_order(self, path, hold):
        with RecordFile(path, hold=hold) as file:
            assert len(file) == 3
            assert file.read([2, 0, 0]) == [THREE[2], THREE[0], THREE[0]]
            assert file.read(np.array([1])) == [b""]
            assert file.read([]) == []

    def test_needs_no_index_where_one_is_given(self, path, hold, monkeypatch):
        index = index_records(path)
        monkeypatch.setattr(records, "_index", None)
        with RecordFile(path, index, hold) as file:
            assert file.read(range(3)) == THREE

    @pytest.mark.parametrize("index", [-1, 3])
    def test_refuses_records_that_are_not_there(self, path, hold, index):
        with RecordFile(path, hold=hold) as file, pytest.raises(IndexError, match="has the records 0 to 2"):
            file.read([0, index])

    @pytest.mark.parametrize("index", [[[0, 5], [37, 21]], [[-1, 5]], [[0, -20]], [[1 << 62, 5]]])
    def test_refuses_an_index_that_the_file_is_too_short_for(self, path, hold, index):
        with pytest.raises(DataError, match="changed since it was indexed"):
            RecordFile(path, np.array(index), hold)

    def test_finds_that_it_is_another_file_than_was_indexed(self, path, hold):
        index = index_records(path)
        path.write_bytes(b"".join(map(frame, reversed(THREE))))
        with RecordFile(path, index, hold) as file, pytest.raises(RecordError, match="file changed since"):
            file.read([0])

    def test_works_in_many_threads_at_once(self, tmp_path, hold):
        expected = [np.random.default_rng(each).bytes(each) for each in range(200)]
        with RecordWriter(tmp_path / "many") as writer:
            for data in expected:
                writer.write(data)
        with RecordFile(tmp_path / "many", hold=hold) as file, ThreadPoolExecutor(4) as pool:
            orders = [np.random.default_rng(each).permutation(200) for each in range(16)]
            for order, found in zip(orders, pool.map(file.read, orders), strict=True):
                assert found == [expected[each] for each in order]

    def test_closes_the_file_when_it_is_dropped(self, path, hold):
        before = open_files()
        file = RecordFile(path, hold=hold)
        assert open_files() == before + (hold == 0)
        del file
        gc.collect()
        assert open_files() == before

    def test_refuses_to_read_what_is_closed(self, path, hold):
        file = RecordFile(path, hold=hold)
        file.close()
        file.close()
        with pytest.raises(ValueError, match="is closed"):
            file.read([0])


class TestRandomAccessToAFileThatChanges:
    def test_names_the_record_that_is_cut_off(self, path):
        with RecordFile(path, hold=0) as file:
            os.truncate(path, 60)
            assert file.read([0]) == [THREE[0]]
            with pytest.raises(TruncatedRecordError, match="record 2, at byte 37: cut off in its data"):
                file.read([2])

    def test_is_not_deceived_by_a_checksum_inside_the_data(self, path):
        inside = frame(b"abc")[12:]
        path.write_bytes(frame(inside + b"more"))
        with RecordFile(path, hold=0) as file:
            os.truncate(path, 12 + len(inside))
            with pytest.raises(TruncatedRecordError, match="11 bytes, of which there are 7"):
                file.read([0])

    def test_verifies_the_lengths_again(self, path):
        with RecordFile(path, hold=0) as file:
            with path.open("r+b") as writable:
                writable.seek(37 + 9)
                writable.write(b"?")
            with pytest.raises(RecordChecksumError, match="record 2, at byte 37: the checksum of its length"):
                file.read([2])


class TestWriting:
    @pytest.mark.parametrize("compression", PACK)
    def test_gives_the_bytes_of_the_format(self, tmp_path, compression):
        with RecordWriter(tmp_path / "new" / "file", compression) as writer:
            for data in THREE:
                writer.write(data)
        written = (tmp_path / "new" / "file").read_bytes()
        unpacked = {None: bytes, "gzip": gzip.decompress, "zlib": zlib.decompress}[compression](written)
        assert unpacked == b"".join(map(frame, THREE))

    def test_twice_gives_the_same_compressed_bytes(self, tmp_path):
        for name in "ab":
            with RecordWriter(tmp_path / name, "gzip") as writer:
                writer.write(b"data")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize("compression", PACK)
    @given(content=st.lists(st.binary(max_size=300), max_size=8))
    @settings(max_examples=40, deadline=None)
    def test_and_reading_give_back_the_same(self, compression, content):
        with tempfile.TemporaryDirectory() as folder:
            with RecordWriter(Path(folder) / "file", compression) as writer:
                for data in content:
                    writer.write(data)
            assert datas(Path(folder) / "file") == content
            if compression is None:
                assert random_access(Path(folder) / "file") == content

    def test_shows_nothing_under_the_name_before_the_end(self, tmp_path, monkeypatch):
        path, synced = tmp_path / "file", []
        monkeypatch.setattr(record_writer, "sync_folder", synced.append)
        with RecordWriter(path) as writer:
            writer.write(b"data")
            assert not path.exists()
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
        assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()
        assert synced == [tmp_path]  # else the name may be lost with the power

    @pytest.mark.parametrize("old", [None, b"old"])
    def test_that_fails_leaves_what_there_was(self, tmp_path, old):
        path = tmp_path / "file"
        if old is not None:
            path.write_bytes(old)

        def fail():
            with RecordWriter(path) as writer:
                writer.write(b"data")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])

    def test_to_a_full_disk_leaves_what_there_was(self, tmp_path, monkeypatch):
        def full(_descriptor):
            raise OSError(28, "No space left on device")

        (tmp_path / "file").write_bytes(b"old")
        writer = RecordWriter(tmp_path / "file")
        writer.write(b"data")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            writer.close()
        assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]

    def test_more_after_a_failure_is_refused(self, tmp_path):
        writer = RecordWriter(tmp_path / "file")
        with pytest.raises(TypeError):
            writer.write("text")
        writer._file.close()
        with pytest.raises(ValueError, match="closed file"):
            writer.write(b"data")
        with pytest.raises(ValueError, match="failed before"):
            writer.write(b"data")
        assert list(tmp_path.iterdir()) == []

    def test_more_after_the_end_is_refused(self, tmp_path):
        writer = RecordWriter(tmp_path / "file")
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="is closed"):
            writer.write(b"data")
        assert datas(tmp_path / "file") == []

    def test_that_is_abandoned_leaves_nothing(self, tmp_path):
        writer = RecordWriter(tmp_path / "file")
        writer.write(b"data")
        del writer
        gc.collect()
        assert list(tmp_path.iterdir()) == []


def _mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
