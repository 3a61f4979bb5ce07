"""What the second classifier of a network adds to training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal.data.sampler import Sample
from foveal.errors import RecipeError
from foveal.models.auxiliary import MayHaveAuxiliaryHead, WithAuxiliary
from foveal.recipe import Loss, Recipe, Sgd
from foveal.training.step import PreparedBatch, TrainStep


class TwoHeads(nn.Module):
    """Two classifiers of the same pixels."""

    has_auxiliary_head = True

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 5), nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor | WithAuxiliary:
        pixels = images.flatten(1)
        logits: Tensor = self.first(pixels)
        return WithAuxiliary(logits, self.second(pixels)) if self.training else logits


class OneHead(TwoHeads):
    has_auxiliary_head = False

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images.flatten(1))  # type: ignore[no-any-return]


def recipe(**loss: float) -> Recipe:
    return Recipe(
        name="test",
        batch_size=8,
        steps=9,
        precision="float32",
        loss=Loss(**loss),
        optimizer=Sgd(learning_rate=0.1),
    )


def step_of(model: nn.Module, chosen: Recipe) -> TrainStep:
    return TrainStep(model.train(), chosen, 9, torch.device("cpu"))


def batch() -> PreparedBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 4, 4, generator=generator)
    positions = np.arange(8)
    targets = torch.randint(5, (8,), generator=generator)
    return PreparedBatch(images, targets, Sample(positions, positions, np.zeros_like(positions)))


@pytest.mark.parametrize(("given", "weight"), [({}, 0.3), ({"auxiliary_weight": 0.7}, 0.7)])
@pytest.mark.parametrize("micro", [None, 2])
def test_its_smoothed_loss_is_added_by_its_weight(
    given: dict[str, float], weight: float, micro: int | None
) -> None:
    torch.manual_seed(0)
    model, one = TwoHeads().train(), batch()
    heads = model(one.images)
    losses = [functional.cross_entropy(each, one.targets, label_smoothing=0.1) for each in heads]
    expected = losses[0] + weight * losses[1]
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    chosen = recipe(label_smoothing=0.1, **given).model_copy(update={"micro_batch": micro})
    torch.testing.assert_close(step_of(model, chosen).backward(0, one), expected.detach())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_soft_targets_of_mixed_images_hold_for_both() -> None:
    model, one = TwoHeads(), batch()
    soft = torch.eye(5)[one.targets] * 0.6 + 0.4 / 5
    mixed = PreparedBatch(one.images, soft, one.sample)
    logits, auxiliary = model.train()(one.images)
    expected = functional.cross_entropy(logits, soft) + 0.3 * functional.cross_entropy(auxiliary, soft)
    torch.testing.assert_close(step_of(model, recipe()).backward(0, mixed), expected.detach())


def test_with_a_weight_of_zero_it_learns_nothing() -> None:
    model = TwoHeads()
    before = model.second.weight.clone()
    step_of(model, recipe(auxiliary_weight=0.0))(0, batch())
    assert torch.equal(model.second.weight, before)


@pytest.mark.parametrize("model", [nn.Linear(48, 5), OneHead()], ids=["of any kind", "that might have one"])
def test_a_weight_for_a_network_without_one_is_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(RecipeError) as caught:
        step_of(model, recipe(auxiliary_weight=0.3))
    assert str(caught.value) == (
        "loss.auxiliary_weight = 0.3: small_cnn has no auxiliary head: leave it out, or give 0.0"
    )


@pytest.mark.parametrize("given", [{}, {"auxiliary_weight": 0.0}], ids=["none", "zero"])
def test_a_network_without_one_trains_as_ever(given: dict[str, float]) -> None:
    model, one = OneHead(), batch()
    expected = functional.cross_entropy(model(one.images), one.targets)
    torch.testing.assert_close(step_of(model, recipe(**given)).backward(0, one), expected.detach())
    assert isinstance(model, MayHaveAuxiliaryHead)
