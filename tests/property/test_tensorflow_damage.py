"""TensorFlow's files damaged at random or made to lie: an error by name, or what was written.

What a checksum protects gives the original values or an error. Of a checkpoint that is all but the last 48
bytes of its tables, where a change is found or leads to no other tensors, and what follows the last tensor in
a data file. Of TFRecords it is each record, but not their number and order, nor the time and the name in
gzip's header. State files, name maps, and Examples outside of records have no checksum. What is read of
these, and of files whose checksums somebody made to fit other bytes, must be sound in itself.

FOVEAL_FUZZ_CASES sets how many damages each test tries, besides the files cut off: in all 10,500 by default;
210,000 with 5000, and then all files are cut off at every byte.
"""

from __future__ import annotations

import gzip
import itertools
import os
import random
import re
import resource
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tests.property import tensorflow_files as samples
from tests.property.damage import NAMES, ODD, case, damaged, lie, overwrite

from foveal.errors import CheckpointError, DamagedCheckpointError, DataError, UsageError
from foveal.tensorflow.bundle import Bundle
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.checkpoint import Checkpoint
from foveal.tensorflow.checkpoint_messages import BundleEntryProto, BundleHeaderProto, TensorShapeProto
from foveal.tensorflow.example import (
    FixedLength,
    VariableLength,
    parse_batch,
    parse_example,
    parse_sequence_batch,
)
from foveal.tensorflow.name_maps import read_name_map
from foveal.tensorflow.object_graph import GRAPH_KEY, TrackableObjectGraph
from foveal.tensorflow.records import RecordError, RecordFile, frame, masked_crc, read_blocks, read_records
from foveal.tensorflow.state_file import read_state
from foveal.tensorflow.table import Table
from foveal.tensorflow.table_writer import write_table
from foveal.tensorflow.v1_messages import SavedTensorSlices

CASES = int(os.environ.get("FOVEAL_FUZZ_CASES", "250"))
BUILT = {
    "plain": (samples.plain_bundle, samples.MANY),
    "packed": (samples.packed_bundle, samples.MANY),
    "sliced": (samples.sliced_bundle, samples.SLICED),
    "objects": (samples.objects_bundle, samples.OBJECTS),
    "v1": (samples.v1_checkpoint, samples.V1),
}
STORED = [
    "object_graph/ckpt-1",
    "object_graph_keras/ckpt",
    "partitioned/model.ckpt-7",
    "sharded/model.ckpt-5",
]
PACKINGS = {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}
STORED_RECORDS = ["examples.tfrecord", "examples.tfrecord.gz", "examples.tfrecord.zlib"]
FEATURES = {"a": VariableLength(np.int64), "b": FixedLength((2,), np.float32, 0.5)}
ADDRESSES = 1 << 29  # bytes that no case may reserve, whether it is measured or not
pytestmark = pytest.mark.usefixtures("few_addresses", "no_waiting")


class Sample(NamedTuple):
    """A checkpoint that is undamaged.

    Attributes:
        path: what it is opened by.
        files: their bytes.
        values: its tensors.
    """

    path: Path
    files: dict[Path, bytes]
    values: dict[str, np.ndarray]

    @property
    def size(self):
        return sum(map(len, self.files.values()))

    @property
    def tables(self):
        return [path for path in self.files if ".data-" not in path.name]


@pytest.fixture
def few_addresses():
    """Memory that a file only claims to need is not to be had: what asks for it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = [taken + ADDRESSES, *(each for each in (soft, hard) if each != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def no_waiting(monkeypatch):
    """No power cut is tried here: nothing is forced to the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=[*BUILT, *STORED])
def sample(request, tmp_path):
    return make_sample(request, tmp_path)


@pytest.fixture(params=["objects", "object_graph_keras/ckpt"])
def objects(request, tmp_path):
    return make_sample(request, tmp_path)


def make_sample(request, folder):
    """One of those built here, or a copy of one that TensorFlow wrote; it gives its values."""
    if request.param in BUILT:
        build, values = BUILT[request.param]
        path = build(folder)
    else:
        origin = request.getfixturevalue("fixtures") / request.param
        path, values = folder / origin.name, Checkpoint(origin).read(threads=2)
        for file in origin.parent.glob(f"{origin.name}.*"):
            (folder / file.name).write_bytes(file.read_bytes())
    stored = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    found = Checkpoint(path)
    assert sorted(found) == sorted(values)
    assert all(same(value, values[name]) for name, value in found.read(threads=2).items())
    return Sample(path, stored, values)


