from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.errors import RecipeError
from foveal.models.dense import Dense


def test_it_is_linear_layers_with_relu_between_them() -> None:
    model = Dense(3, (1, 1, 4), widths=(8, 5))
    rows = torch.randn(6, 4, 1, 1)
    first, second = (layer for layer in model.hidden if isinstance(layer, nn.Linear))
    expected = model.logits(second(first(rows.flatten(1)).relu()).relu())
    torch.testing.assert_close(model(rows), expected)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(8, 4), (8,), (5, 8), (5,), (3, 5), (3,)]


def test_pixels_come_in_the_order_of_nhwc() -> None:
    model = Dense(2, (2, 3, 3), widths=())
    images = torch.rand(4, 3, 2, 3)
    expected = nn.functional.linear(
        images.permute(0, 2, 3, 1).reshape(4, -1), model.logits.weight, model.logits.bias
    )
    torch.testing.assert_close(model(images), expected)


def test_biases_begin_at_zero_and_weights_within_glorots_limit() -> None:
    model = Dense(10, (8, 8, 1), widths=(32,))
    weight = model.hidden[0].weight
    assert 0.95 < weight.abs().max().item() / (6 / (64 + 32)) ** 0.5 <= 1
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_dropout_and_batch_norm_act_in_training_only() -> None:
    model = Dense(2, (1, 1, 4), widths=(64,), dropout=0.5, batch_norm=True)
    rows = torch.randn(16, 4, 1, 1)
    assert not torch.equal(model(rows), model(rows))
    model.eval()
    assert torch.equal(model(rows), model(rows))
    assert [type(layer).__name__ for layer in model.hidden] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]


def test_it_learns_what_no_linear_model_can() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])[:, :, None, None]
    targets = torch.tensor([0, 1, 1, 0])
    model = Dense(2, (1, 1, 2), widths=(16,))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows), targets).backward()
        optimizer.step()
    assert model(rows).argmax(1).tolist() == targets.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"widths": (8, 0)}, "at least 1"), ({"dropout": 1.0}, "dropout"), ({"dropout": -0.1}, "dropout")],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Dense(2, (1, 1, 4), **options)
