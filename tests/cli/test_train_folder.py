"""``foveal train ./FOLDER``: what people have in their folders, good and bad."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from PIL import Image

from foveal.checkpoints import pretrained
from foveal.recipe import from_toml

SIZE = "[32, 32]"
SMALL = [
    f"augmentation=[{{name='random_resized_crop', size={SIZE}}}]",
    f"preprocessing=[{{name='resize', size={SIZE}}}]",
    "batch_size=4",
    "precision=float32",
]


def scene(name, size=(60, 80)):
    """A picture that looks like none of another name."""
    random = np.random.default_rng(zlib.crc32(str(name).encode()))
    small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Six pictures of each of two classes, in names that are not only ASCII."""
    for label in ("große Hunde", "猫"):
        folder = tmp_path / "my photos!" / label
        folder.mkdir(parents=True)
        for number in range(6):
            scene(f"{label} {number}").save(folder / f"bild {number} ü.jpg")
    return tmp_path / "my photos!"


@pytest.fixture
def train(foveal, efficientnet_package):  # noqa: ARG001 - weights to start from
    def run(folder, *arguments, settings=()):
        changes = [part for each in (*SMALL, *settings) for part in ("--set", each)]
        return foveal("train", f"{folder}/", "--steps", 2, *changes, *arguments)

    return run


def test_a_folder_becomes_a_run_that_is_reviewed_and_predicts(foveal, train, photos, tmp_path):
    outcome = train(photos).succeeded()
    assert "starting from efficientnet-lite0: loaded" in outcome.err
    assert "head: fitted to the features of 10 images" in outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("runs/my-photos: 2 steps")
    assert lines[1].startswith("What to expect of runs/my-photos (step ")
    assert "of 2 validation images are recognised" in lines[2]
    assert lines[-1] == "Next: foveal predict runs/my-photos PHOTO"
    run = tmp_path / "runs/my-photos"
    recipe = from_toml(run / "recipe.toml")
    assert (recipe.name, recipe.data.path) == ("my-photos", photos)
    steps = [json.loads(line)["step"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [0, 2]
    document = foveal("predict", run, photos, "--json").succeeded().document
    assert {guess["label"] for each in document["predictions"] for guess in each["top"]} == {
        "große Hunde",
        "猫",
    }
    again = train(photos).succeeded()  # nothing is left to do
    assert again.out.splitlines()[1:] == lines[1:]
    printed = foveal("review", run, "--json").succeeded().document
    assert printed["examples"] == 2
    assert foveal("review", "runs/my-photos").succeeded().out.splitlines() == lines[1:-1]


def test_parts_that_are_there_are_used(train, photos, tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / "parted" / part).mkdir(parents=True)
        for folder in photos.iterdir():
            (tmp_path / "parted" / part / folder.name).mkdir()
            for file in sorted(folder.iterdir())[:3]:
                scene(f"{part} {file}").save(tmp_path / "parted" / part / folder.name / file.name)
    outcome = train(tmp_path / "parted").succeeded()
    assert "fitted to the features of 6 images" in outcome.err
    assert "validation accuracy" in outcome.err
    assert "of 6 test images are recognised" in outcome.out


def test_odd_images_are_learnt_from_and_what_is_none_is_left_out_and_told(train, photos):
    folder = photos / "猫"
    scene("cmyk").convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13).save(folder / "16 bit.png")
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    Image.new("L", (10_000, 10_000), 90).save(folder / "100 megapixels.png")
    (folder / "notes.txt").write_text("who is who")
    (folder / "Thumbs.db").write_bytes(b"\0" * 20)
    (folder / "no image.jpg").write_text("hello")
    (photos / "empty").mkdir()
    outcome = train(photos).succeeded()
    assert "files that cannot be read, which foveal data verify names: 1" in outcome.out
    assert "classes with few images" in outcome.out


def test_a_truncated_photograph_is_left_out_and_told(train, photos):
    file = photos / "猫/bild 0 ü.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    outcome = train(photos, "--set", "data.corrupt_budget=0.2").succeeded()
    assert f"left out: {file}" in outcome.err


def test_too_many_truncated_photographs_are_an_error(train, photos):
    for file in (photos / "猫").iterdir():
        file.write_bytes(file.read_bytes()[:-400])
    train(photos).refused(1, "more than data.corrupt_budget", after=True)


def test_the_same_picture_under_two_labels_is_told(train, photos):
    scene("both").save(photos / "große Hunde/both.png")
    scene("both").save(photos / "猫/both.png")
    outcome = train(photos).succeeded()
    assert f"{photos}/große Hunde/both.png and {photos}/猫/both.png: the same picture" in outcome.out


def remove_a_class(photos):
    for file in (photos / "猫").iterdir():
        file.unlink()


def keep_one_each(photos):
    for file in photos.glob("*/*[1-9] ü.jpg"):
        file.unlink()


def remove_all(photos):
    for file in photos.glob("*/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_a_class, ("images of one class only", "große Hunde")),
        (keep_one_each, ("too few images that differ", "at least two")),
        (remove_all, ("class, or files",)),
    ],
)
def test_too_little_is_refused_in_one_line(train, photos, spoil, words):
    spoil(photos)
    train(photos).refused(1, str(photos), *words, after=True)


def test_a_missing_package_is_named_with_what_installs_it(train, photos, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    train(photos).refused(1, "pip install 'foveal[pretrained]'", after=True)


def test_a_class_that_came_later_is_no_continuation(train, photos):
    train(photos, "--run", "run").succeeded()
    (photos / "new").mkdir()
    for number in range(3):
        scene(f"new {number}").save(photos / f"new/{number}.png")
    train(photos, "--run", "run").refused(1, "training data are not those", "--fresh", after=True)


def test_a_folder_that_is_not_there_and_one_without_a_separator_are_told(foveal, photos):
    foveal("train", "./nothing").refused(2, "nothing", "there is no such folder")
    photos.rename(photos.with_name("photos"))
    foveal("train", "photos").refused(2, "./photos")
    foveal("train", "./photos", "--data", "others").refused(2, "./photos and --data both say")
