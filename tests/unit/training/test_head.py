"""The last layer, fitted to features before training: against the condition for its minimum, and in a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import foveal
from foveal.data.source import ArraySource, DataSet
from foveal.device import resolve_machine
from foveal.errors import RecipeError
from foveal.models.inception_v3 import InceptionV3
from foveal.recipe import Recipe
from foveal.training.head import find_classifier
from foveal.training.learner import Learner


class Features(nn.Module):
    """Pixels are the features."""

    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.unused = nn.Linear(3, num_classes)
        self.logits = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, images):
        return self.logits(images.flatten(1))


class Rescaled(Features):
    """A network whose last layer does not give its logits."""

    def forward(self, images):
        return super().forward(images) * 2


class Bare(nn.Module):
    """A network without a linear layer."""

    def __init__(self, num_classes, image_shape):  # noqa: ARG002 - what a factory is given
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images):
        return self.table.expand(len(images), -1)


def examples(count, seed=0):
    """Images of three classes that a line parts but for some noise, and a column that is always the same."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.normal(128, 40, (count, 1, 4, 1))
    images[np.arange(count), 0, labels, 0] += 60
    images[:, 0, 3] = 7
    return ArraySource(images.clip(0, 255).astype(np.uint8), labels, ("a", "b", "c"))


def learner(parts, model="Features", **changes):
    values = {
        "name": "head",
        "batch_size": 20,
        "steps": 5,
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "model": {"name": f"{__name__}:{model}"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "ema": {"decay": 0.9},
        "head": {"penalties": [0.03]},
    }
    return Learner(resolve_machine(Recipe.model_validate(values | changes)), parts)


def gradient(head, source, penalty, importance):
    """Of the loss on standardised features, by weights and bias: nothing where it is least."""
    values = torch.as_tensor(source.images, dtype=torch.float64).flatten(1) / 255
    mean, deviation = values.mean(dim=0), values.std(dim=0, correction=0)
    varying = deviation > 0
    values = (values - mean)[:, varying] / deviation[varying]
    weight = head.weight.detach().double()[:, varying] * deviation[varying]
    bias = head.bias.detach().double() + head.weight.detach().double() @ mean
    weight.requires_grad_()
    bias.requires_grad_()
    loss = functional.cross_entropy(values @ weight.T + bias, torch.as_tensor(source.targets), importance)
    (loss + penalty / 2 * weight.square().sum()).backward()
    return torch.cat([weight.grad.flatten(), bias.grad])


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_it_is_the_minimum_of_the_penalised_loss(sampling):
    source = examples(300)
    keep = np.flatnonzero((source.targets != 2) | (np.arange(300) % 4 == 0))  # one class is rarer
    source = ArraySource(source.images[keep], source.targets[keep], source.classes)
    learning = learner(DataSet(source), data={"sampling": sampling})
    (line,) = learning.initialise()
    assert line == f"head: fitted to the features of {len(keep)} images, with the penalty 0.03"
    weights = torch.ones(3, dtype=torch.float64)
    if sampling == "balanced":
        weights /= torch.bincount(torch.as_tensor(source.targets))
    assert gradient(learning.model.logits, source, 0.03, weights).abs().max() < 1e-5
    assert gradient(learning.model.logits, source, 0.3, weights).abs().max() > 1e-2
    assert torch.equal(learning.average.tensors["logits.weight"], learning.model.logits.weight.double())


def test_the_penalty_that_does_best_on_the_validation_part_is_used():
    def found(penalties, validation):
        learning = learner(DataSet(examples(40), validation), head={"penalties": penalties})
        (line,) = learning.initialise()
        result = torch.as_tensor(examples(1000, seed=9).images, dtype=torch.float32).permute(0, 3, 1, 2) / 255
        labels = torch.as_tensor(examples(1000, seed=9).targets)
        return float(line.rsplit(" ", 1)[1]), functional.cross_entropy(learning.model(result), labels).item()

    validation = examples(1000, seed=9)
    losses = {penalty: found([penalty], validation)[1] for penalty in (1e-6, 0.1, 30.0)}
    chosen, loss = found([1e-6, 0.1, 30.0], validation)
    assert chosen == min(losses, key=losses.get) == 0.1
    assert loss == pytest.approx(losses[0.1], rel=1e-4)
    assert found([30.0, 1e-6, 0.1], None)[0] == 0.1  # without a validation part, the middle one


def test_of_many_examples_it_takes_some_that_are_spread_evenly():
    (line,) = learner(DataSet(examples(300)), head={"examples": 50}).initialise()
    assert "of 50 images" in line


def test_a_convolution_over_one_pixel_is_a_head():
    model = InceptionV3(5, (75, 75, 3), depth_multiplier=0.1)
    assert find_classifier(model, 5).weight.shape[:2] == (5, model.Logits.Conv2d_1c_1x1.weight.shape[1])


@pytest.mark.parametrize(
    ("model", "message"), [("Rescaled", "is not what gives its logits"), ("Bare", "no linear layer with 3")]
)
def test_a_network_without_a_head_is_refused(model, message):
    with pytest.raises(RecipeError, match=message):
        learner(DataSet(examples(40)), model).initialise()


def test_a_run_shows_what_it_began_with_and_goes_on_from_there(tmp_path):
    changes = ["head.penalties=[0.1]", "evaluation.first=true", "epochs=1", "optimizer.learning_rate=1e-9"]
    recipe = foveal.override_recipe(foveal.load_recipe("digits"), changes)
    foveal.train(recipe, tmp_path / "run")
    lines = (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line) for line in lines)
    assert (first["step"], first["split"], first["weights"]) == (0, "validation", "raw")
    assert first["accuracy"] > 0.8  # random features of 8 x 8 pixels, and a fitted head
    assert last["split"] == "test"
