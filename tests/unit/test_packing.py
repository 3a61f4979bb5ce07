"""Packed convolutions give what the network gives, and are used where they may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveal.answering import Answering
from foveal.folding import folded
from foveal.models.inception_v3 import InceptionV3
from foveal.models.layers import SameConv2d
from foveal.packing import packed
from foveal.recipe import override
from foveal.recipes import load


def kinds(network: nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules()}


def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = network(images)
        return result


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.Identity(), nn.GELU()])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 24, 3, padding=1),
        nn.Conv2d(8, 24, (1, 7), padding=(0, 3), bias=False),
        nn.Conv2d(8, 24, 3, stride=2, dilation=2),
        nn.Conv2d(8, 24, 3, groups=4),
        SameConv2d(8, 24, 3, 2),
        SameConv2d(8, 8, 4, groups=8),
    ],
    ids=str,
)
def test_a_layer_and_its_activation_become_one(
    layer: nn.Conv2d, activation: nn.Module, kernels: bool
) -> None:
    network = nn.Sequential(layer, nn.Identity(), activation, nn.Flatten()).eval()
    images = 4 * torch.randn(40, 8, 24, 24)
    quick = packed(network, images[:2], kernels=kernels)
    assert quick is not None
    assert "_PackedConvolution" in kinds(quick)
    assert kinds(quick) & {"ReLU", "ReLU6"} == set()
    for batch in (images, images[:1].contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(answers(quick, batch), answers(network, batch), rtol=1e-3, atol=1e-4)
    assert "_PackedConvolution" not in kinds(network)


class Unusual(nn.Sequential):
    """Not one layer after the other."""

    def forward(self, images: Tensor) -> Tensor:
        for layer in self:
            images = layer(images) + 1
        return images


class Circular(nn.Conv2d):
    """Its forward is its own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.roll(1, 2))


@pytest.mark.parametrize(
    "network",
    [
        Unusual(nn.Conv2d(8, 8, 3), nn.ReLU()),
        nn.Sequential(Circular(8, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding="same")),
        nn.Sequential(nn.Conv2d(8, 8, 3)).double(),
    ],
)
def test_what_may_compute_something_else_is_left_alone(network: nn.Module) -> None:
    dtype = next(network.parameters()).dtype
    assert packed(network.eval(), torch.randn(2, 8, 9, 9, dtype=dtype), kernels=True) is None


def test_where_pytorch_has_no_packing_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = nn.Sequential(nn.Conv2d(8, 8, 3)).eval(), torch.randn(2, 8, 9, 9)
    assert packed(network, images, kernels=False) is not None
    monkeypatch.delattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    assert packed(network, images, kernels=False) is None


def test_inception_gives_the_same_folded_and_packed() -> None:
    torch.manual_seed(0)
    network: Any = InceptionV3(7, (107, 107, 3), depth_multiplier=0.25).train()
    images = torch.randn(4, 3, 107, 107)
    with torch.no_grad():
        network(images)  # statistics that are not those of the beginning
    network.eval()
    quick = folded(network, images[:2])
    assert quick is not None
    assert kinds(quick) & {"NormRelu", "FixedScaleBatchNorm2d"} == set()
    twice = packed(quick, images[:2], kernels=True)
    assert twice is not None
    torch.testing.assert_close(answers(twice, images), answers(network, images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_in_float32_are_those_of_a_packed_network(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module | None] = []

    def watched(*arguments: Any, **options: Any) -> nn.Module | None:
        calls.append(packed(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr("foveal.answering.packed", watched)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    images = torch.randn(3, 3, 9, 9)
    network.eval()(images)
    recipe = override(load("digits"), [f"precision={precision}", "device=cpu"])
    ask = Answering(network, recipe)
    torch.testing.assert_close(ask(images), answers(network, images), rtol=1e-3, atol=0.02)
    assert len(calls) == (precision == "float32")
    assert all(isinstance(each, nn.Module) for each in calls)
