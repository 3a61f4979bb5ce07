from __future__ import annotations

import pytest
import torch

from foveal.models.layers import Dropout, FlattenNhwc


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
