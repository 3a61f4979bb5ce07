"""Networks that take first weights from training images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import foveal
from foveal.data.catalog import open_data
from foveal.data.source import ArraySource, DataSet
from foveal.device import resolve_machine
from foveal.errors import RecipeError
from foveal.recipe import Recipe
from foveal.reproducibility.history import open_learner, read_history, restore
from foveal.training.learner import Learner
from foveal.training.loop import train


class Centred(nn.Module):
    """Takes off the mean image."""

    initial_examples = 50

    def __init__(self, num_classes, image_shape):  # noqa: ARG002 - what a factory is given
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 8, 8))
        self.logits = nn.Linear(64, num_classes)
        self.calls = 0

    def initialise_from(self, images):
        assert images.dtype == torch.float32
        self.calls += 1
        self.mean.copy_(images.mean(dim=0, keepdim=True))

    def forward(self, images):
        return self.logits((images - self.mean).flatten(1))


def recipe(**changes):
    values = {
        "name": "centred",
        "batch_size": 20,
        "steps": 6,
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "model": {"name": f"{__name__}:Centred"},
        "augmentation": [{"name": "translate", "pixels": 2}],
        "normalization": {"mean": [0.25], "deviation": [0.5]},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "evaluation": {"every": "never", "final": False},
        "ema": {"decay": 0.9},
    }
    return resolve_machine(Recipe.model_validate(values | changes))


def test_they_see_the_first_images_undistorted_and_normalised_once():
    chosen = recipe()
    data = open_data(chosen.data)
    learner = Learner(chosen, data)
    learner.initialise()
    pixels = data.train.read(np.arange(50)).images.astype(np.float64)
    expected = (pixels.mean(axis=0) / 255 - 0.25) / 0.5
    np.testing.assert_allclose(learner.model.mean[0, 0].numpy(), expected[..., 0], atol=1e-6)
    assert learner.model.calls == 1


def test_they_see_all_images_where_there_are_fewer():
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
    learner = Learner(recipe(batch_size=2), DataSet(ArraySource(images, np.arange(3), ("a", "b", "c"))))
    learner.initialise()
    expected = (images.mean(axis=0)[..., 0] / 255 - 0.25) / 0.5
    np.testing.assert_allclose(learner.model.mean[0, 0].numpy(), expected, atol=1e-6)


def test_a_resumed_or_replayed_run_takes_them_from_its_checkpoint(tmp_path):
    train(recipe(steps=4), tmp_path / "run")
    history = read_history(tmp_path / "run", print)
    learner = open_learner(history)
    assert restore(learner, history, 4, print) == 4
    assert learner.model.calls == 0
    assert learner.model.mean.abs().sum() > 0


def test_a_run_without_checkpoints_gets_the_same_again(tmp_path):
    for name in ("one", "two"):
        train(recipe(steps=3), tmp_path / name)
    name = "checkpoints/step-000000003/model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_stream_cannot_show_them():
    def examples():
        while True:
            yield np.zeros((8, 8, 1), np.uint8), 0

    stream = foveal.StreamSource(examples, classes=("a", "b"), image_shape=(8, 8, 1))
    chosen = recipe(logging={"every": "1 step"}, checkpoint={"every": "never"})
    with pytest.raises(RecipeError, match=r"stream, which cannot be read twice: .*Centred"):
        Learner(chosen, DataSet(stream))
