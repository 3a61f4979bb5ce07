from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.errors import RecipeError, UnknownNameError
from foveal.models.auxiliary import MayHaveAuxiliaryHead, WithAuxiliary
from foveal.models.inception_v3 import BASE, InceptionV3
from foveal.models.layers import FixedScaleBatchNorm2d
from foveal.models.registry import build_model, end_points
from foveal.recipe import ModelPart
from foveal.summary import describe_network

# Sides of the end points for images of 299 pixels, and channels: table 1 of the paper, and slim's comments.
SHAPES = {
    "Conv2d_1a_3x3": (149, 32),
    "Conv2d_2a_3x3": (147, 32),
    "Conv2d_2b_3x3": (147, 64),
    "MaxPool_3a_3x3": (73, 64),
    "Conv2d_3b_1x1": (73, 80),
    "Conv2d_4a_3x3": (71, 192),
    "MaxPool_5a_3x3": (35, 192),
    "Mixed_5b": (35, 256),
    "Mixed_5c": (35, 288),
    "Mixed_5d": (35, 288),
    "Mixed_6a": (17, 768),
    "Mixed_6b": (17, 768),
    "Mixed_6c": (17, 768),
    "Mixed_6d": (17, 768),
    "Mixed_6e": (17, 768),
    "Mixed_7a": (8, 1280),
    "Mixed_7b": (8, 2048),
    "Mixed_7c": (8, 2048),
}


def small(height: int = 75, width: int = 75, classes: int = 4, **options: float) -> InceptionV3:
    """As narrow as it may be."""
    return InceptionV3(classes, (height, width, 3), **{"depth_multiplier": 0.1, "min_depth": 4, **options})


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_model(ModelPart(name="inception_v3"), 1000, (299, 299, 3), seed=0)


def test_it_has_slims_end_points_and_their_shapes(network: nn.Module) -> None:
    summary = describe_network("inception", network, (299, 299, 3), 1000)
    with torch.inference_mode(), end_points(network.eval(), [*SHAPES, "PreLogits", "Predictions"]) as found:
        network(torch.zeros(1, 3, 299, 299))
    network.train()
    assert tuple(SHAPES) == BASE
    assert {name: tuple(found[name].shape[1:]) for name in SHAPES} == {
        name: (channels, side, side) for name, (side, channels) in SHAPES.items()
    }
    assert found["PreLogits"].shape == (1, 2048, 1, 1)
    assert found["Predictions"].sum().item() == pytest.approx(1)
    assert 5.70e9 < summary.multiply_adds < 5.73e9


def test_it_has_the_published_number_of_parameters(network: nn.Module) -> None:
    """That of Keras' Inception v3, whose batch norm has no scale either."""
    head = sum(each.numel() for each in network.get_submodule("AuxLogits").parameters())
    assert sum(each.numel() for each in network.parameters()) - head == 23_817_352
    # With 1,001 classes, slim's variables have 27,182,194 values, batch norm's statistics among them.
    buffers = sum(each.numel() for name, each in network.named_buffers() if "running" in name)
    assert 23_817_352 + head + buffers + 2049 + 769 == 27_182_194


def test_first_weights_are_truncated_normals_of_slims_deviations(network: nn.Module) -> None:
    deviations = {"AuxLogits.Conv2d_2a_5x5.conv": 0.01, "AuxLogits.Conv2d_2b_1x1": 0.001}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            deviation = deviations.get(name, 0.1)
            assert layer.weight.std().item() == pytest.approx(deviation * 0.8796, rel=0.08), name
            assert layer.weight.abs().max().item() <= 2.0001 * deviation
            assert layer.bias is None or not layer.bias.any()


def test_batch_norm_has_slims_decay_and_epsilon_and_no_scale(network: nn.Module) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 96
    for norm in norms:
        assert isinstance(norm, FixedScaleBatchNorm2d)
        assert (norm.momentum, norm.eps) == (pytest.approx(0.0003), 0.001)
        assert [name for name, _ in norm.named_parameters()] == ["bias"]


