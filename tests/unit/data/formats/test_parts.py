from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from tests.privileges import as_ordinary_user

from foveal.data.formats.parts import find_parts, walk
from foveal.errors import DataError


@pytest.fixture
def make(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def found(path, suffixes=(".csv",), **patterns):
    """The parts, with names relative to the test's folder."""
    base = path if path.is_dir() else path.parent
    parts = find_parts(path, suffixes, {"train": None, "validation": None, "test": None} | patterns)
    assert list(parts) == [name for name in ("train", "validation", "test") if name in parts]
    return {name: [os.path.relpath(file, base) for file in files] for name, files in parts.items()}


def refusal(path, suffixes=(".csv",), **patterns):
    with pytest.raises(DataError) as caught:
        found(path, suffixes, **patterns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestAFile:
    @pytest.mark.parametrize("name", ["a.csv", "test.csv", "no ending", "[1-2] *.csv", ".hidden"])
    def test_is_the_train_part_whatever_its_name(self, make, name):
        assert found(make(name) / name) == {"train": [name]}

    def test_wins_over_the_pattern_that_its_name_is(self, make):
        folder = make("x[1].csv", "x1.csv")
        assert found(folder / "x[1].csv") == {"train": ["x[1].csv"]}

    def test_may_have_others_beside_it_as_parts(self, make):
        folder = make("a.csv", "b.csv", "c.csv")
        assert found(folder / "a.csv", test="b.csv") == {"train": ["a.csv"], "test": ["b.csv"]}

    def test_that_is_not_there_is_refused(self, tmp_path):
        assert refusal(tmp_path / "a.csv") == f"{tmp_path / 'a.csv'}: there is no such file or folder"


class TestAFolder:
    def test_of_names_without_words_is_the_train_part(self, make):
        assert found(make("b.csv", "sub/a.csv", "training.csv", "testimony.csv")) == {
            "train": ["b.csv", "sub/a.csv", "testimony.csv", "training.csv"]
        }

    @pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Val", "VALIDATION"])
    @pytest.mark.parametrize("name", ["{}.csv", "{}-1.csv", "{}_x.csv", "{}7.csv", "{}/a.csv", "{}/b/a.csv"])
    def test_has_a_validation_part_where_a_name_or_folder_says_so(self, make, word, name):
        name = name.format(word)
        assert found(make("train.csv", name)) == {"train": ["train.csv"], "validation": [name]}

    @pytest.mark.parametrize("name", ["test.csv", "eval-1.csv", "test/train.csv", "train/test/a.csv"])
    def test_has_a_test_part_where_a_name_or_the_nearest_folder_says_so(self, make, name):
        assert found(make("train.csv", name)) == {"train": ["train.csv"], "test": [name]}

    def test_trains_on_what_is_in_no_other_part(self, make):
        assert found(make("data.csv", "test.csv")) == {"train": ["data.csv"], "test": ["test.csv"]}

    def test_sorts_numbers_by_value(self, make):
        names = ["a1.csv", "a2.csv", "a02.csv", "a10.csv", "a10b.csv", "b.csv"]
        assert found(make(*names)) == {
            "train": ["a1.csv", "a02.csv", "a2.csv", "a10.csv", "a10b.csv", "b.csv"]
        }

    def test_takes_shards_under_the_ending_before_their_number(self, make):
        names = [f"x.tfrecord-{i:05}-of-00003" for i in range(3)]
        assert found(make(*names, "x.txt-00000-of-00001"), (".tfrecord", ".tfrecords")) == {"train": names}

    def test_ignores_other_files_and_hidden_ones(self, make):
        folder = make("a.CSV", "a.txt", ".b.csv", ".foveal/c.csv", "README")
        assert found(folder) == {"train": ["a.CSV"]}

    def test_takes_names_in_any_script(self, make):
        names = ["猫/données №1.csv", os.fsdecode(b"\xff.csv")]
        assert set(found(make(*names))["train"]) == set(names)

    def test_follows_links_but_no_loops(self, make, tmp_path):
        folder = make("data/a/1.csv", "data/b/2.csv", "pool/3.csv") / "data"
        for link, target in (
            ("a/up", folder),
            ("a/b", folder / "b"),
            ("b/a", folder / "a"),
            ("self", "self"),
        ):
            (folder / link).symlink_to(target)
        (folder / "pool").symlink_to(tmp_path / "pool")
        assert found(folder) == {"train": ["a/1.csv", "a/b/2.csv", "b/2.csv", "b/a/1.csv", "pool/3.csv"]}

    def test_with_nothing_of_the_kind_is_refused(self, make):
        folder = make("a.txt")
        assert refusal(folder, (".csv", ".tsv")) == f"{folder}: no file in it ends in .csv or .tsv"

    def test_that_has_only_a_test_part_is_refused(self, make):
        assert refusal(make("test.csv", "val.csv")).endswith("and none to train on")

    def test_with_a_file_of_no_part_beside_a_train_part_is_refused_by_its_name(self, make):
        folder = make("train.csv", "more.csv")
        assert refusal(folder).startswith(f"{folder / 'more.csv'}: its name tells no part")

    def test_below_it_that_cannot_be_read_is_refused_by_its_name(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            (folder / "closed").mkdir(mode=0o700)
            with as_ordinary_user():
                message = refusal(folder)
            assert message == f"{folder / 'closed'}: the folder cannot be read: Permission denied"


class TestAPattern:
    def test_is_all_that_it_matches(self, make):
        folder = make("x/a-1.csv", "x/a-10.csv", "x/a-9.csv", "x/b.csv", "x/.a-3.csv", "y/a-1.csv")
        (folder / "x" / "a-folder.csv").mkdir()
        assert found(folder / "x" / "a-*.csv") == {"train": ["a-1.csv", "a-9.csv", "a-10.csv"]}
        assert found(folder / "?" / "a-1.csv")["train"] == ["../x/a-1.csv", "../y/a-1.csv"]

    def test_may_cross_folders(self, make):
        folder = make("a/1.csv", "b/c/2.csv")
        (folder / "b" / "up").symlink_to(folder)
        assert found(folder / "**" / "*.csv")["train"] == ["../a/1.csv", "../b/c/2.csv"]

    def test_of_one_part_is_what_is_trained_on_whatever_its_name(self, make):
        assert found(make("test-1.csv", "test-2.csv") / "test-*.csv") == {
            "train": ["test-1.csv", "test-2.csv"]
        }

    def test_of_several_parts_is_split_by_their_names(self, make):
        assert found(make("train.csv", "test.csv") / "*.csv") == {
            "train": ["train.csv"],
            "test": ["test.csv"],
        }

    @pytest.mark.parametrize("pattern", ["*.csv", "[", "none/*"])
    def test_that_matches_nothing_is_refused(self, tmp_path, pattern):
        assert refusal(tmp_path / pattern) == f"{tmp_path / pattern}: no file matches this"

    def test_that_is_none_is_refused(self, tmp_path):
        assert "not a pattern" in refusal(tmp_path / "**x" / "a")


class TestTheUsersPatterns:
    def test_decide_and_names_do_not(self, make):
        folder = make("train.csv", "test.csv", "x/1.csv", "x/2.csv", "y.csv")
        assert found(
            folder, train="test.csv", validation=["x/2*", "y.csv", "x/*2.csv"], test="train.csv"
        ) == {
            "train": ["test.csv"],
            "validation": ["x/2.csv", "y.csv"],
            "test": ["train.csv"],
        }

    def test_leave_the_rest_to_train_on(self, make):
        folder = make("a.csv", "b.csv", "c.csv")
        assert found(folder, test="b.csv") == {"train": ["a.csv", "c.csv"], "test": ["b.csv"]}
        assert found(folder / "[ab].csv", test="b.csv") == {"train": ["a.csv"], "test": ["b.csv"]}

    def test_may_name_a_folder(self, make):
        folder = make("a/1.csv", "b/2.csv", "b/3.txt")
        assert found(folder, train="a", test="b") == {"train": ["a/1.csv"], "test": ["b/2.csv"]}

    def test_that_match_nothing_are_refused(self, make):
        folder = make("a.csv")
        assert refusal(folder, test="b*.csv") == f"{folder / 'b*.csv'}: no file matches this"

    def test_that_leave_nothing_are_refused(self, make):
        assert refusal(make("a.csv"), test="*.csv").endswith("the patterns leave nothing to train on")

    def test_with_a_file_in_two_parts_are_refused(self, make):
        folder = make("a.csv", "b.csv")
        (folder / "c.csv").symlink_to(folder / "a.csv")
        for test in ("a.csv", "c.csv"):
            message = refusal(folder, train=["a.csv", "b.csv"], test=test)
            assert message == f"{folder / test}: is in the train and in the test part"


def test_walking_gives_names_in_order_and_links_that_lead_nowhere_apart(make):
    folder = make("b/2", "b/1", "a/x", ".hidden/y", ".z")
    (folder / "a" / "gone").symlink_to("nowhere")
    (folder / "a" / "self").symlink_to("self")
    (folder / "a" / "link").symlink_to("x")
    os.mkfifo(folder / "pipe")
    walked = [(os.path.relpath(each.path, folder), *each[1:]) for each in walk(str(folder))]
    assert walked == [
        (".", ["a", "b"], [], []),
        ("a", [], ["link", "x"], ["gone", "self"]),
        ("b", [], ["1", "2"], []),
    ]
