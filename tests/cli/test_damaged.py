"""Damaged checkpoints are reported and moved aside, and the newest good one is used."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES = {
    "a bit of the weights": lambda folder: flip_bit(folder / "model.safetensors"),
    "a bit of the averages": lambda folder: flip_bit(folder / "ema.safetensors"),
    "a bit of the state": lambda folder: flip_bit(folder / "state.json"),
    "weights cut off": lambda folder: cut(folder / "model.safetensors"),
    "manifest cut off": lambda folder: cut(folder / "manifest.json"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "state missing": lambda folder: (folder / "state.json").unlink(),
    "everything missing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture
def checkpoint(run_copy):
    """The folder of a step's checkpoint."""
    return lambda step: run_copy / "checkpoints" / f"step-{step:09d}"


@pytest.mark.parametrize("damage", DAMAGES)
def test_evaluate_moves_a_damaged_checkpoint_aside_and_uses_the_one_before(
    foveal, run_copy, checkpoint, snapshot, damage
):
    DAMAGES[damage](checkpoint(40))
    damaged, good = snapshot(checkpoint(40)), snapshot(checkpoint(30))
    outcome = foveal("evaluate", run_copy, "--json").succeeded()
    assert outcome.document["step"] == 30
    (line,) = outcome.err.splitlines()
    moved = run_copy / "checkpoints" / "damaged" / "step-000000040"
    assert str(checkpoint(40)) in line
    assert str(moved) in line
    assert (snapshot(moved), snapshot(checkpoint(30))) == (damaged, good)
    assert not checkpoint(40).exists()


@pytest.mark.parametrize("damage", ["a bit of the weights", "manifest cut off", "weights missing"])
def test_train_does_again_what_a_damaged_checkpoint_held(
    retrain, run_copy, trained_run, checkpoint, snapshot, damage
):
    DAMAGES[damage](checkpoint(40))
    outcome = retrain("--json").succeeded()
    assert (outcome.document["step"], outcome.document["finished"]) == (40, True)
    assert "damaged/step-000000040" in outcome.err
    assert "continuing from step 30" in outcome.err
    weights = "model.safetensors"
    again = snapshot(checkpoint(40))[weights]
    assert again == snapshot(trained_run / "checkpoints" / "step-000000040")[weights]
    steps = [json.loads(line)["step"] for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 10, 20, 30, 40]


def test_damaged_optimizer_state_is_found_when_training_goes_on(retrain, checkpoint):
    flip_bit(checkpoint(40) / "optimizer.safetensors")
    outcome = retrain("--steps", 50).succeeded()
    assert "optimizer.safetensors" in outcome.err
    assert "continuing from step 30" in outcome.err


def test_predict_uses_the_checkpoint_before_a_damaged_one(foveal, run_copy, checkpoint, tmp_path):
    flip_bit(checkpoint(40) / "model.safetensors")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    outcome = foveal("predict", run_copy, tmp_path / "a.png", "--json").succeeded()
    assert len(outcome.document["predictions"]) == 1
    assert "damaged/step-000000040" in outcome.err


def test_two_damaged_checkpoints_are_both_moved_aside(foveal, run_copy, checkpoint):
    flip_bit(checkpoint(40) / "model.safetensors")
    flip_bit(checkpoint(30) / "model.safetensors")
    outcome = foveal("evaluate", run_copy, "--json").succeeded()
    assert outcome.document["step"] == 20
    assert len(outcome.err.splitlines()) == 2


def test_evaluate_with_all_checkpoints_damaged_says_so(foveal, run_copy, checkpoint):
    for step in (20, 30, 40):
        flip_bit(checkpoint(step) / "model.safetensors")
    outcome = foveal("evaluate", run_copy)
    line = outcome.refused(1, str(run_copy), "checkpoint", "train", after=True)
    assert len(list((run_copy / "checkpoints" / "damaged").iterdir())) == 3
    assert "yet" not in line  # there were some


def test_train_with_all_checkpoints_damaged_begins_at_the_first_step(retrain, run_copy, checkpoint):
    for step in (20, 30, 40):
        flip_bit(checkpoint(step) / "model.safetensors")
    assert retrain("--json").succeeded().document["step"] == 40
    steps = [json.loads(line)["step"] for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 10, 20, 30, 40]
    assert len(list((run_copy / "checkpoints" / "damaged").iterdir())) == 3


def test_damaged_checkpoint_of_the_step_asked_for_is_an_error(foveal, run_copy, checkpoint):
    flip_bit(checkpoint(30) / "model.safetensors")
    outcome = foveal("evaluate", run_copy, "--checkpoint", 30)
    outcome.refused(1, str(checkpoint(30)), "model.safetensors", "damaged")


def test_damaged_best_checkpoint_is_reported_as_damaged(foveal, run_copy, checkpoint):
    flip_bit(checkpoint(40) / "model.safetensors")
    outcome = foveal("evaluate", run_copy, "--checkpoint", "best")
    assert "damaged/step-000000040" in outcome.err
    outcome.refused(1, "best", "latest", after=True)


def test_what_else_lies_among_the_checkpoints_is_ignored(foveal, retrain, run_copy, checkpoint):
    folder = run_copy / "checkpoints"
    (folder / "notes.txt").write_text("x")
    (folder / "step-000000099").write_text("a file")
    for name in ("other", "step-99", "step-00000009x", ".step-000000050.tmp"):
        (folder / name).mkdir()
    (checkpoint(40) / "notes.txt").write_text("x")
    assert foveal("evaluate", run_copy, "--json").succeeded().document["step"] == 40
    assert retrain("--steps", 50, "--json").succeeded().document["step"] == 50
    assert (folder / "notes.txt").exists()
    assert (folder / "other").exists()


def test_run_without_checkpoints_cannot_be_evaluated_but_trained_again(foveal, retrain, run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    foveal("evaluate", run_copy).refused(1, str(run_copy), "no checkpoint", "train")
    assert retrain("--json").succeeded().document["step"] == 40
    foveal("evaluate", run_copy).succeeded()


def test_damaged_recipe_of_a_run_is_named(foveal, retrain, run_copy, snapshot):
    (run_copy / "recipe.toml").write_text("x")
    before = snapshot(run_copy)
    for outcome in (retrain(), foveal("evaluate", run_copy)):
        outcome.refused(outcome.code or 1, str(run_copy / "recipe.toml"))
    assert snapshot(run_copy) == before


def test_damaged_log_of_evaluations_does_not_end_in_a_mistake_of_foveals(retrain, run_copy):
    (run_copy / "evaluations.jsonl").write_text("not JSON\n")
    outcome = retrain()
    assert "a mistake in foveal" not in outcome.err
    assert outcome.code == 0 or "evaluations.jsonl" in outcome.err
