"""What a review says, against what the network answers and the files show."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.cli import app  # noqa: F401 - the command below is one of its
from foveal.data.catalog import open_data
from foveal.errors import DataError
from foveal.recipe import DataPart
from foveal.reviewing import Review, review


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files: 0 and 1 in plenty, 7 rarely, one 0 among the 1 too, and a file that is no image."""
    root = tmp_path_factory.mktemp("review") / "digits"
    digits = open_data(DataPart(name="digits")).train
    for label, count in ((0, 60), (1, 60), (7, 8)):
        (root / str(label)).mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(digits.targets == label)[:count]):
            Image.fromarray(digits.images[index, :, :, 0]).save(root / str(label) / f"{number}.png")
    (root / "1/wrong.png").write_bytes((root / "0/5.png").read_bytes())
    (root / "1/broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    changes = ["data={name='folder', split={validation=0.25, alike=true}}", f"data.path={folder}", "epochs=6"]
    changes += ["threads=1", "precision=float32", "evaluation.calibrate=true", "evaluation.final=false"]
    path = tmp_path_factory.mktemp("review") / "run"
    foveal.train(foveal.override_recipe(foveal.load_recipe("digits"), changes), path)
    return path


def test_numbers_agree_with_an_evaluation_and_images_with_predictions(run):
    found = review(run, shown=100)
    measured = foveal.evaluate(run, split="validation")
    assert (found.split, found.examples) == ("validation", measured.examples)
    assert found.right == round(measured.accuracy * measured.examples)
    assert len(found.mistakes) == found.examples - found.right
    assert sum(count for _, _, count in found.confused) <= len(found.mistakes)
    predictions = foveal.predict(run, [mistake.key for mistake in found.mistakes], top=1)
    for mistake, prediction in zip(found.mistakes, predictions, strict=True):
        (guess,) = prediction.top
        assert guess.label == mistake.predicted != mistake.label
        assert guess.probability == pytest.approx(mistake.probability, abs=1e-4)
        assert f"/{mistake.label}/" in mistake.key


def test_what_is_wrong_with_the_data_is_named(run, folder):
    found = review(run)
    assert found.conflicts == ((str(folder / "0/5.png"), str(folder / "1/wrong.png")),)
    assert found.unreadable == 1
    text = "\n".join(found.lines())
    assert f"{folder}/0/5.png and {folder}/1/wrong.png: the same picture under two labels" in text
    assert "files that cannot be read, which foveal data verify names: 1" in text
    assert "classes with few images, of which more would help: 7 (6)" in text
    assert "these images also decided when training stopped" in text
    json.dumps(found.report())


def test_without_a_part_that_was_held_out_there_is_nothing_to_expect(tmp_path, folder):
    changes = [f"data={{name='folder', path='{folder}'}}", "epochs=1", "threads=1", "precision=float32"]
    recipe = foveal.override_recipe(foveal.load_recipe("digits"), changes)
    foveal.train(recipe, tmp_path / "run")
    with pytest.raises(DataError, match="no part that was held out"):
        review(tmp_path / "run")


@pytest.mark.parametrize(
    ("right", "examples", "expected"),
    [(81, 100, (0.7222, 0.8749)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))],
)
def test_the_interval_is_wilsons(right, examples, expected):
    values = dict.fromkeys(("run", "step", "counts", "split", "sure", "sure_right"))
    rest = dict.fromkeys(("recall", "confused", "mistakes", "conflicts", "unreadable"))
    found = Review(examples=examples, right=right, **values, **rest)
    assert found.interval == pytest.approx(expected, abs=1e-4)
