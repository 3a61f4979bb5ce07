"""Training that diverges ends with an explanation, and no checkpoint holds numbers that are none."""

from __future__ import annotations

import pytest
from PIL import Image

from foveal.checkpoints.manager import CheckpointManager


@pytest.fixture
def train(foveal, tiny):
    return lambda *arguments: foveal("train", tiny, "--run", "run", *arguments)


def assert_all_is_finite(folder):
    manager = CheckpointManager(folder)
    for step in manager.steps():
        for part in manager.load(step).tensors.values():
            for name, tensor in part.items():
                assert bool(tensor.isfinite().all()), (step, name)


@pytest.mark.parametrize("rate", ["1e30", "1e39"])
@pytest.mark.parametrize("every", ["1 step", "1 epoch"])
def test_loss_that_is_no_number_stops_the_run(train, tmp_path, rate, every):
    settings = ("--set", f"optimizer.learning_rate={rate}", "--set", f"checkpoint.every={every}")
    outcome = train(*settings, "--steps", 5)
    if (
        rate == "1e39" and every == "1 step"
    ):  # the weights of step 1 overflow, and are looked at before a save
        expected = ("weights are not finite", "step 1")
    else:
        expected = ("loss is", "step 2")
    outcome.refused(1, *expected, "digits train record", "optimizer.learning_rate", after=True)
    assert_all_is_finite(tmp_path / "run" / "checkpoints")


def test_examples_named_are_those_of_the_step(train):
    outcome = train("--set", "optimizer.learning_rate=1e30", "--steps", 5, "--set", "batch_size=3")
    line = outcome.refused(1, after=True)
    assert line.count("digits train record") == 3


def test_weights_that_the_last_step_ruined_are_not_kept(train, tmp_path):
    outcome = train("--set", "optimizer.learning_rate=1e39", "--steps", 1)
    outcome.refused(1, "step 1", after=True)
    assert_all_is_finite(tmp_path / "run" / "checkpoints")


NETWORKS = """
import torch


class LateNan(torch.nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.logits = torch.nn.Linear(64, num_classes)
        self.calls = 0

    def forward(self, images):
        self.calls += self.training
        logits = self.logits(images.flatten(1))
        return logits * float("nan") if self.calls > 3 else logits


class EvaluatesToNan(LateNan):
    def forward(self, images):
        logits = self.logits(images.flatten(1))
        return logits if self.training else logits * float("nan")
"""


@pytest.fixture
def network(tmp_path):
    """Settings for a network of the user's own."""
    (tmp_path / "networks_that_fail.py").write_text(NETWORKS)
    return lambda name: ("--set", f"model={{name='networks_that_fail:{name}'}}")


def test_checkpoints_before_the_divergence_are_kept(foveal, train, network):
    outcome = train(*network("LateNan"), "--steps", 9, "--set", "checkpoint.every=1 step")
    outcome.refused(1, "loss is nan", "step 4", "digits train record", after=True)
    assert foveal("evaluate", "run", "--json").succeeded().document["step"] == 3


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_network_that_gives_no_numbers_is_explained(foveal, train, network, tmp_path, command):
    never = ("--set", "evaluation.every=never", "--set", "evaluation.final=false")
    train(*network("EvaluatesToNan"), "--steps", 1, *never).succeeded()
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    images = ["a.png"] if command == "predict" else []
    outcome = foveal(command, "run", *images, "--json")
    assert "a mistake in foveal" not in outcome.err
    if outcome.code == 0:
        assert outcome.document


def test_evaluation_that_gives_no_number_during_training_is_explained(train, network):
    outcome = train(*network("EvaluatesToNan"), "--steps", 2)
    assert "a mistake in foveal" not in outcome.err
