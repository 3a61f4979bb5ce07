from __future__ import annotations

import errno
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privileges import as_ordinary_user

from foveal.data.formats.fixed_length import MEMORY_LIMIT, FixedLengthSource, RecordLayout
from foveal.data.source import ArraySource, Source, labels_of
from foveal.errors import DataError, ReadError, RecipeError

SHAPE = (2, 3, 2)
LAYOUT = RecordLayout(image_shape=SHAPE)
RECORD = LAYOUT.record_bytes  # 13
CLASSES = ("cat", "dog", "owl")
HELD, READ = MEMORY_LIMIT, 0

either = pytest.mark.parametrize("limit", [HELD, READ], ids=["held", "read"])


def examples(count=7, shape=SHAPE, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *shape), np.uint8)
    return images, generator.integers(0, len(CLASSES), count)


def stored(images, targets, layout=LAYOUT):
    """The bytes of a file, made as plainly as possible."""
    content = bytearray(b"H" * layout.header_bytes)
    for image, target in zip(images, targets, strict=True):
        labels = bytearray(b"\xee" * layout.label_bytes)
        labels[layout.label_at] = target
        pixels = [image[..., channel].tobytes() for channel in range(image.shape[-1])]
        content += labels + (b"".join(pixels) if layout.channels_first else image.tobytes())
    return bytes(content + b"F" * layout.footer_bytes)


@pytest.fixture
def path(tmp_path):
    """A file of seven examples."""
    path = tmp_path / "some.bin"
    path.write_bytes(stored(*examples()))
    return path


def opened(*paths, layout=LAYOUT, limit=HELD):
    return FixedLengthSource(paths, layout, CLASSES, memory_limit=limit)


def everything(source):
    return source.read(np.arange(len(source)))


def equal(batch, images, targets):
    return np.array_equal(batch.images, images) and np.array_equal(batch.targets, targets)


