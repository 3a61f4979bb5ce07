from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from foveal.folding import folded
from foveal.models.dense import Dense
from foveal.models.efficientnet_lite import EfficientNetLite0
from foveal.models.inception_v3 import InceptionV3
from foveal.models.layers import SameMaxPool2d
from foveal.models.small_cnn import SmallCnn
from foveal.models.whitened_cnn import WhitenedCnn

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, *, rising: bool = True) -> nn.Module:
    """The network with statistics and lines of batch norm as training may leave them."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 3)
            if isinstance(module.weight, nn.Parameter):
                nn.init.uniform_(module.weight, 0.5 if rising else -1, 2)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return model.to(memory_format=torch.channels_last)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def answer(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.inference_mode():
        return model.eval()(images)


def chain(*between: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    """A convolution, what is given, a norm, and logits."""
    layers = nn.Conv2d(3, 8, 3), *between, norm or nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    "build",
    [
        partial(SmallCnn, 4, (12, 12, 3), widths=(8, 12), padding=True),
        partial(WhitenedCnn, 4, (12, 12, 3), widths=(24, 32)),
        partial(WhitenedCnn, 4, (12, 12, 3), widths=(24, 32), convolutions=3),
        partial(EfficientNetLite0, 4, (12, 12, 3)),
        partial(Dense, 4, (12, 12, 3), widths=(16, 8), batch_norm=True),
        chain,
        partial(chain, nn.MaxPool2d(2)),
        partial(chain, SameMaxPool2d(3, 2), nn.Identity()),
        partial(chain, norm=nn.BatchNorm2d(8, affine=False)),
    ],
    ids=[
        "small_cnn",
        "two a group",
        "three a group",
        "efficientnet",
        "dense",
        "pair",
        "pool",
        "same pool",
        "no line",
    ],
)
def test_all_norms_that_follow_a_layer_become_part_of_it(build) -> None:
    model = trained(build())
    quick = folded(model, IMAGES)
    assert quick is not None
    assert (norms(model) > 0, norms(quick)) == (True, 0)
    torch.testing.assert_close(answer(quick), answer(model), rtol=1e-4, atol=1e-4)
    more = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(answer(quick, more), answer(model, more), rtol=1e-4, atol=1e-4)


def test_parallel_branches_and_heads_are_followed() -> None:
    model = trained(InceptionV3(4, (75, 75, 3), depth_multiplier=0.1))
    images = torch.randn(2, 3, 75, 75)
    quick = folded(model, images)
    assert quick is not None
    assert (norms(model), norms(quick)) == (96, 0)
    torch.testing.assert_close(answer(quick, images), answer(model, images), rtol=1e-3, atol=1e-3)


def test_a_falling_line_is_folded_but_not_across_a_maximum() -> None:
    plain, pooled = (trained(chain(*between), rising=False) for between in ([], [nn.MaxPool2d(2)]))
    quick = folded(plain, IMAGES)
    assert quick is not None
    torch.testing.assert_close(answer(quick), answer(plain), rtol=1e-4, atol=1e-4)
    assert folded(pooled, IMAGES) is None


def test_the_network_itself_stays_as_it_is() -> None:
    model = trained(chain()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    quick = folded(model, IMAGES)
    assert quick is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert quick[-1].weight.data_ptr() == model[-1].weight.data_ptr()  # what is not folded is shared
    assert quick[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_averages_take_the_place_of_weights_and_statistics() -> None:
    model, other = trained(chain()), trained(chain(), rising=False)
    averages = {name: value for name, value in other.state_dict().items() if value.is_floating_point()}
    quick = folded(model, IMAGES, averages)
    assert quick is not None
    torch.testing.assert_close(answer(quick), answer(other), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """A convolution of which each of two norms sees the result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return (self.norm(values) + self.other(values)).mean((2, 3))


class Skipping(Twice):
    """The result of the convolution is used without the norm, too."""

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return (self.norm(values) * values).mean((2, 3))


class Again(Twice):
    """One convolution for two images, one norm each."""

    def forward(self, images: Tensor) -> Tensor:
        return (self.norm(self.conv(images)) + self.other(self.conv(images.flip(-1)))).mean((2, 3))


class Shared(Twice):
    """One norm for two results."""

    def forward(self, images: Tensor) -> Tensor:
        return (self.norm(self.conv(images)) + self.norm(self.conv(images.flip(-1)))).mean((2, 3))


class Overwriting(Twice):
    """What is normalised was changed in its place."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(functional.relu_(self.conv(images))).mean((2, 3))


class Deciding(Twice):
    """What is done depends on what is seen."""

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return (self.norm(values) if images.mean() < 9 else values).mean((2, 3))


class Statistics(Twice):
    """The norm's numbers are used elsewhere, too."""

    def forward(self, images: Tensor) -> Tensor:
        return (self.norm(self.conv(images)) / self.norm.running_var.view(1, -1, 1, 1)).mean((2, 3))


class Unusual(nn.Conv2d):
    """Not a convolution alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


class Padding(nn.Conv2d):
    """A convolution that pads its images itself."""

    def forward(self, images: Tensor) -> Tensor:
        padded = functional.pad(images, (0, 1, 0, 1))
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


def test_a_convolution_of_another_kind_is_folded_into_if_it_is_one() -> None:
    model = trained(nn.Sequential(Padding(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten()))
    quick = folded(model, IMAGES)
    assert quick is not None
    assert norms(quick) == 0
    torch.testing.assert_close(answer(quick), answer(model), rtol=1e-4, atol=1e-4)


def hooked() -> nn.Module:
    model = chain()
    model[2].register_forward_hook(lambda *_: None)
    return model


def uncopyable() -> nn.Module:
    model = chain()
    model.lock = threading.Lock()
    return model


def unusual() -> nn.Module:
    return nn.Sequential(Unusual(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


def parametrized() -> nn.Module:
    model = chain()
    parametrizations.weight_norm(model[0])
    return model


def broken() -> nn.Module:
    model = chain()
    nn.init.constant_(model[0].weight, torch.nan)
    return model


@pytest.mark.parametrize(
    "build",
    [
        Twice, Skipping, Again, Shared, Overwriting, Deciding, Statistics, hooked, uncopyable, unusual,
        parametrized, broken, partial(chain, nn.ReLU()), partial(chain, norm=nn.GroupNorm(2, 8)),
        partial(chain, norm=nn.BatchNorm2d(8, track_running_stats=False)), nn.Flatten,
        partial(nn.Sequential, nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten()),
    ],
    ids=[
        "two norms", "skip", "convolution twice", "norm twice", "in place", "decision", "statistics", "hook",
        "lock", "other forward", "parametrized", "NaN", "between", "other norm", "batch's statistics",
        "nothing", "norm first",
    ],
)  # fmt: skip
def test_what_cannot_be_folded_safely_is_left_alone(build) -> None:
    assert folded(trained(build()), IMAGES) is None


def test_a_network_of_another_dtype_is_left_alone() -> None:
    assert folded(trained(chain()).bfloat16(), IMAGES.bfloat16()) is None


def test_what_can_be_folded_is_where_the_rest_cannot() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Twice()))
    quick = folded(model, IMAGES)
    assert quick is not None
    assert norms(quick) == norms(model) - 1
    torch.testing.assert_close(answer(quick), answer(model), rtol=1e-4, atol=1e-4)