class TestCheckpoints:
    def test_cut_off_at_any_byte_are_damaged(self, sample):
        for path, content in sample.files.items():
            for size in range(len(content)):
                with case(size, sample.size):
                    overwrite(path, content[:size])
                    with pytest.raises(DamagedCheckpointError) as caught:
                        Checkpoint(sample.path).read(threads=1)
                    require_line(caught.value, path)
            overwrite(path, content)

    def test_without_one_of_their_files_are_refused(self, sample):
        for path, content in sample.files.items():
            path.unlink()
            with pytest.raises(CheckpointError) as caught:
                Checkpoint(sample.path).read(threads=1)
            require_line(caught.value, path.parent)
            path.write_bytes(content)

    def test_that_are_damaged_give_original_values_or_an_error(self, sample):
        for number in range(CASES):
            with case(number, sample.size) as draw:
                path, content = draw.choice([*sample.files.items()])
                overwrite(path, damaged(draw, content, [*sample.files.values()]))
                require_original_or_error(sample, DamagedCheckpointError)
                overwrite(path, content)

    def test_that_lie_with_right_checksums_of_blocks_are_refused_or_read(self, sample):
        read = 0
        for number in range(CASES):
            with case(number, sample.size) as draw:
                path = draw.choice(sample.tables)
                overwrite(path, resealed(draw, sample.files[path]))
                read += require_sound_or_error(sample)
                overwrite(path, sample.files[path])
        assert read or CASES < 100

    def test_that_lie_in_their_messages_are_refused_or_read(self, sample):
        read = 0
        for number in range(CASES):
            with case(number, 4 * sample.size) as draw:
                path = draw.choice(sample.tables)
                write_table(path, lying(draw, Table(path), v1="?" in sample.path.name))
                read += require_sound_or_error(sample)
                overwrite(path, sample.files[path])
        assert read or CASES < 100

    def test_that_lie_in_the_lengths_of_strings_are_refused_or_read(self, tmp_path):
        for number in range(CASES):
            with case(number, 500) as draw:
                likely = [0, 1, 3, 100] * 8
                lengths = [abs(draw.choice(likely + ODD)) for _ in range(draw.randrange(5))]
                size = sum(lengths) if sum(lengths) < 500 and draw.random() < 0.7 else draw.randrange(300)
                path = samples.strings_bundle(tmp_path, lengths, draw.randbytes(size))
                try:
                    found = Checkpoint(path).get("text")
                except DamagedCheckpointError as error:
                    require_line(error, tmp_path)
                    assert size != sum(lengths)
                else:
                    assert [*map(len, found.tolist())] == lengths

    def test_that_lie_in_their_object_graphs_are_refused_or_read(self, objects):
        tensors = Bundle(objects.path).read(threads=1)
        original, read = tensors[GRAPH_KEY].item(), 0
        for number in range(CASES):
            with case(number, 100 * objects.size) as draw:
                graph = TrackableObjectGraph.FromString(original)
                for _ in range(draw.choice([1, 1, 2, 5])):
                    lie(draw, graph)
                content = graph.SerializeToString()
                content = damaged(draw, content) if draw.random() < 0.3 else content
                write_bundle(objects.path, tensors | {GRAPH_KEY: np.array(content, object)})
                read += require_sound_or_error(objects)
        assert read or CASES < 100


def same(found, expected):
    return (
        (found.dtype, found.shape) == (expected.dtype, expected.shape)
        and (found.dtype == object or found.tobytes() == expected.tobytes())
        and found.tolist() == expected.tolist()
    )


def require_original_or_error(sample, kind):
    """Every tensor for itself: damage of one leaves the others."""
    try:
        found = Checkpoint(sample.path)
    except kind as error:
        require_line(error, sample.path.parent)
        return
    assert sorted(found.names()) == sorted(sample.values)
    for name, expected in sample.values.items():
        try:
            assert same(found.get(name), expected)
        except kind as error:
            require_line(error, sample.path.parent)


def require_sound_or_error(sample):
    """Whether any tensor could be read."""
    read = 0
    try:
        found = Checkpoint(sample.path)
        names = set(found.names())
        assert {*found.variables, *found.averages, *found.averages.values()} <= names
        assert all({*slots, *slots.values()} <= names for slots in found.slots.values())
        assert found.global_step is None or isinstance(found.global_step, int)
    except CheckpointError as error:
        require_line(error, sample.path.parent)
        return False
    for name in names:
        try:
            array = found.get(name)
        except CheckpointError as error:
            require_line(error, sample.path.parent)
            continue
        assert (array.shape, array.dtype) == (found.shape(name), found.dtype(name))
        read += 1
    return read > 0


