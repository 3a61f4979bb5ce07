"""The recipe says what the tutorial's files say: cifar10.py, cifar10_input.py, cifar10_train.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import foveal
from foveal.data.input import evaluation_pipeline
from foveal.data.sampler import Sample
from foveal.device import resolve_machine
from foveal.recipe import override
from foveal.training.learner import Learner

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.data.source import DataSet


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
    targets = generator.integers(0, 10, 256)
    source = foveal.ArraySource(images, targets, tuple("abcdefghij"))
    return foveal.DataSet(train=source, test=source)


@pytest.fixture(scope="module")
def learner(data: DataSet) -> Learner:
    recipe = override(foveal.load_recipe("cifar10-tutorial"), ["precision=float32", "device=cpu"])
    return Learner(resolve_machine(recipe), data)


def test_the_rate_falls_tenfold_after_350_epochs_of_whole_batches(learner: Learner) -> None:
    """cifar10.py: 0.1, decayed by 0.1 every int(50000 / 128 * 350) steps, staircase."""
    rates = [learner.train_step.learning_rate(step) for step in (0, 136_717, 136_718, 273_435, 273_436)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert (learner.total_steps, learner.recipe.batch_size) == (1_000_000, 128)


def test_local3_and_local4_decay_and_nothing_else(learner: Learner) -> None:
    groups = learner.train_step.optimizer.param_groups
    decayed = {id(each) for group in groups for each in group["params"] if group["weight_decay"] == 0.004}
    names = {name for name, each in learner.model.named_parameters() if id(each) in decayed}
    assert names == {"local3.weight", "local4.weight"}
    assert all(group["weight_decay"] in (0.004, 0.0) for group in groups)
    assert all(group["momentum"] == 0 for group in groups)


def test_the_network_sees_24_by_24_pixels_of_mean_0_and_deviation_1(learner: Learner) -> None:
    images = learner.prepare(0).images
    assert images.shape == (128, 3, 24, 24)
    np.testing.assert_allclose(images.mean(dim=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std(dim=(1, 2, 3), correction=0), 1, atol=1e-3)


def test_evaluation_sees_the_centre_standardised(learner: Learner, data: DataSet) -> None:
    assert data.test is not None
    sample = Sample(np.arange(4), np.arange(4), np.zeros(4, np.int64))
    images = np.asarray(evaluation_pipeline(learner.recipe, data.test)(sample).images)
    pixels = data.test.read(np.arange(4)).images[:, 4:28, 4:28].astype(np.float64)
    mean, deviation = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(images, (pixels - mean) / deviation, atol=1e-4)


def test_its_first_loss_is_that_of_chance_and_of_the_first_weights(data: DataSet, tmp_path: Path) -> None:
    """The tutorial's own log begins with 4.67 or 4.68."""
    path = tmp_path / "data.npz"
    np.savez(path, images=data.train.read(np.arange(256)).images, labels=np.arange(256) % 10)
    settings = [
        "steps=1",
        f"data.path={path}",
        "data.name=arrays",
        "data.split.test=0.5",
        "precision=float32",
    ]
    foveal.train(override(foveal.load_recipe("cifar10-tutorial"), settings), tmp_path / "run")
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert record["losses"]["total"] == pytest.approx(4.675, abs=0.01)


def test_the_convolutions_deviation_is_an_option(data: DataSet) -> None:
    recipe = foveal.load_recipe("cifar10-tutorial")
    assert recipe.model.options == {"conv_deviation": 1e-4}
    later = override(recipe, ["model.options.conv_deviation=0.05", "precision=float32", "device=cpu"])
    weights = Learner(resolve_machine(later), data).model.get_parameter("conv1.weight")
    assert 0.03 < torch.std(weights).item() < 0.06
