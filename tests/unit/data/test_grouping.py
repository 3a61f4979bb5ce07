"""Splits by what images show: like ones stay together, every class gives its share."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from foveal.data import grouping
from foveal.data.catalog import open_data
from foveal.data.formats.folder import open_folder
from foveal.data.grouping import same_pictures, split_alike
from foveal.data.source import ArraySource, labels_of
from foveal.errors import DataError, RecipeError
from foveal.recipe import DataPart

SHARES = {"validation": 0.2, "test": 0.1}


def scene(name, size=(96, 128)):
    """A picture that looks like none of another name: large soft spots."""
    seed = zlib.crc32(str(name).encode())
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture
def album(tmp_path):
    """30 scenes of two classes, each as a JPEG, a smaller JPEG and a brighter PNG."""
    for number in range(30):
        folder = tmp_path / "album" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = scene(number)
        picture.save(folder / f"{number}-a.jpg", quality=90)
        picture.resize((100, 75)).save(folder / f"{number}-b.jpg", quality=60)
        picture.point(lambda value: min(255, value + 6)).save(folder / f"{number}-c.png")
    return tmp_path / "album"


def scenes(source):
    """The numbers of the scenes in a source."""
    return [source.key(index).rsplit("/", 1)[1].split("-")[0] for index in range(len(source))]


def test_pictures_that_look_alike_come_to_one_side_and_every_class_gives_its_share(album):
    source = open_folder(album).train
    parts = split_alike(source, SHARES)
    found = {name: set(scenes(part)) for name, part in parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 66, "validation": 18, "test": 6}
    assert not found["train"] & found["validation"] | found["train"] & found["test"]
    for name, count in (("validation", 9), ("test", 3)):
        assert np.bincount(labels_of(parts[name])).tolist() == [count, count]


def test_the_same_split_comes_from_what_is_kept_and_pictures_are_looked_at_once(album, monkeypatch):
    source = open_folder(album).train
    first = split_alike(source, SHARES)
    monkeypatch.setattr(grouping, "_thumbnails", lambda *_: pytest.fail("looked at again"))
    again = split_alike(open_folder(album).train, SHARES)
    assert {name: scenes(part) for name, part in again.items()} == {
        name: scenes(part) for name, part in first.items()
    }


def test_what_was_kept_and_is_damaged_is_made_anew(album, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_folder(album).train
    first = scenes(split_alike(source, SHARES)["validation"])
    (kept,) = (tmp_path / "cache").rglob("thumbnails/*.npz")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255
    kept.write_bytes(content)
    assert scenes(split_alike(source, SHARES)["validation"]) == first


def test_another_seed_gives_another_split(album):
    source = open_folder(album).train
    first, second = (set(scenes(split_alike(source, SHARES, seed)["validation"])) for seed in (0, 1))
    assert first != second


def test_a_class_of_two_pictures_gives_one_and_a_class_of_one_none(tmp_path):
    for name, count in (("many", 10), ("two", 2), ("one", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            scene(f"{name} {number}").save(tmp_path / name / f"{number}.png")
    source = open_folder(tmp_path).train
    parts = split_alike(source, {"validation": 0.2})
    held = dict(zip(source.classes, np.bincount(labels_of(parts["validation"]), minlength=3), strict=True))
    assert held == {"many": 2, "two": 1, "one": 0}


def test_equal_pictures_under_two_labels_come_to_one_side_and_are_named(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            shown = number if number < 2 else f"{name} {number}"
            scene(shown).save(tmp_path / name / f"{number}.png")
    source = open_folder(tmp_path).train
    labels, pairs = labels_of(source), same_pictures(source)
    assert [(source.key(a)[-9:], source.key(b)[-9:]) for a, b in pairs if labels[a] != labels[b]] == [
        ("cat/0.png", "dog/0.png"),
        ("cat/1.png", "dog/1.png"),
    ]
    for part in split_alike(source, {"validation": 0.34}).values():
        here = {part.key(index)[-9:] for index in range(len(part))}
        for number in range(2):
            assert (f"cat/{number}.png" in here) == (f"dog/{number}.png" in here)


def test_damaged_pictures_are_like_no_other_and_split_all_the_same(album):
    for name in ("even/0-a.jpg", "odd/1-a.jpg"):
        content = (album / name).read_bytes()
        (album / name).write_bytes(content[: len(content) // 2])
    source = open_folder(album).train
    assert sum(map(len, split_alike(source, SHARES).values())) == len(source)


def test_rows_of_numbers_are_split_by_their_bytes():
    values = np.random.default_rng(0).normal(size=(40, 1, 1, 5)).astype(np.float32)
    values[20:] = values[:20]
    source = ArraySource(values, np.arange(40) % 20 // 10, ("a", "b"))
    held = split_alike(source, {"validation": 0.2})["validation"]
    keys = sorted(int(held.key(index).rsplit(" ", 1)[1]) for index in range(len(held)))
    assert len(keys) == 8
    assert sorted(key % 20 for key in keys)[::2] == sorted(key % 20 for key in keys)[1::2]


class TestInARecipe:
    """``data.split`` with ``alike`` and ``only_missing``."""

    def part(self, path, **split):
        return DataPart.model_validate({"name": "folder", "path": str(path), "split": split})

    def test_alike_images_stay_together(self, album):
        data = open_data(self.part(album, validation=0.2, alike=True))
        assert not set(scenes(data.train)) & set(scenes(data.validation))

    def test_a_part_that_is_there_is_left_alone_where_that_is_asked_for(self, album):
        for name in ("train", "val"):
            for label in ("even", "odd"):
                (album.parent / "both" / name / label).mkdir(parents=True)
                scene(name + label).save(album.parent / f"both/{name}/{label}/x.png")
        with pytest.raises(RecipeError, match="validation part of their own"):
            open_data(self.part(album.parent / "both", validation=0.2))
        data = open_data(self.part(album.parent / "both", validation=0.2, only_missing=True))
        assert (len(data.train), len(data.validation), data.test) == (2, 2, None)

    def test_where_no_class_has_two_images_that_differ_nothing_can_be_held_out(self, tmp_path):
        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            for name in ("x.png", "y.png"):
                scene(label).save(tmp_path / label / name)
        with pytest.raises(DataError, match="too few images that differ") as refused:
            open_data(self.part(tmp_path, validation=0.2, alike=True))
        assert str(tmp_path) in str(refused.value)
