from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.errors import RunError
from foveal.models.cifar10_cnn import Cifar10Cnn
from foveal.recipe import from_toml
from foveal.summary import NetworkSummary, describe_network

if TYPE_CHECKING:
    from pathlib import Path


class Nested(nn.Module):
    """Work and a parameter of its own, beside a part that is used twice and has a part itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12, 12))
        self.block = nn.Sequential(nn.Sequential(nn.Linear(12, 12)))
        self.head = nn.Linear(12, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1) @ self.scale
        return self.head(self.block(self.block(hidden)))


@pytest.fixture(scope="module")
def tutorial() -> NetworkSummary:
    return describe_network("tutorial", Cifar10Cnn(10, (24, 24, 3)), (24, 24, 3), 10)


def test_multiply_adds_are_those_of_the_formula(tutorial: NetworkSummary) -> None:
    found = {each.name: each.multiply_adds for each in tutorial.layers}
    assert found["conv1"] == 24 * 24 * 64 * 5 * 5 * 3
    assert found["conv2"] == 12 * 12 * 64 * 5 * 5 * 64
    assert found["local3"] == 6 * 6 * 64 * 384
    assert found["relu3"] == 0
    assert tutorial.multiply_adds == sum(found.values())


def test_layers_stand_in_the_order_in_which_they_are_used(tutorial: NetworkSummary) -> None:
    names = [each.name for each in tutorial.layers]
    assert names[:5] == ["conv1", "pool1.0", "pool1.1", "norm1", "conv2"]
    first = tutorial.layers[0]
    assert (first.kind, first.output, first.dtype, first.device) == ("Conv2d", (64, 24, 24), "float32", "cpu")
    assert first.parameters == 64 * 3 * 5 * 5 + 64


def test_tensors_have_shape_dtype_and_device(tutorial: NetworkSummary) -> None:
    found = {each.name: each for each in tutorial.tensors}
    weight = found["local4.weight"]
    assert (weight.role, weight.shape, weight.dtype, weight.device) == (
        "parameter",
        (192, 384),
        "float32",
        "cpu",
    )
    assert tutorial.parameters == 1_068_298
    assert tutorial.nbytes == 4 * 1_068_298


def test_work_of_a_module_is_counted_once_and_where_it_is_done() -> None:
    result = describe_network("nested", Nested(), (2, 2, 3), 2)
    assert {each.name: (each.parameters, each.multiply_adds) for each in result.layers} == {
        "block.0.0": (12 * 12 + 12, 2 * 12 * 12),
        "head": (26, 24),
        "": (144, 144),
    }
    assert result.multiply_adds == 3 * 144 + 24


def test_a_network_stays_as_it_is() -> None:
    model = Cifar10Cnn(10, (24, 24, 3)).train()
    describe_network("tutorial", model, (24, 24, 3), 10)
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_of_a_recipe_is_that_of_its_run_but_for_the_name(tiny: Path, trained_run: Path) -> None:
    recipe, run = foveal.summarise(from_toml(tiny)), foveal.summarise(trained_run)
    assert (recipe.name, run.name) == ("tiny", str(trained_run))
    assert (recipe.layers, recipe.tensors) == (run.layers, run.tensors)
    assert (run.image_shape, run.classes) == ((8, 8, 1), 10)
    assert [each.role for each in run.tensors].count("buffer") > 0


def test_outputs_have_the_precision_of_the_recipe(tiny: Path) -> None:
    recipe = foveal.override_recipe(from_toml(tiny), ["precision=bfloat16"])
    result = foveal.summarise(recipe, device="cpu")
    assert {each.dtype for each in result.layers} == {"bfloat16"}
    assert {each.dtype for each in result.tensors} == {"float32", "int64"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        foveal.summarise(tmp_path)
