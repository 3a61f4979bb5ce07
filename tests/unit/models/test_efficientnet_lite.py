from __future__ import annotations

import math

import pytest
import torch

from foveal.errors import RecipeError
from foveal.models.efficientnet_lite import EfficientNetLite0
from foveal.models.registry import end_points


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0(1000, (224, 224, 3)).eval()


def test_it_has_the_published_size(network: EfficientNetLite0) -> None:
    assert sum(each.numel() for each in network.parameters()) == 4_652_008  # published as 4.7 million


@pytest.mark.parametrize(
    ("size", "halved"), [((224, 224), [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]), ((33, 1), None)]
)
def test_end_points_have_the_published_shapes_at_any_size(
    network: EfficientNetLite0, size: tuple[int, int], halved: list[tuple[int, int]] | None
) -> None:
    names = ["stem", "blocks.0", "blocks.2", "blocks.4", "blocks.10", "blocks.15", "head", "pool", "logits"]
    with end_points(network, names) as found, torch.inference_mode():
        network(torch.rand(2, 3, *size))
    sizes = halved or [tuple(math.ceil(side / 2**n) for side in size) for n in range(1, 6)]
    channels = (32, 16, 24, 40, 112, 320, 1280)
    places = (0, 0, 1, 2, 3, 4, 4)
    expected = [(2, each, *sizes[place]) for each, place in zip(channels, places, strict=True)]
    assert [tuple(found[name].shape) for name in names] == [*expected, (2, 1280, 1, 1), (2, 1000)]


def test_activations_are_cut_off_at_six_and_blocks_end_linearly(network: EfficientNetLite0) -> None:
    with end_points(network, ["stem", "blocks.0", "head"]) as found, torch.inference_mode():
        network(100 * torch.randn(2, 3, 64, 64))
    for name in ("stem", "head"):
        assert (found[name].min().item(), found[name].max().item()) == (0, 6)
    assert found["blocks.0"].min() < 0


def test_blocks_that_keep_their_shape_add_to_their_input(network: EfficientNetLite0) -> None:
    adding = [number for number, block in enumerate(network.blocks) if block.depth is not None]
    assert adding == [2, 4, 6, 7, 9, 10, 12, 13, 14]
    images = torch.rand(1, 24, 8, 8)
    block = network.blocks[2]
    with torch.inference_mode():
        expected = images + block.project(block.depthwise(block.expand(images)))
        torch.testing.assert_close(block(images), expected)


def test_later_residuals_are_left_out_more_often() -> None:
    blocks = EfficientNetLite0(2, (8, 8, 3), survival=0.6).blocks
    dropped = {number: block.depth.probability for number, block in enumerate(blocks) if block.depth}
    assert dropped == pytest.approx({number: 0.4 * number / 16 for number in dropped})


def test_first_weights_have_the_deviations_asked_for(network: EfficientNetLite0) -> None:
    deviations = {
        "blocks.11.expand.conv": math.sqrt(2 / 672),  # its 672 outputs
        "blocks.11.depthwise.conv": math.sqrt(2 / 25),  # 5 x 5, one output each
        "logits": 1 / math.sqrt(1280) / math.sqrt(3),  # of a uniform distribution
    }
    modules = dict(network.named_modules())
    for name, deviation in deviations.items():
        assert modules[name].weight.std().item() == pytest.approx(deviation, rel=0.03), name
    assert not network.logits.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"model\.options\.dropout = 1\.0: must be in \[0, 1\)"),
        ({"survival": 0.0}, r"model\.options\.survival = 0\.0: must be in \(0, 1\]"),
        ({"norm_memory": -0.5}, r"model\.options\.norm_memory = -0\.5: must be in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EfficientNetLite0(10, (32, 32, 3), **options)
