"""``foveal train --init-from``: other weights to start from, and what does not learn."""

from __future__ import annotations

import shutil

import pytest
import torch

from foveal.checkpoints.layout import read_part
from foveal.recipe import from_toml

LAST = "checkpoints/step-000000040"


@pytest.fixture
def begin(foveal, tiny, tmp_path):
    """Train a new run for two steps, with more arguments."""
    return lambda *arguments: foveal("train", tiny, "--run", tmp_path / "new", "--steps", 2, *arguments)


@pytest.fixture
def weights(trained_run, tmp_path):
    """The run's weights as a PyTorch trainer might save them, in a file whose name needs quotes."""
    path = tmp_path / """it's "mine" \\ #1 = é.pt"""
    tensors = read_part(trained_run / LAST, "model")
    torch.save({"epoch": 4, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    return path


def test_a_run_starts_from_weights_and_says_what_was_loaded(begin, trained_run, tmp_path):
    outcome = begin(
        "--init-from", trained_run, "--freeze", "^features", "--freeze", "^logits.bias"
    ).succeeded()
    assert "starting from" in outcome.err
    assert "step-000000040 (averaged weights): loaded 14 tensors" in outcome.err
    recipe = from_toml(tmp_path / "new/recipe.toml")
    assert recipe.init.path == trained_run
    assert len(recipe.init.sha256) == 64
    assert recipe.freeze == ("^features", "^logits.bias")
    before = read_part(trained_run / LAST, "model") | read_part(trained_run / LAST, "ema")
    after = read_part(tmp_path / "new/checkpoints/step-000000002", "model")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"logits.weight"}
    slots = read_part(tmp_path / "new/checkpoints/step-000000002", "optimizer")
    assert {name.partition("/")[2] for name in slots} == {"logits.weight"}


def test_any_path_and_any_expression_reach_the_recipe_as_they_are(begin, weights, tmp_path):
    arguments = (
        "--init-map",
        r"^features\.(\d+)=body.\1",
        "--init-map",
        "^body=features",
        "--init-skip",
        "['\"]|^logits",
    )
    outcome = begin("--init-from", weights.name, *arguments, "--init-partial").succeeded()
    recipe = from_toml(tmp_path / "new/recipe.toml")
    assert recipe.init.path == weights
    assert recipe.init.map == (r"^features\.(\d+)=body.\1", "^body=features")
    assert recipe.init.skip == ("['\"]|^logits",)
    assert recipe.init.partial
    for words in (
        "state_dict",
        "'module.'",
        "skipped, first values kept: logits.weight, logits.bias: init.skip",
    ):
        assert words in outcome.err


def test_the_same_command_again_goes_on_and_reads_the_weights_no_more(foveal, tiny, tmp_path, weights):
    command = ("train", tiny, "--run", tmp_path / "new", "--init-from", weights, "--steps")
    foveal(*command, 2).succeeded()
    weights.unlink()
    outcome = foveal(*command, 3).succeeded()
    assert "continuing from step 2" in outcome.err
    assert "starting from" not in outcome.err


def test_a_run_that_begins_again_must_find_the_very_same_file(begin, weights, tmp_path):
    begin("--init-from", weights).succeeded()
    shutil.rmtree(tmp_path / "new/checkpoints")
    begin("--init-from", weights).succeeded()
    shutil.rmtree(tmp_path / "new/checkpoints")
    content = torch.load(weights, weights_only=True)
    torch.save(content | {"epoch": 5}, weights)
    words = (str(weights), "is not the file that the run was begun with", "--fresh")
    begin("--init-from", weights).refused(1, *words)
    begin("--init-from", weights, "--fresh").succeeded()


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (1, ["--init-from", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (1, ["--init-from", "."], ["neither a run", "nor a checkpoint"]),
        (2, ["--init-from", "WEIGHTS", "--init-skip", "^logit$"], ["init.skip", "did you mean 'logits'?"]),
        (2, ["--init-from", "WEIGHTS", "--init-map", "^featurs=x"], ["init.map", "did you mean 'features'?"]),
        (2, ["--init-from", "WEIGHTS", "--init-map", "features"], ["init.map", "REGEX=REPLACEMENT"]),
        (2, ["--init-from", "WEIGHTS", "--init-skip", "("], ["init.skip", "not a regular expression"]),
        (
            1,
            ["--init-from", "WEIGHTS", "--init-map", "^features=x"],
            ["lacks features.0.weight", "--init-map"],
        ),
        (2, ["--freeze", "^featurs"], ["freeze", "did you mean 'features'?"]),
        (2, ["--freeze", "."], ["freeze", "nothing to learn"]),
        (2, ["--init-skip", "^logits"], ["init.path is missing"]),
        (2, ["--set", "phases=[{steps=2, freeze=['^features']}]"], ["phases", "2 steps of a run of 2"]),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_leaves_no_run(begin, weights, tmp_path, code, arguments, words):
    begin(*(weights if each == "WEIGHTS" else each for each in arguments)).refused(code, *words)
    assert not (tmp_path / "new").exists()
