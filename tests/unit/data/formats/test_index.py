from __future__ import annotations

import io
import os
import re
import shutil
import struct
import tempfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.privileges import as_ordinary_user

from foveal.data.formats.index import load_or_build, states, watched
from foveal.errors import DataError

ARRAYS = {
    "offsets": np.arange(12, dtype=np.int64).reshape(4, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "names": np.array(["", "zwölf", "猫"]),
    "none": np.empty((0, 5), np.uint8),
    "one": np.array(7, np.uint16),
}


class Build:
    """Makes the arrays, and counts how often."""

    def __init__(self, arrays=ARRAYS):
        self.calls, self.arrays = 0, arrays

    def __call__(self):
        self.calls += 1
        return self.arrays


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    files = [folder / "b", folder / "a"]
    for file in files:
        file.write_bytes(file.name.encode() * 10)
    return files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "foveal" / "indexes"


def sidecars(folder):
    return sorted(folder.glob(".foveal-*"))


def put_folder_in_place(sidecar):
    """A folder has the sidecar's name: it cannot be written."""
    sidecar.unlink()
    sidecar.mkdir()


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
    )


class TestAnIndex:
    def test_is_built_once_and_then_read_from_beside_the_data(self, paths, cache):
        build = Build()
        for _ in range(3):
            assert equal(load_or_build(paths, "test 1", build), ARRAYS)
        assert build.calls == 1
        (sidecar,) = sidecars(paths[0].parent)
        assert re.fullmatch(r"\.foveal-test-[0-9a-f]{16}\.index", sidecar.name)
        assert sidecar.is_file()
        assert not cache.exists()

    def test_of_a_sidecar_cannot_be_written_to(self, paths):
        for _ in range(2):
            arrays = load_or_build(paths, "test", Build())
        with pytest.raises(ValueError, match="read-only"):
            arrays["offsets"][0] = 1

    def test_is_built_again_when_asked_for(self, paths):
        build = Build()
        load_or_build(paths, "test", build)
        load_or_build(paths, "test", build, rebuild=True)
        assert build.calls == 2

    @pytest.mark.parametrize("change", ["size", "time", "shorter"])
    def test_is_built_again_when_a_file_changed(self, paths, change):
        build = Build()
        load_or_build(paths, "test", build)
        if change == "size":
            paths[1].write_bytes(b"more than there was")
        elif change == "shorter":
            os.truncate(paths[0], 3)
        else:
            os.utime(paths[0], ns=(1, 1))
        load_or_build(paths, "test", build)
        load_or_build(paths, "test", build)
        assert build.calls == 2
        assert len(sidecars(paths[0].parent)) == 1

    def test_is_another_for_another_purpose_other_files_and_another_order(self, paths):
        asked = [(paths, "test 1"), (paths, "test 2"), (paths[:1], "test 1"), (paths[::-1], "test 1")]
        for number, (files, purpose) in enumerate(asked):
            load_or_build(files, purpose, Build({"n": np.array(number)}))
        for number, (files, purpose) in enumerate(asked):
            assert load_or_build(files, purpose, Build({}))["n"] == number

    def test_of_files_found_in_a_folder_replaces_that_of_those_found_before(self, paths):
        folder = paths[0].parent
        (folder / "c").touch()
        for number, files in enumerate((paths, [*paths, folder / "c"], paths[:1])):
            built = load_or_build(files, "test", Build({"n": np.array(number)}), origin=[folder])
            assert built["n"] == number
            assert len(sidecars(folder)) == 1
        assert load_or_build(paths[:1], "test", Build({}), origin=[folder])["n"] == 2

    def test_of_another_origin_or_purpose_replaces_none(self, paths):
        asked = [("test 1", paths[:1]), ("test 1", paths[1:]), ("test 2", paths[:1]), ("test 1", ())]
        for number, (purpose, origin) in enumerate(asked):
            load_or_build(paths, purpose, Build({"n": np.array(number)}), origin=origin)
        for number, (purpose, origin) in enumerate(asked):
            assert load_or_build(paths, purpose, Build({}), origin=origin)["n"] == number

    def test_moves_with_the_data(self, paths, tmp_path):
        load_or_build(paths, "test", Build())
        shutil.move(paths[0].parent, tmp_path / "elsewhere")
        build = Build()
        load_or_build([tmp_path / "elsewhere" / path.name for path in paths], "test", build)
        assert build.calls == 0

    def test_lies_in_the_folder_that_the_files_share(self, tmp_path):
        files = [tmp_path / "ab" / "x" / "1", tmp_path / "ac" / "2"]
        for file in files:
            file.parent.mkdir(parents=True)
            file.touch()
        load_or_build(files, "test", Build())
        assert len(sidecars(tmp_path)) == 1

    def test_takes_names_in_any_script_and_of_no_encoding(self, tmp_path):
        files = [tmp_path / "猫", tmp_path / os.fsdecode(b"\xff\xfe")]
        for file in files:
            file.touch()
        build = Build()
        for _ in range(2):
            load_or_build(files, "猫 1", build)
        assert build.calls == 1

    def test_of_the_same_files_may_be_built_in_several_threads_at_once(self, paths):
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(load_or_build(paths, "test", Build())))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        assert all(equal(each, ARRAYS) for each in results)
        assert len(sidecars(paths[0].parent)) == 1

    def test_that_is_used_can_be_watched_and_built_anew(self, paths):
        build = Build()
        load_or_build(paths, "test", build)
        for rebuild in (False, True):
            with watched(rebuild=rebuild) as used:
                load_or_build(paths, "test", build)
            assert [(each.path, each.built) for each in used] == [(sidecars(paths[0].parent)[0], rebuild)]
        load_or_build(paths, "test", build)
        assert build.calls == 2
        assert len(used) == 1

    def test_holds_no_objects(self, paths):
        with pytest.raises(ValueError, match="Object arrays"):
            load_or_build(paths, "test", Build({"x": np.array([{}])}))

    def test_passes_on_what_building_raises_and_writes_nothing(self, paths):
        def build():
            raise DataError("no such thing")

        with pytest.raises(DataError, match="no such thing"):
            load_or_build(paths, "test", build)
        assert sidecars(paths[0].parent) == []