def require_line(error, path):
    """An error says on one short line which file is meant."""
    text = str(error)
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < 2000
    assert "does not fit in memory" not in text


def resealed(draw, content):
    """A table whose blocks are as long as they were, and differ, and have right checksums."""
    content = bytearray(content)
    for start, stop in draw.sample(samples.blocks_of(bytes(content)), draw.choice([1, 1, 2])):
        kind, size = content[stop], stop - start
        kept = bytes(content[stop - draw.choice([0, 8, 8, 8]) : stop])  # the restarts, mostly
        block = damaged(draw, bytes(content[start : stop - len(kept)]))[: size - len(kept)]
        if draw.random() < 0.1:
            kind = draw.randrange(4)
        content[start : stop + 5] = samples.sealed(block.ljust(size - len(kept), b"\0") + kept, kind)
    return bytes(content)


def lying(draw, table, *, v1):
    """The entries of a table, after one to three lies in their messages and names; in order."""
    entries = list(table)
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randrange(len(entries))
        key, value = entries[at]
        if draw.random() < 0.1:
            entries[at] = draw.choice([draw.choice(NAMES).encode(), damaged(draw, key)]), value
        elif v1:
            entries[at] = key, changed(draw, SavedTensorSlices, value)
        else:
            entries[at] = key, changed(draw, BundleEntryProto if key else BundleHeaderProto, value)
    return sorted(dict(entries).items())


def changed(draw, kind, value):
    """A message with a lie, as bytes."""
    try:
        message = kind.FromString(value)
    except DecodeError:  # it was damaged before
        return value
    way = draw.random()
    if kind is BundleEntryProto and way < 0.1:  # a size that fits
        count = draw.choice([each for each in ODD if 0 <= each < 1 << 59])
        message.shape, message.size = samples.shape_of((count,)), 4 * count
    elif kind is BundleEntryProto and way < 0.4:
        message.shape = changed(draw, TensorShapeProto, message.shape)
    else:
        lie(draw, message)
    return message.SerializeToString()


class TestTextFiles:
    """No checksum protects them: other names may come out."""

    def test_of_states_are_refused_or_name_paths(self, tmp_path):
        path = tmp_path / "checkpoint"
        path.write_bytes(samples.STATE)
        assert read_state(tmp_path).paths == (tmp_path / "model.ckpt-20", tmp_path / "model.ckpt-300")
        for number, content in enumerate(texts(samples.STATE)):
            with case(number, len(content)):
                overwrite(path, content)
                try:
                    state = read_state(tmp_path)
                except CheckpointError as error:
                    require_line(error, path)
                else:
                    assert state.latest in state.paths
                    assert all(each.name for each in state.paths)
                    assert len(state.timestamps) in (0, len(state.paths))

    def test_of_name_maps_are_refused_or_place_tensors(self, tmp_path):
        path = tmp_path / "map.toml"
        path.write_bytes(samples.NAME_MAP)
        assert len(read_name_map(path).tensors) == 4
        for number, content in enumerate(texts(samples.NAME_MAP)):
            with case(number, len(content)):
                overwrite(path, content)
                try:
                    tensors = read_name_map(path).tensors
                except (CheckpointError, UsageError) as error:
                    require_line(error, path)
                else:
                    assert tensors
                    assert all(each.variable for each in tensors.values())


def texts(original):
    """A text cut off at every byte, damaged, and with pieces of it or odd ones in other places."""
    yield from (original[:size] for size in range(len(original)))
    pieces = re.findall(rb"\w+|\W", original)
    others = [*pieces, *samples.ODD_PIECES, *map(str.encode, NAMES), *(b"%d" % each for each in ODD)]
    for number in range(CASES):
        draw = random.Random(number)
        if number % 2:
            yield damaged(draw, original)
            continue
        mixed = pieces.copy()
        for _ in range(draw.choice([1, 2, 3, 8])):
            at = draw.randrange(len(mixed))
            mixed[at : at + draw.choice([0, 1, 1, 2])] = [draw.choice(others)] * draw.choice([1, 1, 1, 50])
        yield b"".join(mixed)