@pytest.mark.parametrize(
    ("size", "kernel"),
    [((75, 75), "1x1"), ((107, 150), "1x1"), ((200, 299), "2x5"), ((299, 299), "5x5"), ((331, 347), "5x5")],
    ids=str,
)
def test_the_auxiliary_head_has_the_filters_that_fit_the_image(size: tuple[int, int], kernel: str) -> None:
    model = small(*size)
    assert [name for name, _ in model.AuxLogits.named_children()][2] == f"Conv2d_2a_{kernel}"
    found = model(torch.rand(2, 3, *size))
    assert isinstance(found, WithAuxiliary)
    assert [tuple(each.shape) for each in found] == [(2, 4), (2, 4)]


def test_it_takes_larger_images_than_it_was_made_for() -> None:
    model = small(150, 150)
    assert [tuple(each.shape) for each in model(torch.rand(2, 3, 400, 260))] == [(2, 4), (2, 4)]


def test_in_evaluation_it_gives_logits_alone_and_in_training_those_of_the_head_too() -> None:
    with_head, without = small(), small(auxiliary_head=False)
    images = torch.rand(3, 3, 75, 75)
    assert isinstance(with_head(images), tuple)
    for logits in (without(images), with_head.eval()(images), without.eval()(images)):
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (3, 4)
    heads = [
        each.has_auxiliary_head for each in (with_head, without) if isinstance(each, MayHaveAuxiliaryHead)
    ]
    assert heads == [True, False]


def test_the_base_network_ends_where_it_is_told_to() -> None:
    model = small().eval()
    images = torch.rand(2, 3, 75, 75)
    with torch.inference_mode(), end_points(model, ["Mixed_5d", "Mixed_7c"]) as found:
        model(images)
        assert torch.equal(model.base(images, "Mixed_5d"), found["Mixed_5d"])
        assert torch.equal(model.base(images), found["Mixed_7c"])
    with pytest.raises(UnknownNameError, match="no end point named 'Mixed_5e': did you mean"):
        model.base(images, "Mixed_5e")


def test_depths_are_multiplied_and_kept_above_the_least() -> None:
    half, least = (InceptionV3(5, (75, 75, 3), depth_multiplier=each) for each in (0.5, 0.01))
    assert half.Conv2d_1a_3x3.conv.out_channels == 16
    assert half.Mixed_7c.Branch_2.Conv2d_0d_3x1.conv.out_channels == 192
    assert half.Logits.Conv2d_1c_1x1.in_channels == 1024
    assert {m.out_channels for m in least.modules() if isinstance(m, nn.Conv2d)} == {16, 5}


def test_average_pooling_counts_the_pixels_of_the_image_alone() -> None:
    pool = small().Mixed_5b.Branch_3.Conv2d_0b_1x1.pool
    torch.testing.assert_close(pool(torch.ones(1, 2, 4, 5)), torch.ones(1, 2, 4, 5))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((74, 299, 3), {}, "inception_v3: images of 74 x 299 are too small: use 75 x 75 or more"),
        ((75, 75, 3), {"dropout": 1.0}, r"model.options.dropout = 1.0: must be in \[0, 1\)"),
        ((75, 75, 3), {"depth_multiplier": 0.0}, "model.options.depth_multiplier = 0.0: must be above 0"),
        ((75, 75, 3), {"min_depth": 0}, "model.options.min_depth = 0: must be at least 1"),
        ((75, 75, 3), {"norm_decay": 1.0}, r"model.options.norm_decay = 1.0: must be in \[0, 1\)"),
        ((75, 75, 3), {"depth_multiplier": "a"}, "inception_v3 refuses"),
    ],
    ids=["small", "dropout", "multiplier", "least", "decay", "text"],
)
def test_what_it_cannot_be_is_refused(
    shape: tuple[int, int, int], options: dict[str, float], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        build_model(ModelPart(name="inception_v3", options=options), 10, shape, seed=0)