class TestDataThatCannotBeWrittenTo:
    def test_have_their_index_in_the_users_cache(self, monkeypatch):
        with tempfile.TemporaryDirectory() as folder:  # those of tests are closed to other users
            data, cache = Path(folder, "data"), Path(folder, "cache")
            data.mkdir()
            (data / "file").touch()
            cache.mkdir()
            for each, mode in ((folder, 0o755), (data, 0o555), (cache, 0o777)):
                Path(each).chmod(mode)
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
            build = Build()
            with as_ordinary_user():
                for _ in range(2):
                    assert equal(load_or_build([data / "file"], "test", build), ARRAYS)
            assert build.calls == 1
            assert sidecars(data) == []
            assert len(list((cache / "foveal" / "indexes").iterdir())) == 1

    def test_and_no_cache_either_are_indexed_each_time(self, paths, cache):
        load_or_build(paths, "test", Build())
        put_folder_in_place(*sidecars(paths[0].parent))
        cache.parent.mkdir(parents=True)
        cache.touch()
        build = Build()
        for _ in range(2):
            assert equal(load_or_build(paths, "test", build), ARRAYS)
        assert build.calls == 2

    def test_are_known_in_the_cache_by_their_whole_path(self, tmp_path, cache):
        for number, name in enumerate(("x", "y")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").touch()
            os.utime(tmp_path / name / "file", ns=(5, 5))
            load_or_build([tmp_path / name / "file"], "test", Build())
            put_folder_in_place(*sidecars(tmp_path / name))
            load_or_build([tmp_path / name / "file"], "test", Build({"n": np.array(number)}))
        assert len(sidecars(cache)) == 2
        for number, name in enumerate(("x", "y")):
            assert load_or_build([tmp_path / name / "file"], "test", Build({}))["n"] == number


class TestFiles:
    def test_have_states_of_size_and_time(self, paths):
        os.utime(paths[1], ns=(3, 12_345_678_901))
        found = states(paths)
        assert found.dtype == np.int64
        assert found.tolist() == [[10, paths[0].stat().st_mtime_ns], [10, 12_345_678_901]]
        assert states([]).shape == (0, 2)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("none", "there is no such file"),
            ("a/b", "cannot be opened: Not a directory"),
            ("", "is a folder"),
        ],
    )
    def test_that_are_none_are_refused_by_name(self, paths, name, reason):
        path = paths[0].parent / name
        with pytest.raises(DataError) as caught:
            load_or_build([*paths, path], "test", Build())
        assert str(caught.value).startswith(f"{path}: {reason}")

    def test_of_names_that_are_no_text_are_named_printably(self, tmp_path):
        with pytest.raises(DataError, match=r"\\xff: there is no such file") as caught:
            states([tmp_path / os.fsdecode(b"\xff")])
        str(caught.value).encode()

    @pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"x"), Path.unlink])
    def test_that_change_while_they_are_indexed_are_an_error(self, paths, change):
        with pytest.raises(DataError) as caught:
            load_or_build(paths, "test", lambda: change(paths[1]) and ARRAYS)
        assert str(paths[1]) in str(caught.value)
        assert sidecars(paths[0].parent) == []


