from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.data.sampler import Sample
from foveal.errors import RecipeError
from foveal.models.registry import build_model
from foveal.recipe import Linear, Loss, ModelPart, Recipe, Sgd
from foveal.training.step import PreparedBatch, TrainStep


def recipe(**changes: object) -> Recipe:
    values = {
        "name": "test",
        "batch_size": 24,
        "steps": 10,
        "precision": "float32",
        "model": ModelPart(name="mnist_cnn", options={"filters": [4, 8], "units": 16, "dropout": 0.0}),
        "optimizer": Sgd(learning_rate=0.1),
    }
    return Recipe.model_validate(values | changes)


def batch(first: int = 0) -> PreparedBatch:
    generator = torch.Generator().manual_seed(first)
    positions = np.arange(first, first + 24)
    images = torch.rand(24, 28, 28, 1, generator=generator).permute(0, 3, 1, 2)
    targets = torch.randint(10, (24,), generator=generator)
    return PreparedBatch(images, targets, Sample(positions, positions, np.zeros_like(positions)))


def step_of(chosen: Recipe) -> tuple[torch.nn.Module, TrainStep]:
    model = build_model(chosen.model, 10, (28, 28, 1), seed=0).train()
    return model, TrainStep(model, chosen, 10, torch.device("cpu"))


def test_micro_batches_sum_to_the_whole_batch() -> None:
    gradients = []
    for micro in (None, 8, 1):
        model, step = step_of(recipe(micro_batch=micro))
        loss = step.backward(0, batch())
        gradients.append([loss, *(p.grad for p in model.parameters())])
    for parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts[1], parts[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(parts[2], parts[0], rtol=1e-4, atol=1e-6)


def test_dropout_follows_from_the_step_and_not_from_what_came_before() -> None:
    chosen = recipe(model=ModelPart(name="mnist_cnn", options={"dropout": 0.5}))
    _, step = step_of(chosen)
    first, again, other = (step.backward(number, batch()).item() for number in (3, 3, 4))
    torch.manual_seed(77)
    assert first == again == step.backward(3, batch()).item()
    assert first != other


def test_the_loss_is_the_smoothed_cross_entropy_of_the_logits() -> None:
    model, step = step_of(recipe(loss=Loss(label_smoothing=0.1)))
    one = batch()
    logits = model(one.images).log_softmax(dim=1)
    smooth = 0.9 * torch.nn.functional.one_hot(one.targets, 10) + 0.1 / 10
    expected = -(smooth * logits).sum(dim=1).mean()
    torch.testing.assert_close(step.backward(0, one), expected.detach())


def test_bfloat16_stays_near_float32_and_keeps_float32_weights() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        model, step = step_of(recipe(precision=precision))
        losses.append([step(number, batch(24 * number)).item() for number in range(5)])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_each_step_uses_the_learning_rate_of_its_number() -> None:
    _, step = step_of(recipe(schedule=Linear()))
    assert [step.learning_rate(number) for number in (0, 5, 9)] == pytest.approx([0.1, 0.05, 0.01])
    step(5, batch())
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_one_example_at_a_time_is_refused_where_batch_norm_makes_nothing_of_it() -> None:
    part = ModelPart(name="dense", options={"batch_norm": True})
    _, step = step_of(recipe(model=part, micro_batch=1))
    with pytest.raises(
        RecipeError, match=r"^dense cannot train on one example at a time.*2 or more"
    ) as caught:
        step.backward(0, batch())
    assert "\n" not in str(caught.value)
    step_of(recipe(model=part, micro_batch=2))[1].backward(0, batch())


def test_training_lowers_the_loss() -> None:
    _, step = step_of(recipe())
    losses = [step(number, batch()).item() for number in range(40)]
    assert losses[-1] < losses[0] * 0.9