def descriptors(folder):
    """How many of this process's open files are in a folder."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(each.readlink()))
        except OSError:  # the one that listed them
            continue
    return sum(link.startswith(f"{folder}/") for link in links)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files in /proc")


@either
class TestReading:
    def test_gives_the_examples_in_the_order_asked_for_and_as_often(self, path, limit):
        source, (images, targets) = opened(path, limit=limit), examples()
        assert isinstance(source, Source)
        assert len(source) == 7
        assert source.classes == CLASSES
        assert source.image_shape == SHAPE
        order = np.array([5, 0, 5, 6, 1, 2, 0])
        batch = source.read(order)
        assert batch.images.dtype == np.uint8
        assert batch.targets.dtype == np.int64
        assert equal(batch, images[order], targets[order])

    def test_of_no_example_gives_an_empty_batch(self, path, limit):
        batch = opened(path, limit=limit).read(np.array([], np.int64))
        assert batch.images.shape == (0, *SHAPE)
        assert batch.targets.shape == (0,)

    def test_gives_copies_in_one_piece(self, path, limit):
        source = opened(path, limit=limit)
        batch = everything(source)
        assert batch.images.flags.c_contiguous
        batch.images[:] = 0
        batch.targets[:] = 9
        assert equal(everything(source), *examples())

    @pytest.mark.parametrize("channels_first", [True, False])
    @pytest.mark.parametrize(("header", "footer"), [(0, 0), (5, 0), (0, 4), (20, 30)])
    @pytest.mark.parametrize(("label_bytes", "label_at"), [(1, 0), (2, 0), (2, 1), (4, 2)])
    def test_follows_the_layout(self, tmp_path, limit, channels_first, header, footer, label_bytes, label_at):
        layout = RecordLayout(
            image_shape=SHAPE,
            label_bytes=label_bytes,
            label_at=label_at,
            channels_first=channels_first,
            header_bytes=header,
            footer_bytes=footer,
        )
        assert layout.record_bytes == 12 + label_bytes
        paths = []
        for seed, count in enumerate((3, 1, 4)):
            paths.append(tmp_path / f"{seed}.bin")
            paths[-1].write_bytes(stored(*examples(count, seed=seed), layout))
        batch = everything(opened(*paths, layout=layout, limit=limit))
        parts = [examples(count, seed=seed) for seed, count in enumerate((3, 1, 4))]
        assert equal(batch, *map(np.concatenate, zip(*parts, strict=True)))

    def test_pixels_stand_in_the_file_channel_by_channel_as_in_cifar(self, tmp_path, limit):
        path = tmp_path / "one.bin"
        path.write_bytes(bytes([2]) + bytes(range(12)))
        batch = everything(opened(path, limit=limit))
        assert batch.images[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert batch.images[0, :, :, 1].tolist() == [[6, 7, 8], [9, 10, 11]]
        assert batch.targets.tolist() == [2]

    @pytest.mark.parametrize("wrong", [[-1], [7], [0, 1, 7], [2**40]])
    def test_of_an_example_that_is_not_there_is_an_error(self, path, limit, wrong):
        with pytest.raises(IndexError, match="of 7 examples"):
            opened(path, limit=limit).read(np.array(wrong))

    def test_from_many_threads_at_once_gives_what_one_gets(self, tmp_path, limit):
        paths = []
        for seed in range(3):
            paths.append(tmp_path / f"{seed}.bin")
            paths[-1].write_bytes(stored(*examples(200, seed=seed)))
        source = opened(*paths, limit=limit)
        whole = everything(source)

        def check(seed):
            indices = np.random.default_rng(seed).integers(0, len(source), 64)
            batch = source.read(indices)
            return equal(batch, whole.images[indices], whole.targets[indices])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, range(200)))


@either
class TestKeys:
    def test_name_the_file_and_the_record_within_it(self, path, tmp_path, limit):
        other = tmp_path / "other.bin"
        other.write_bytes(stored(*examples(2)))
        source = opened(path, other, limit=limit)
        assert source.key(0) == f"{path} record 0"
        assert source.key(6) == f"{path} record 6"
        assert source.key(7) == f"{other} record 0"
        assert source.key(8) == f"{other} record 1"


@either
class TestFingerprints:
    def test_are_those_of_the_same_examples_in_memory(self, path, limit):
        images, targets = examples()
        source, array = opened(path, limit=limit), ArraySource(images, targets, CLASSES)
        assert source.fingerprint() == array.fingerprint() == source.fingerprint()

    def test_cover_blocks_of_any_size(self, path, limit, monkeypatch):
        expected = ArraySource(*examples(), CLASSES).fingerprint()
        for size in (1, 2 * RECORD, 3 * RECORD + 1, 7 * RECORD):
            monkeypatch.setattr("foveal.data.formats.fixed_length._BLOCK", size)
            assert opened(path, limit=limit).fingerprint() == expected

    def test_do_not_depend_on_names_files_and_layout(self, path, tmp_path, limit):
        images, targets = examples()
        layout = RecordLayout(image_shape=SHAPE, label_bytes=3, channels_first=False, footer_bytes=1)
        parts = tmp_path / "a", tmp_path / "b"
        for part, span in zip(parts, (slice(0, 3), slice(3, 7)), strict=True):
            part.write_bytes(stored(images[span], targets[span], layout))
        other = opened(*parts, layout=layout, limit=limit)
        assert other.fingerprint() == opened(path, limit=limit).fingerprint()

    def test_depend_on_every_byte_and_on_the_classes(self, path, limit):
        content = stored(*examples(2))
        seen = set()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] = (changed[place] + 1) % (3 if place % RECORD == 0 else 256)
            path.write_bytes(changed)
            seen.add(opened(path, limit=limit).fingerprint())
        path.write_bytes(content)
        seen.add(opened(path, limit=limit).fingerprint())
        seen.add(FixedLengthSource([path], LAYOUT, "xyz", memory_limit=limit).fingerprint())
        assert len(seen) == len(content) + 2


class TestTargets:
    def test_are_there_where_the_files_are_held_and_else_read(self, path):
        held, read = opened(path), opened(path, limit=READ)
        assert held.targets.tolist() == labels_of(read).tolist() == examples()[1].tolist()
        assert read.targets is None


@either
class TestRefused:
    def refusal(self, path, limit, layout=LAYOUT):
        with pytest.raises(DataError) as caught:
            opened(path, layout=layout, limit=limit)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    def test_is_a_file_cut_off_at_any_byte_within_a_record(self, path, limit):
        layout = RecordLayout(image_shape=SHAPE, header_bytes=3, footer_bytes=2)
        content = stored(*examples(3), layout)
        for length in range(len(content)):
            path.write_bytes(content[:length])
            records, over = divmod(length - 5, RECORD)
            if over == 0 and records > 0:  # nothing in the file could tell
                assert len(opened(path, layout=layout, limit=limit)) == records
                continue
            message = self.refusal(path, limit, layout)
            if length == 0:
                assert message == "is empty"
            elif length < 5:
                assert message == f"{length} bytes, fewer than the 5 of its header and footer"
            elif length == 5:
                assert message == "holds no records, only a header and a footer"
            else:
                assert message.startswith(f"{records} records of 13 bytes and {over} bytes over: ")

    def test_is_a_file_with_a_byte_more(self, path, limit):
        path.write_bytes(path.read_bytes() + b"\0")
        assert self.refusal(path, limit).startswith("7 records of 13 bytes and 1 bytes over")

    def test_is_a_missing_file(self, tmp_path, limit):
        assert self.refusal(tmp_path / "none.bin", limit) == "there is no such file"

    def test_is_a_file_below_a_file(self, path, limit):
        assert self.refusal(path / "below", limit).startswith("cannot be opened: ")

    def test_is_a_folder(self, tmp_path, limit):
        assert self.refusal(tmp_path, limit).startswith("is a folder or a device")

    def test_is_a_named_pipe_without_waiting_for_it(self, tmp_path, limit):
        os.mkfifo(tmp_path / "pipe")
        assert self.refusal(tmp_path / "pipe", limit).startswith("is a folder or a device")

    def test_is_an_unreadable_file(self, path, limit):
        path.chmod(0)
        with as_ordinary_user():
            assert self.refusal(path, limit) == "cannot be opened: Permission denied"

    def test_is_the_wrong_one_of_several_files_by_its_name(self, path, tmp_path, limit):
        wrong = tmp_path / "wrong.bin"
        wrong.write_bytes(bytes(RECORD + 1))
        with pytest.raises(DataError) as caught:
            opened(path, wrong, path, limit=limit)
        assert str(caught.value).startswith(f"{wrong}: 1 records of 13 bytes and 1 bytes over")

    def test_are_no_files(self, limit):
        with pytest.raises(DataError, match="no file of records is given"):
            opened(limit=limit)


class TestLabelsOutOfRange:
    @pytest.fixture
    def paths(self, path, tmp_path):
        other = tmp_path / "other.bin"
        content = bytearray(stored(*examples(4)))
        content[2 * RECORD] = 3
        other.write_bytes(content)
        return path, other

    def test_are_refused_at_once_in_files_that_are_held(self, paths):
        with pytest.raises(DataError) as caught:
            opened(*paths)
        assert str(caught.value) == (
            f"{paths[1]} record 2: label 3 is out of range: there are 3 classes, 0 to 2"
        )

    def test_are_refused_when_they_are_read_from_files_that_are_not(self, paths):
        source = opened(*paths, limit=READ)
        assert source.read(np.array([0, 8, 10])).targets.size == 3
        for read in (lambda: source.read(np.array([10, 9, 0])), source.fingerprint):
            with pytest.raises(DataError) as caught:
                read()
            assert str(caught.value).startswith(f"{paths[1]} record 2: label 3 is out of range: ")

    def test_of_other_label_bytes_do_not_matter(self, tmp_path):
        path = tmp_path / "two labels.bin"
        path.write_bytes(bytes([200, 2]) + bytes(12))
        layout = RecordLayout(image_shape=SHAPE, label_bytes=2, label_at=1)
        assert everything(opened(path, layout=layout)).targets.tolist() == [2]


class TestFilesThatChange:
    def test_and_are_shorter_now_are_an_error_that_names_the_record(self, path):
        source = opened(path, limit=READ)
        os.truncate(path, 3 * RECORD + 5)
        for some in ([3], range(7)):
            with pytest.raises(DataError) as caught:
                source.read(np.array(some))
            assert str(caught.value).startswith(f"{path} record 3: the file ends before it: ")

    def test_elsewhere_are_an_error_too(self, path):
        source = opened(path, limit=READ)
        os.truncate(path, 3 * RECORD)
        with pytest.raises(DataError, match="has changed since it was opened") as caught:
            source.read(np.array([0]))
        assert str(caught.value).startswith(f"{path}: ")

    def test_in_content_are_an_error(self, path):
        source = opened(path, limit=READ)
        with path.open("r+b") as file:
            file.write(b"\1")
        later = path.stat().st_mtime_ns + 1_000_000
        os.utime(path, ns=(later, later))  # a change within the clock's tick would not be seen
        with pytest.raises(DataError, match="has changed since it was opened"):
            source.read(np.array([5]))

    def test_by_growing_are_an_error(self, path):
        source = opened(path, limit=READ)
        with path.open("ab") as file:
            file.write(bytes(RECORD))
        with pytest.raises(DataError, match="has changed since it was opened"):
            source.read(np.array([5]))

    def test_and_are_not_read_from_do_no_harm(self, path, tmp_path):
        other = tmp_path / "other.bin"
        other.write_bytes(path.read_bytes())
        source = opened(path, other, limit=READ)
        os.truncate(other, 0)
        assert np.array_equal(source.read(np.arange(7)).images, examples()[0])

    def test_after_they_were_held_do_no_harm(self, path):
        source = opened(path)
        path.unlink()
        assert np.array_equal(everything(source).images, examples()[0])

    def test_under_their_name_only_are_still_the_old_ones(self, path, tmp_path):
        source = opened(path, limit=READ)
        (tmp_path / "new").write_bytes(bytes(RECORD))
        (tmp_path / "new").replace(path)
        assert np.array_equal(everything(source).images, examples()[0])


class TestTheSystem:
    def test_may_give_fewer_bytes_than_asked_for(self, path, monkeypatch):
        real = os.pread
        monkeypatch.setattr(os, "pread", lambda file, length, at: real(file, min(length, 5), at))
        assert np.array_equal(everything(opened(path, limit=READ)).images, examples()[0])

    def test_may_fail_to_read_and_the_error_names_the_record(self, path, monkeypatch):
        source, real = opened(path, limit=READ), os.pread

        def pread(file, length, at):
            if at >= 4 * RECORD:
                raise OSError(errno.EIO, "Input/output error")
            return real(file, min(length, 4 * RECORD - at), at)

        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(ReadError) as caught:  # by which a loader knows that another try may succeed
            everything(source)
        assert str(caught.value) == f"{path} record 4: cannot be read: Input/output error"

    def test_is_asked_once_for_records_that_are_neighbours(self, path, tmp_path, monkeypatch):
        other = tmp_path / "other.bin"
        other.write_bytes(path.read_bytes())
        source, real, asked = opened(path, other, limit=READ), os.pread, []
        monkeypatch.setattr(os, "pread", lambda *each: asked.append(each[1:]) or real(*each))
        source.read(np.array([9, 1, 6, 2, 7, 8, 1, 4]))
        assert asked == [(2 * RECORD, RECORD), (RECORD, 4 * RECORD), (RECORD, 6 * RECORD), (3 * RECORD, 0)]


@needs_proc
class TestOpenFiles:
    def test_are_closed_when_they_are_held(self, path, tmp_path):
        source = opened(path)
        assert len(source) == 7
        assert descriptors(tmp_path) == 0

    def test_are_as_many_as_there_are_files_until_the_source_is_gone(self, path, tmp_path):
        source = opened(path, path, limit=READ)
        assert descriptors(tmp_path) == 2
        assert everything(source).targets.size == 14
        assert descriptors(tmp_path) == 2
        del source
        gc.collect()
        assert descriptors(tmp_path) == 0

    @either
    def test_are_closed_when_one_of_them_is_refused(self, path, tmp_path, limit):
        wrong = tmp_path / "wrong.bin"
        for content in (b"", bytes(RECORD + 1), b"\x09" + bytes(RECORD - 1)):
            wrong.write_bytes(content)
            try:
                opened(path, wrong, limit=limit)
            except DataError:
                assert descriptors(tmp_path) == 0  # while the error is being handled
        with pytest.raises(DataError):
            opened(path, tmp_path / "none.bin", limit=limit)
        assert descriptors(tmp_path) == 0

    def test_are_kept_only_of_files_over_the_limit(self, path, tmp_path):
        size = 2 * path.stat().st_size
        at_limit = opened(path, path, limit=size)
        assert descriptors(tmp_path) == 0
        over_limit = opened(path, path, limit=size - 1)
        assert descriptors(tmp_path) == 2
        assert at_limit.fingerprint() == over_limit.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (32, 32)}, r"image_shape = \(32, 32\): three numbers, each at least 1"),
        ({"image_shape": (32, 0, 3)}, r"image_shape = \(32, 0, 3\)"),
        ({"image_shape": (32, 32.0, 3)}, r"image_shape = \(32, 32\.0, 3\)"),
        ({"image_shape": ("a", "b", "c")}, r"image_shape = \('a', 'b', 'c'\)"),
        ({"label_bytes": 0}, "label_at = 0: not one of 0 label bytes"),
        ({"label_at": 1}, "label_at = 1: not one of 1 label bytes"),
        ({"label_at": -1}, "label_at = -1: not one of 1 label bytes"),
        ({"header_bytes": -1}, "-1 header_bytes"),
        ({"footer_bytes": -1}, "-1 footer_bytes"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        RecordLayout(**{"image_shape": SHAPE} | changes)


@st.composite
def layouts(draw):
    label_bytes = draw(st.integers(1, 4))
    return RecordLayout(
        image_shape=draw(st.tuples(*[st.integers(1, 5)] * 3)),
        label_bytes=label_bytes,
        label_at=draw(st.integers(0, label_bytes - 1)),
        channels_first=draw(st.booleans()),
        header_bytes=draw(st.integers(0, 20)),
        footer_bytes=draw(st.integers(0, 20)),
    )


@settings(max_examples=60, deadline=None)
@given(layouts(), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**32), st.data())
def test_what_is_written_in_any_layout_is_read_back(tmp_path_factory, layout, counts, seed, data):
    folder = tmp_path_factory.mktemp("round trip")
    images, targets = examples(sum(counts), layout.image_shape, seed)
    paths, first = [], 0
    for number, count in enumerate(counts):
        paths.append(folder / f"{number}.bin")
        span = slice(first, first + count)
        paths[-1].write_bytes(stored(images[span], targets[span], layout))
        first += count
    some = np.array(data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=10)), np.int64)
    for limit in (HELD, READ):
        source = opened(*paths, layout=layout, limit=limit)
        assert equal(source.read(some), images[some], targets[some])
        assert source.fingerprint() == ArraySource(images, targets, CLASSES).fingerprint()