class TestASidecarThatIsDamagedIsBuiltAgain:
    @pytest.fixture
    def sidecar(self, paths):
        load_or_build(paths, "test", Build())
        (path,) = sidecars(paths[0].parent)
        return path

    def check(self, paths, sidecar, content):
        """Whatever the sidecar's content, the arrays are right; whether they were built again."""
        sidecar.write_bytes(content)
        build = Build()
        assert equal(load_or_build(paths, "test", build), ARRAYS)
        return build.calls == 1

    def test_where_it_is_cut_off_anywhere(self, paths, sidecar):
        whole = sidecar.read_bytes()
        for length in range(0, len(whole), 17):
            assert self.check(paths, sidecar, whole[:length])

    def test_where_any_byte_of_an_array_is_flipped(self, paths, sidecar):
        whole = sidecar.read_bytes()
        rebuilt = 0
        for place in range(0, len(whole), 9):
            damaged = bytearray(whole)
            damaged[place] ^= 0x41
            rebuilt += self.check(paths, sidecar, damaged)
        assert rebuilt > len(whole) / 9 * 0.7  # the rest are dates and the like, of which nothing depends

    @pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), bytes(1000), b"PK\x03\x04" * 100])
    def test_where_it_is_something_else(self, paths, sidecar, content):
        assert self.check(paths, sidecar, content)

    def test_where_it_is_a_folder(self, paths, sidecar):
        put_folder_in_place(sidecar)
        build = Build()
        assert equal(load_or_build(paths, "test", build), ARRAYS)
        assert build.calls == 1

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904,), }",
            "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1000,), }",
            "{'descr': '<i8', 'fortran_order': False, 'shape': __import__('os'), }",
            "(" * 5000,
        ],
    )
    def test_where_an_array_claims_what_is_not_there(self, paths, sidecar, header):
        member = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(8)
        content = io.BytesIO(sidecar.read_bytes())
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr("more.npy", member)
        assert self.check(paths, sidecar, content.getvalue())

    def test_where_it_unpacks_to_more_than_it_weighs(self, paths, sidecar):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("offsets.npy", bytes(1 << 20))
        assert self.check(paths, sidecar, content.getvalue())

    def test_where_it_is_of_other_files(self, paths, sidecar):
        load_or_build(paths[:1], "test", Build({"n": np.array(1)}))
        (other,) = (path for path in sidecars(paths[0].parent) if path != sidecar)
        assert self.check(paths, sidecar, other.read_bytes())
