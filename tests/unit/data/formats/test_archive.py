from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from foveal.data.formats.archive import unpack_once
from foveal.errors import DataError

FILES = {"set/one.bin": b"one" * 100, "set/deep/er/two.bin": b"", "set/\N{SNOWMAN} three": bytes(range(256))}
KINDS = {"tar": bytes, "tar.gz": lambda content: gzip.compress(content, mtime=0), "tar.xz": lzma.compress}
LIMIT = 1 << 20

every_kind = pytest.mark.parametrize("kind", [*KINDS, "zip"])


class Report:
    """A progress reporter that remembers, and does something at each report of progress."""

    def __init__(self, action=lambda: None):
        self.started, self.done, self.finished, self.action = [], 0, 0, action

    def start(self, name, total_bytes, done_bytes):
        self.started.append((name, total_bytes, done_bytes))

    def advance(self, n):
        assert n >= 0
        self.done += n
        self.action()

    def finish(self):
        self.finished += 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some archive"


@pytest.fixture
def into(tmp_path):
    return tmp_path / "cache" / "unpacked"


@pytest.fixture
def _quick(monkeypatch):
    """For tests that unpack hundreds of times: the disk is not waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def tar_of(*members, encoding="utf-8"):
    """A tar archive of (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding=encoding) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return buffer.getvalue()


