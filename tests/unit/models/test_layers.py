from __future__ import annotations

import math

import pytest
import torch

from foveal.models.layers import Dropout, FlattenNhwc, SameConv2d, StochasticDepth


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
def test_dropout_zeroes_the_share_asked_for_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    out = Dropout(probability).train()(torch.ones(400, 1001))
    dropped = (out == 0).float().mean().item()
    assert dropped == pytest.approx(probability, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    kept = out[out != 0]
    assert torch.equal(kept, kept[:1].expand_as(kept))


def test_dropout_does_nothing_outside_training_or_at_zero() -> None:
    values = torch.rand(3, 5)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0).train()(values) is values


def test_dropout_follows_torchs_seed_and_has_the_masks_gradient() -> None:
    values = torch.rand(7, 9, requires_grad=True)
    layer = Dropout(0.5).train()
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    first.sum().backward()
    assert torch.equal(values.grad == 0, first == 0)


def test_flattening_follows_nhwc() -> None:
    images = torch.arange(24.0).view(1, 2, 3, 4)
    assert FlattenNhwc()(images).tolist() == [images.permute(0, 2, 3, 1).flatten().tolist()]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_a_same_convolution_gives_a_result_for_every_stride_and_pads_the_end_first(
    kernel: int, stride: int
) -> None:
    layer = SameConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    for height, width in ((1, 2), (4, 7), (8, 5), (9, 9)):
        images = torch.rand(1, 1, height, width)
        rows, columns = (windows(size, kernel, stride) for size in (height, width))
        sums = [[images[0, 0, row][:, column].sum() for column in columns] for row in rows]
        torch.testing.assert_close(layer(images)[0, 0], torch.tensor(sums))


def windows(size: int, kernel: int, stride: int) -> list[slice]:
    """Where the windows of ``SAME`` lie in a row of so many, as TensorFlow's documentation has it."""
    count = math.ceil(size / stride)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    starts = [number * stride - before for number in range(count)]
    return [slice(max(start, 0), start + kernel) for start in starts]


def test_stochastic_depth_zeroes_whole_examples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = StochasticDepth(0.25).train()(torch.ones(4000, 2, 3))
    assert sorted(set(out.flatten(1).amax(1).tolist())) == pytest.approx([0, 4 / 3])
    assert torch.equal(out.flatten(1).amax(1), out.flatten(1).amin(1))
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_stochastic_depth_does_nothing_outside_training_or_at_zero() -> None:
    values = torch.rand(3, 5)
    assert StochasticDepth(0.5).eval()(values) is values
    assert StochasticDepth(0.0).train()(values) is values
