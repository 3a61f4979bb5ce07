"""``foveal train --init-from`` a TensorFlow checkpoint: training goes on where TensorFlow left it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import foveal as library
from foveal.checkpoints.layout import read_part
from foveal.data.catalog import open_data
from foveal.device import resolve_machine
from foveal.training.learner import Learner


@pytest.fixture
def go_on(foveal, shared_data, fixtures, tmp_path):
    """Go on with the tutorial's network in a run folder, until a step."""

    def run(name, steps, *arguments):
        source = fixtures / "mnist_convnet_model"
        command = ("train", "mnist-tutorial", "--init-from", source, "--data", shared_data / "mnist")
        settings = ("evaluation.every=never", "evaluation.final=false", "threads=1", "precision=float32")
        quick = [argument for setting in settings for argument in ("--set", setting)]
        return foveal(*command, *quick, "--run", tmp_path / name, "--steps", steps, *arguments)

    return run


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_goes_on_at_tensorflows_step_and_logs_from_there(go_on, tmp_path):
    outcome = go_on("run", 20_004, "--set", "logging.every=1 step").succeeded()
    assert "model.ckpt-20000: loaded 8 tensors" in outcome.err
    assert "going on at step 20,000" in outcome.err
    assert ": 4 steps in" in outcome.out
    assert [record["step"] for record in logged(tmp_path / "run")] == [20_001, 20_002, 20_003, 20_004]
    # 55,000 examples, 100 a step
    assert logged(tmp_path / "run")[0]["epoch"] == pytest.approx(20_001 / 550)


def test_a_restart_goes_on_from_its_own_checkpoint_to_the_same_bits(go_on, tmp_path):
    go_on("whole", 20_006).succeeded()
    go_on("parts", 20_003).succeeded()
    outcome = go_on("parts", 20_006, "--json").succeeded()
    assert "continuing from step 20003" in outcome.err
    assert outcome.document["step"] == 20_006
    assert 0 < outcome.document["examples_per_second"] < 100_000  # of six steps, not of twenty thousand
    model, other = (
        read_part(tmp_path / name / "checkpoints/step-000020006", "model") for name in ("whole", "parts")
    )
    assert all(torch.equal(model[name], other[name]) for name in model)


def test_the_network_that_goes_on_gives_tensorflows_logits(shared_data, fixtures):
    settings = [
        f"init={{path='{fixtures / 'mnist_convnet_model'}'}}",
        f"data.path='{shared_data / 'mnist'}'",
        "precision=float32",
    ]
    recipe = resolve_machine(library.override_recipe(library.load_recipe("mnist-tutorial"), settings))
    learner = Learner(recipe.model_copy(update={"steps": 20_200}), open_data(recipe.data))
    learner.initialise()
    expected = np.load(fixtures / "mnist_expected.npz")
    images = torch.from_numpy(expected["images"].reshape(-1, 28, 28, 1)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = learner.model.eval()(images).numpy()
    assert np.abs(found - expected["logits"]).max() < 1e-4 * np.abs(expected["logits"]).max()
    assert learner.step == 20_000


def test_a_recipe_that_ends_before_that_step_is_refused_and_leaves_nothing(go_on, tmp_path):
    go_on("run", 300).refused(2, "is of step 20,000", "--steps", "init.resume=false", after=True)
    assert not (tmp_path / "run").exists()


def test_its_weights_alone_begin_at_step_0(go_on, tmp_path):
    go_on("run", 2, "--set", "init.resume=false").succeeded()
    assert [record["step"] for record in logged(tmp_path / "run")] == [1, 2]


def test_a_network_without_a_name_map_is_refused_with_a_hint(foveal, fixtures, tmp_path):
    source = fixtures / "mnist_convnet_model"
    outcome = foveal("train", "digits", "--init-from", source, "--run", tmp_path / "run")
    outcome.refused(2, "no name map for the model 'small_cnn'", "--init-names", after=True)