def packed(kind, files=FILES):
    return zip_of(*files.items()) if kind == "zip" else KINDS[kind](tar_of(*files.items()))


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def header(kind, size, name="x"):
    """The 512 bytes of a tar header that claims ``size`` bytes."""
    info = special(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left(folder):
    """All that is in a folder, but for locks, which stay because taking them away is a race."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock"]


def refusal(path, into, **limits):
    """The error's text; nothing is left, inside or outside the folder."""
    before = set(left(path.parent))
    report = Report()
    with pytest.raises(DataError) as caught:
        unpack_once(path, into, progress=report, **{"limit_bytes": LIMIT} | limits)
    assert set(left(path.parent)) - before <= {"cache", "cache/unpacked"}
    assert report.finished == len(report.started)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


class TestUnpacking:
    @every_kind
    def test_gives_the_files_whatever_the_archive_is_called(self, path, into, kind):
        path.write_bytes(packed(kind))
        folder = unpack_once(path, into, limit_bytes=LIMIT)
        assert folder.parent == into
        assert contents(folder) == FILES
        assert not [each for each in left(into) if "partial" in each]

    @every_kind
    def test_keeps_empty_folders(self, path, into, kind):
        if kind == "zip":
            path.write_bytes(zip_of(("empty/", b""), ("file", b"x")))
        else:
            members = (special("empty", tarfile.DIRTYPE), b""), ("file", b"x")
            path.write_bytes(KINDS[kind](tar_of(*members)))
        assert sorted(left(unpack_once(path, into, limit_bytes=LIMIT))) == ["empty", "file"]

    def test_takes_the_dot_that_many_archives_begin_with(self, path, into):
        path.write_bytes(tar_of((special("./", tarfile.DIRTYPE), b""), ("./a/./b", b"x")))
        assert contents(unpack_once(path, into, limit_bytes=LIMIT)) == {"a/b": b"x"}

    def test_takes_long_names_in_either_dialect_of_tar(self, path, into):
        name = "/".join(["long" * 10] * 8)
        for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            with tarfile.open(path, "w", format=dialect) as tar:
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
            os.utime(path, ns=(dialect, dialect))
            assert contents(unpack_once(path, into, limit_bytes=LIMIT)) == {name: b"abc"}

    def test_ignores_the_owners_and_permissions_in_the_archive(self, path, into):
        info = tarfile.TarInfo("file")
        info.mode, info.uid = 0o4777, 12345
        path.write_bytes(tar_of((info, b"x")))
        state = (unpack_once(path, into, limit_bytes=LIMIT) / "file").stat()
        assert state.st_mode & (stat.S_ISUID | stat.S_IXUSR) == 0
        assert state.st_uid == os.geteuid()

    def test_works_for_archives_with_any_name(self, tmp_path, into):
        for name in ("..tar", "x" * 250, "\N{SNOWMAN}" * 80, "-", os.fsdecode(b"\xff\xfe.tar")):
            path = tmp_path / name
            path.write_bytes(packed("tar"))
            folder = unpack_once(path, into, limit_bytes=LIMIT)
            assert contents(folder) == FILES
            assert not folder.name.startswith(".")

    def test_does_not_hold_the_archive_in_memory(self, path, into):
        size = 24 << 20
        path.write_bytes(gzip.compress(tar_of(("zeros", bytes(size))), 1))
        tracemalloc.start()
        try:
            folder = unpack_once(path, into, limit_bytes=size)
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()
        assert (folder / "zeros").stat().st_size == size


class TestOnce:
    def test_means_that_nothing_is_done_the_second_time(self, path, into):
        path.write_bytes(packed("tar"))
        first, second = Report(), Report()
        folder = unpack_once(path, into, limit_bytes=LIMIT, progress=first)
        (folder / "mark").touch()
        assert unpack_once(path, into, limit_bytes=LIMIT, progress=second) == folder
        assert (folder / "mark").exists()
        assert (len(first.started), len(second.started)) == (1, 0)

    def test_means_again_when_the_archive_has_changed(self, path, into):
        path.write_bytes(packed("tar"))
        old = unpack_once(path, into, limit_bytes=LIMIT)
        path.write_bytes(packed("tar", {"other": b"x"}))
        os.utime(path, ns=(10**18, 10**18))
        new = unpack_once(path, into, limit_bytes=LIMIT)
        assert (contents(old), contents(new)) == (FILES, {"other": b"x"})

    def test_means_once_for_all_who_ask_at_the_same_time(self, path, into):
        path.write_bytes(packed("tar"))
        reports = [Report() for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            folders = set(
                pool.map(lambda each: unpack_once(path, into, limit_bytes=LIMIT, progress=each), reports)
            )
        assert len(folders) == 1
        assert sum(len(report.started) for report in reports) == 1

    def test_waits_for_another_process_that_is_at_it(self, path, into):
        path.write_bytes(packed("tar"))
        folder = unpack_once(path, into, limit_bytes=LIMIT)
        away = folder.rename(into / "away")
        done = threading.Event()

        def ask():
            assert unpack_once(path, into, limit_bytes=LIMIT) == folder
            done.set()

        with FileLock(into / f".{folder.name}.lock"):
            thread = threading.Thread(target=ask)
            thread.start()
            assert not done.wait(0.2)
            away.rename(folder)
            (folder / "mark").touch()
        thread.join(10)
        assert done.is_set()
        assert (folder / "mark").exists()

    def test_clears_away_what_a_killed_process_has_left(self, path, into):
        path.write_bytes(packed("tar"))
        folder = unpack_once(path, into, limit_bytes=LIMIT)
        partial = into / f".{folder.name}.partial"
        folder.rename(partial)
        (partial / "set" / "half").write_bytes(b"x")
        assert contents(unpack_once(path, into, limit_bytes=LIMIT)) == FILES
        assert not partial.exists()


OUTSIDE = ["../out", "a/../../out", "a/..", "/out", "//out", "..", "a\\..\\out", "\\out", "C:\\out", "c:out"]


class TestHostileNames:
    @pytest.mark.parametrize("name", OUTSIDE)
    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_lead_nowhere(self, path, into, kind, name):
        members = [("good", b"x"), (name, b"y")]
        path.write_bytes(tar_of(*members) if kind == "tar" else zip_of(*members))
        assert refusal(path, into) == f"{name!r} leads out of the folder it is unpacked into"

    def test_lead_nowhere_as_folders_either(self, path, into):
        path.write_bytes(tar_of((special("../out", tarfile.DIRTYPE), b"")))
        assert "leads out" in refusal(path, into)

    def test_lead_nowhere_when_a_pax_header_gives_them(self, path, into):
        info = tarfile.TarInfo("good")
        info.pax_headers = {"path": "../out"}
        path.write_bytes(tar_of((info, b"x")))
        assert "leads out" in refusal(path, into)

    @every_kind
    def test_that_occur_twice_are_refused(self, path, into, kind):
        members = [("same", b"x"), ("./same", b"y")]
        path.write_bytes(zip_of(*members) if kind == "zip" else KINDS[kind](tar_of(*members)))
        assert refusal(path, into) == "'./same' is in it twice"

    def test_below_a_file_are_refused(self, path, into):
        path.write_bytes(tar_of(("file", b"x"), ("file/below", b"y")))
        assert refusal(path, into).startswith("cannot be unpacked into")

    def test_too_long_for_the_system_are_refused(self, path, into):
        path.write_bytes(tar_of(("x" * 300, b"x")))
        assert "name too long" in refusal(path, into).lower()

    def test_too_deep_are_refused(self, path, into):
        path.write_bytes(tar_of(("a/" * 40 + "b", b"x")))
        assert refusal(path, into).endswith("is more than 32 folders deep")

    def test_that_are_not_text_can_be_printed(self, path, into):
        path.write_bytes(tar_of(("../\udcff\n", b"x"), encoding="utf-8"))
        assert refusal(path, into).encode("utf-8").startswith(b"'../")


class TestHostileMembers:
    @pytest.mark.parametrize(
        ("kind", "link"),
        [
            (tarfile.SYMTYPE, "/etc"),
            (tarfile.SYMTYPE, "good"),
            (tarfile.LNKTYPE, "good"),
            (tarfile.CHRTYPE, ""),
            (tarfile.BLKTYPE, ""),
            (tarfile.FIFOTYPE, ""),
            (b"Z", ""),
        ],
    )
    def test_that_are_neither_files_nor_folders_are_refused(self, path, into, kind, link):
        path.write_bytes(tar_of(("good", b"x"), (special("bad", kind, link), b""), ("bad/file", b"y")))
        assert refusal(path, into) == "'bad' is a link or a device, not a file or a folder"

    def test_that_are_sparse_files_are_refused(self, path, into):
        path.write_bytes(header(tarfile.GNUTYPE_SPARSE, 0, "bad") + bytes(1024))
        assert "'bad' is a link or a device" in refusal(path, into)

    @pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
    def test_of_a_zip_that_are_neither_files_nor_folders_are_refused(self, path, into, mode):
        info = zipfile.ZipInfo("bad")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        path.write_bytes(zip_of(("good", b"x"), (info, b"/etc")))
        assert "'bad' is a link or a device" in refusal(path, into)

    def test_that_are_encrypted_are_refused(self, path, into):
        content = bytearray(zip_of(("secret", b"x")))
        content[content.index(b"PK\1\2") + 8] |= 1
        path.write_bytes(content)
        assert "encrypted" in refusal(path, into)


class TestBombs:
    @every_kind
    def test_of_bytes_stop_at_the_limit(self, path, into, kind):
        files = {"a": bytes(60_000), "b": bytes(40_000)}
        path.write_bytes(packed(kind, files))
        assert refusal(path, into, limit_bytes=99_999) == "unpacks to more than 99999 bytes"
        assert contents(unpack_once(path, into, limit_bytes=100_000)) == files

    def test_of_bytes_are_not_unpacked_beyond_the_limit(self, path, into, monkeypatch):
        path.write_bytes(gzip.compress(tar_of(("zeros", bytes(32 << 20))), 1))
        written, real = [], Path.open

        def watched(self, mode="r", *rest, **more):
            if mode == "xb":
                written.append(self)
            return real(self, mode, *rest, **more)

        monkeypatch.setattr(Path, "open", watched)
        report = Report()
        report.action = lambda: written.append(written[0].stat().st_size)
        with pytest.raises(DataError, match="unpacks to more than 3000000 bytes"):
            unpack_once(path, into, limit_bytes=3_000_000, progress=report)
        assert max(written[1:]) <= 3_000_000

    @every_kind
    def test_of_files_stop_at_the_limit(self, path, into, kind):
        path.write_bytes(packed(kind, {str(number): b"" for number in range(20)}))
        assert refusal(path, into, limit_files=19) == "holds more than 19 files and folders"
        assert len(contents(unpack_once(path, into, limit_bytes=LIMIT, limit_files=20))) == 20

    def test_of_folders_stop_at_the_limit(self, path, into):
        folders = [(special(str(number), tarfile.DIRTYPE), b"") for number in range(20)]
        path.write_bytes(tar_of(*folders, ("file", b"x")))
        assert refusal(path, into, limit_files=20) == "holds more than 20 files and folders"

    @pytest.mark.parametrize(
        "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
    )
    def test_in_headers_are_not_read_into_memory(self, path, into, kind):
        size = 40 << 20
        path.write_bytes(gzip.compress(header(kind, size) + bytes(size) + bytes(1024), 1))
        tracemalloc.start()
        try:
            assert f"with {size} bytes" in refusal(path, into)
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()

    def test_of_endless_headers_are_refused(self, path, into):
        one = header(tarfile.XGLTYPE, 16) + b"16 comment=abcd\n".ljust(512, b"\0")
        path.write_bytes(gzip.compress(one * 20_000))
        assert refusal(path, into).startswith("damaged, cut off, or not an archive: ")

    def test_behind_the_last_member_are_refused(self, path, into):
        path.write_bytes(gzip.compress(packed("tar") + bytes(40 << 20), 1))
        assert "after its end" in refusal(path, into)

    def test_that_claim_a_negative_size_are_refused(self, path, into):
        path.write_bytes(header(tarfile.REGTYPE, -512) + bytes(1024))
        assert "-512 bytes" in refusal(path, into)

    @pytest.mark.parametrize("size", [-1024, 2**63, 10**30])
    def test_that_claim_an_impossible_size_in_a_pax_header_are_refused(self, path, into, size):
        info = tarfile.TarInfo("a")
        info.pax_headers = {"size": str(size)}
        path.write_bytes(tar_of((info, b"x")))
        refusal(path, into)


class TestRefused:
    def test_is_a_missing_archive(self, path, into):
        assert refusal(path, into) == "there is no such file"

    def test_is_an_empty_archive(self, path, into):
        path.touch()
        assert refusal(path, into) == "is empty"

    def test_is_a_folder(self, path, into):
        path.mkdir()
        assert refusal(path, into) == "is a folder or a device, not an archive"

    def test_is_a_named_pipe_without_waiting_for_it(self, path, into):
        os.mkfifo(path)
        assert refusal(path, into) == "is a folder or a device, not an archive"

    @pytest.mark.parametrize(
        "content",
        [b"x", b"text\n" * 1000, b"\x1f\x8b", b"PK\x03\x04", b"\xfd7zXZ\0", gzip.compress(b"no tar\n" * 999)],
    )
    def test_is_what_is_not_an_archive(self, path, into, content):
        path.write_bytes(content)
        assert refusal(path, into).startswith("damaged, cut off, or not an archive: ")

    @every_kind
    def test_is_an_archive_of_nothing(self, path, into, kind):
        path.write_bytes(packed(kind, {}))
        assert refusal(path, into) == "holds no files"

    @pytest.mark.usefixtures("_quick")
    @pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
    def test_is_an_archive_cut_off_at_any_byte(self, path, into, kind):
        whole = packed(kind, {"one": b"some content", "two": b"other"})
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            refusal(path, into)

    @pytest.mark.usefixtures("_quick")
    def test_is_a_plain_tar_archive_cut_off_before_its_end_mark(self, path, into):
        whole = packed("tar", {"one": b"some content", "two": b"other"})
        for length in [*range(0, 2048 + 512, 31), 512, 1024, 1536, 2048, 2559]:
            path.write_bytes(whole[:length])
            refusal(path, into)
        path.write_bytes(whole[:2560])  # two members of two blocks each, and one of zeros
        assert len(contents(unpack_once(path, into, limit_bytes=LIMIT))) == 2

    @pytest.mark.usefixtures("_quick")
    @every_kind
    def test_or_unharmed_is_an_archive_with_a_changed_byte(self, path, into, kind):
        files = {"one": b"some content", "two": b""}
        whole = packed(kind, files)
        checked = range(512) if kind == "tar" else range(len(whole))  # tar has checksums of headers only
        for place in checked:
            content = bytearray(whole)
            content[place] ^= random.Random(place).randrange(1, 256)
            path.write_bytes(content)
            os.utime(path, ns=(place, place))
            try:
                folder = unpack_once(path, into, limit_bytes=LIMIT)
            except DataError:
                continue
            assert contents(folder) == files, place


class TestTheSystem:
    def test_may_run_out_of_space_and_nothing_is_left(self, path, into, monkeypatch):
        path.write_bytes(packed("tar"))

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert refusal(path, into) == f"cannot be unpacked into {into}: No space left on device"

    def test_may_have_a_file_where_the_cache_should_be(self, path):
        path.write_bytes(packed("tar"))
        assert refusal(path, path).startswith(f"cannot be unpacked into {path}: ")

    def test_may_interrupt_and_nothing_is_left(self, path, into):
        def interrupt():
            raise KeyboardInterrupt

        path.write_bytes(packed("tar"))
        report = Report(interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack_once(path, into, limit_bytes=LIMIT, progress=report)
        assert left(into) == []
        assert report.finished == 1

    def test_may_change_the_archive_meanwhile_and_it_is_not_taken(self, path, into):
        path.write_bytes(packed("tar"))
        report = Report(lambda: os.utime(path, ns=(5, 5)))
        with pytest.raises(DataError, match="has changed while it was unpacked"):
            unpack_once(path, into, limit_bytes=LIMIT, progress=report)
        assert left(into) == []


@every_kind
def test_progress_is_counted_in_bytes_of_the_archive(path, into, kind):
    path.write_bytes(packed(kind, {str(n): random.Random(n).randbytes(100_000) for n in range(5)}))
    report, size = Report(), path.stat().st_size
    unpack_once(path, into, limit_bytes=LIMIT, progress=report)
    assert report.started == [("unpacking some archive", size, 0)]
    assert report.finished == 1
    assert 0.99 * size < report.done <= size
