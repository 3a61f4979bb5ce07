"""The recipe says what the papers and slim's files say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foveal
from foveal.data.input import evaluation_pipeline
from foveal.data.sampler import Sample
from foveal.device import resolve_machine
from foveal.errors import RecipeError
from foveal.recipe import Recipe, override
from foveal.training.learner import Learner

SMALL = ("model.options={depth_multiplier=0.1, min_depth=4}", "precision=float32", "device=cpu")


@pytest.fixture(scope="module")
def data() -> foveal.DataSet:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 80, 96, 3), dtype=np.uint8)
    source = foveal.ArraySource(images, np.arange(80) % 5, tuple("abcde"))
    return foveal.DataSet(train=source, test=source)


def chosen(*settings: str) -> Recipe:
    return resolve_machine(override(foveal.load_recipe("inception-v3"), [*SMALL, *settings]))


@pytest.fixture(scope="module")
def learner(data: foveal.DataSet) -> Learner:
    return Learner(chosen(), data)


def rates(learner: Learner, steps: list[int]) -> list[float]:
    return [learner.train_step.learning_rate(step) for step in steps]


def test_the_rate_falls_by_6_percent_every_2_epochs(learner: Learner) -> None:
    """Of 80 examples in batches of 32, these are 5 steps."""
    expected = [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94, 0.045 * 0.94**2]
    assert rates(learner, [0, 4, 5, 9, 10]) == pytest.approx(expected)


def test_the_rate_of_the_earlier_paper_falls_by_4_percent_every_8_epochs(data: foveal.DataSet) -> None:
    learner = Learner(chosen("schedule.factor=0.96", "schedule.every=8 epochs"), data)
    assert rates(learner, [0, 19, 20, 40]) == pytest.approx([0.045, 0.045, 0.0432, 0.041472])


def test_filters_decay_and_biases_do_not(learner: Learner) -> None:
    groups = learner.train_step.optimizer.param_groups
    decay = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    for name, each in learner.model.named_parameters():
        assert decay[id(each)] == (4e-5 if name.endswith("weight") else 0.0), name
    assert {(group["decay"], group["momentum"], group["epsilon"]) for group in groups} == {(0.9, 0.9, 1.0)}


def test_training_sees_crops_of_299_pixels_and_evaluation_the_middle(
    learner: Learner, data: foveal.DataSet
) -> None:
    prepared = learner.prepare(0)
    assert prepared.images.shape == (32, 3, 299, 299)
    assert prepared.images.abs().max().item() == pytest.approx(1)  # where colours were clipped
    pipeline = evaluation_pipeline(learner.recipe, data.test)
    indices = np.arange(1)
    seen = torch.as_tensor(pipeline(Sample(indices, indices, indices)).images).permute(0, 3, 1, 2)
    middle = torch.as_tensor(data.test.read(indices).images)[:, 5:75, 6:90].permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(middle, (299, 299), mode="bilinear", antialias=True)
    assert (seen - (expected / 127.5 - 1)).abs().max() < 2 / 127.5  # bytes, rounded


def test_a_network_without_the_head_needs_no_weight_for_it(data: foveal.DataSet) -> None:
    without = "model.options.auxiliary_head=false"
    with pytest.raises(
        RecipeError, match=r"loss\.auxiliary_weight = 0\.3: inception_v3 has no auxiliary head"
    ):
        Learner(chosen(without), data)
    assert not hasattr(Learner(chosen(without, "loss.auxiliary_weight=0.0"), data).model, "AuxLogits")


def test_streams_have_no_epochs_for_the_rate_to_fall_after() -> None:
    stream = foveal.StreamSource(lambda: iter(()), ("a", "b"), (75, 75, 3))
    with pytest.raises(RecipeError, match=r"the data are a stream: .* and schedule\.every in steps"):
        Learner(chosen("steps=9", "checkpoint.every=1 step"), foveal.DataSet(train=stream))
