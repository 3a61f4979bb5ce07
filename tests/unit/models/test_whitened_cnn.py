from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import FixedScaleBatchNorm2d
from foveal.models.registry import BeginsFromImages, build_model
from foveal.models.whitened_cnn import Group, WhitenedCnn, Whitening
from foveal.recipe import ModelPart


def photographs() -> Tensor:
    """Images whose neighbours are alike."""
    rough = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(rough, (16, 16), mode="bilinear")


def test_it_has_the_shapes_of_the_published_network() -> None:
    model = WhitenedCnn(10, (32, 32, 3))
    filters = [tuple(p.shape) for p in model.parameters() if p.ndim == 4]
    assert filters == [
        (64, 24, 3, 3),
        (64, 64, 3, 3),
        (256, 64, 3, 3),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
    ]
    assert model.head.weight.shape == (10, 256)
    assert model.head.bias is None
    assert sum(p.numel() for p in model.parameters()) == 1_971_352


def test_whitened_patches_have_unit_second_moments() -> None:
    images, layer = photographs(), Whitening(3)
    layer.initialise_from(images)
    nn.init.zeros_(layer.bias)
    values = layer(images).permute(1, 0, 2, 3).flatten(1).double()
    half = len(values) // 2
    assert torch.equal(values[half:], -values[:half])
    moments = (values[:half] @ values[:half].T / values.shape[1]).detach()
    variances = np.linalg.eigvalsh(_moments(images))
    torch.testing.assert_close(
        moments, torch.diag(torch.tensor(variances / (variances + 5e-4))), rtol=1e-3, atol=1e-3
    )


def _moments(images: Tensor) -> np.ndarray:
    patches = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (3, 2, 2), axis=(1, 2, 3))
    rows = patches.reshape(-1, 12)
    return rows.T @ rows / len(rows)


def test_its_whitening_follows_from_the_images_alone_and_is_saved_but_does_not_learn() -> None:
    images = photographs()
    one, other = (build_model(ModelPart(name="whitened_cnn"), 10, (16, 16, 3), seed) for seed in (0, 1))
    assert isinstance(one, BeginsFromImages)
    assert isinstance(other, BeginsFromImages)
    one.initialise_from(images)
    other.initialise_from(images)
    assert torch.equal(one.state_dict()["whiten.weight"], other.state_dict()["whiten.weight"])
    assert "whiten.weight" not in dict(one.named_parameters())


def test_convolutions_hand_their_input_on_at_first() -> None:
    model = WhitenedCnn(10, (32, 32, 3))
    convolution = model.groups[0].first[0]
    images = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(convolution(images)[:, :24], images)
    assert convolution.weight[24:].std().item() == pytest.approx(1 / math.sqrt(3 * 24 * 9), rel=0.05)


def test_the_last_two_of_three_convolutions_are_a_residual() -> None:
    group = Group(4, 4, 3, 0.4).eval()
    images = torch.randn(2, 4, 8, 8)
    hidden = group.first(images)
    torch.testing.assert_close(group(images), nn.functional.gelu(hidden + group.further(hidden)))
    assert sum(isinstance(module, nn.Conv2d) for module in group.modules()) == 3
    two = Group(4, 4, 2, 0.4).eval()
    torch.testing.assert_close(two(images), two.further(two.first(images)))


def test_logits_are_scaled() -> None:
    torch.manual_seed(0)
    one = WhitenedCnn(10, (16, 16, 3), scale=1.0).eval()
    third = WhitenedCnn(10, (16, 16, 3), scale=1 / 3).eval()
    third.load_state_dict(one.state_dict())
    images = photographs()
    torch.testing.assert_close(third(images) * 3, one(images))


@pytest.mark.parametrize("size", [9, 24, 28, 33])
def test_it_takes_images_of_any_size_from_nine_pixels(size: int) -> None:
    assert WhitenedCnn(7, (32, 32, 1))(torch.rand(2, 1, size, size)).shape == (2, 7)


def test_batch_norm_of_fixed_scale_is_pytorchs_with_a_scale_of_one() -> None:
    mine, theirs = FixedScaleBatchNorm2d(3, 0.4), nn.BatchNorm2d(3, eps=1e-12, momentum=0.4)
    images = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(mine(images), theirs(images))
    torch.testing.assert_close(mine.running_var, theirs.running_var)
    assert [name for name, _ in mine.named_parameters()] == ["bias"]
    assert set(mine.state_dict()) == set(theirs.state_dict()) - {"weight"}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 32, 3), {}, "images of 8 x 32 are too small for 3 groups: use 9 x 9 or more, or fewer widths"),
        ((32, 32, 3), {"widths": []}, r"model.options.widths = \[\]"),
        ((32, 32, 3), {"widths": [8, 0]}, "each of at least 1"),
        ((32, 32, 3), {"convolutions": 4}, "model.options.convolutions = 4: must be 2 or 3"),
        ((32, 32, 3), {"norm_memory": 1.0}, r"model.options.norm_memory = 1.0: must be in \[0, 1\)"),
    ],
    ids=["small", "no widths", "width of 0", "convolutions", "memory"],
)
def test_what_it_cannot_be_is_refused(shape: tuple[int, int, int], options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_model(ModelPart(name="whitened_cnn", options=options), 10, shape, seed=0)