class TestRecords:
    """What is given out was written; that whole records are gone, or come twice, no checksum tells."""

    @pytest.fixture(params=[*PACKINGS, *STORED_RECORDS])
    def packed(self, request, tmp_path):
        """A file, its bytes, and its records."""
        if request.param in PACKINGS:
            content = PACKINGS[request.param](b"".join(map(frame, samples.RECORDS)))
        else:
            content = (request.getfixturevalue("fixtures") / request.param).read_bytes()
        path = tmp_path / "some.tfrecord"
        path.write_bytes(content)
        records = list(in_order(path))
        if content.startswith(frame(records[0])):  # the others read plain files only
            assert list(in_blocks(path)) == list(at_random(path)) == records
        assert records == samples.RECORDS if request.param in PACKINGS else len(records) == 57
        return path, content, records

    def test_cut_off_are_those_before(self, packed):
        path, content, records = packed
        whole = {0, *itertools.accumulate(len(each) + 16 for each in records)}
        if not content.startswith(frame(records[0])):  # packed: an empty file is a plain one
            whole = {0}
        step = -(-len(content) // (5 * CASES))
        for size in range(0, len(content), step):
            with case(size, len(content)):
                overwrite(path, content[:size])
                found, error = given_out(in_order, path)
                assert found == records[: len(found)]
                assert (error is None) == (size in whole)

    def test_that_are_damaged_are_refused_or_as_written(self, packed):
        path, content, records = packed
        for number in range(CASES):
            with case(number, len(content)) as draw:
                overwrite(path, damaged(draw, content))
                for reader in READERS:
                    found, _ = given_out(reader, path)
                    assert set(found) <= set(records)

    @pytest.mark.parametrize("packing", PACKINGS)
    def test_that_lie_with_right_checksums_are_refused_or_no_longer_than_the_file(self, packing, tmp_path):
        path = tmp_path / "some.tfrecord"
        path.touch()
        for number in range(CASES):
            with case(number, 1000) as draw:
                frames = [*map(frame, samples.RECORDS)]
                at = draw.randrange(len(frames))
                length = struct.pack(
                    "<q", draw.choice([*ODD, len(samples.RECORDS[at]) + draw.randint(-9, 9)])
                )
                lies = [length + struct.pack("<I", masked_crc(length)) + frames[at][12:], frame(frames[at])]
                frames[at] = draw.choice([*lies, frame(damaged(draw, samples.RECORDS[at]))])
                content = b"".join(frames)
                overwrite(path, PACKINGS[packing](content))
                for reader in READERS:
                    found, _ = given_out(reader, path)
                    assert sum(map(len, found)) <= len(content)


def in_order(path):
    return (each.data for each in read_records(path))


def in_blocks(path):
    return itertools.chain.from_iterable(each.records for each in read_blocks(path))


def at_random(path):
    with RecordFile(path) as file:
        yield from (file.read([each])[0] for each in range(len(file)))


READERS = (in_order, in_blocks, at_random)


def given_out(reader, path):
    """The records before an error, and the error; None where all could be read."""
    found = []
    try:
        found.extend(reader(path))
    except RecordError as error:
        require_line(error, path)
        return found, error
    return found, None


class TestExamples:
    """They have no checksum of their own: that of the record protects them."""

    def test_that_are_damaged_are_refused_or_parsed_as_asked(self):
        whole = [each[:size] for each in samples.EXAMPLES for size in range(len(each) + 1)]
        for number in range(len(whole) + CASES):
            with case(number, 300) as draw:
                record = (
                    whole[number] if number < len(whole) else damaged(draw, draw.choice(samples.EXAMPLES))
                )
                for parse in (parsed_at_once, parsed_in_batches, parsed_as_sequences):
                    try:
                        parse(record)
                    except DataError as error:
                        require_line(error, "file:3")


def parsed_at_once(record):
    for array in parse_example(record, "file:3").values():
        assert array.ndim == 1
        assert array.dtype in (np.float32, np.int64, object)


def parsed_in_batches(record):
    columns = parse_batch([record], FEATURES, "file:3".format)
    assert {name: len(column) for name, column in columns.items()} == dict.fromkeys(FEATURES, 1)
    assert columns["b"].shape == (1, 2)
    assert columns["a"].values.dtype == np.int64


def parsed_as_sequences(record):
    context, sequences = parse_sequence_batch(
        [record], {"a": FEATURES["a"]}, {"b": FEATURES["b"]}, "file:3".format
    )
    assert len(context["a"]) == len(sequences["b"]) == 1
    assert sequences["b"].values.shape[1:] == (2,)
