"""What learns and what does not, step by step."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from foveal.data.sampler import Sample
from foveal.errors import RecipeError
from foveal.models.modes import evaluating
from foveal.models.registry import build_model
from foveal.recipe import Recipe
from foveal.training.freezing import Freezing
from foveal.training.optimizer import load_optimizer_tensors, optimizer_tensors
from foveal.training.step import PreparedBatch, TrainStep

MODEL = {"name": "small_cnn", "options": {"widths": [4, 8], "kernel": 3, "stride": 1, "padding": True}}
HEAD_FIRST = (
    {"steps": 3, "freeze": ["^features"], "rate": 0.5},
    {"steps": 2, "freeze": [r"features\.[01]\."]},
)
OPTIMIZERS = [
    {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    {"name": "rmsprop", "learning_rate": 0.001, "momentum": 0.9, "weight_decay": 0.01},
]


class Plain(nn.Module):
    """A network whose batch norm has no parameters of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.logits = nn.Linear(4, 10)

    def forward(self, images):
        return self.logits(self.norm(self.conv(images)).mean(dim=(2, 3)))


def recipe(**changes):
    values = {"name": "test", "batch_size": 12, "steps": 10, "precision": "float32", "model": MODEL}
    return Recipe.model_validate(values | {"optimizer": OPTIMIZERS[0]} | changes)


def learner(chosen, model=None):
    model = (model or build_model(chosen.model, 10, (8, 8, 1), seed=0)).train()
    return model, TrainStep(model, chosen, 10, torch.device("cpu"))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    positions = np.arange(step * 12, step * 12 + 12)
    images = torch.rand(12, 8, 8, 1, generator=generator).permute(0, 3, 1, 2)
    targets = torch.randint(10, (12,), generator=generator)
    return PreparedBatch(images, targets, Sample(positions, positions, np.zeros_like(positions)))


def everything(model, train_step):
    """Copies of all tensors and slots, by name."""
    tensors = model.state_dict() | optimizer_tensors(train_step.optimizer, model)
    return {name: value.clone() for name, value in tensors.items()}


def changed_by(model, train_step, step):
    """What a step changes, by name."""
    before = everything(model, train_step)
    train_step(step, batch(step))
    return {
        name for name, value in everything(model, train_step).items() if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
def test_what_is_frozen_keeps_its_weights_and_statistics_and_has_no_slots(optimizer):
    model, train_step = learner(recipe(freeze=["^features"], optimizer=optimizer))
    changed = set.union(*(changed_by(model, train_step, step) for step in range(3)))
    assert {name for name in changed if "/" not in name} == {"logits.weight", "logits.bias"}
    assert not [name for name in optimizer_tensors(train_step.optimizer, model) if "features" in name]


def test_batch_norm_that_learns_in_part_goes_on_measuring():
    model, train_step = learner(recipe(freeze=[r"features\.1\.bias"]))
    changed = changed_by(model, train_step, 0)
    assert {"features.1.weight", "features.1.running_mean"} <= changed
    assert "features.1.bias" not in changed


@pytest.mark.parametrize("expression", [r"^conv", r"^(conv|norm)\."])
def test_batch_norm_without_parameters_is_fixed_where_its_statistics_are_named(expression):
    model, train_step = learner(recipe(freeze=[expression]), Plain())
    changed = changed_by(model, train_step, 0)
    assert ("norm.running_mean" in changed) == ("norm" not in expression)


def test_frozen_statistics_stay_fixed_after_an_evaluation_and_after_train_mode():
    model, train_step = learner(recipe(freeze=[r"features\.[01]\."]))
    train_step(0, batch(0))
    with evaluating(model):
        model(batch(0).images)
    assert not model.features[1].training
    assert model.features[5].training
    model.train()
    changed = changed_by(model, train_step, 1)
    assert not [name for name in changed if name.startswith("features.1.")]
    assert "features.5.running_mean" in changed


def test_parameters_that_the_network_itself_froze_stay_so_in_every_phase():
    model = build_model(recipe().model, 10, (8, 8, 1), seed=0)
    model.features[0].weight.requires_grad_(False)
    model, train_step = learner(recipe(phases=HEAD_FIRST), model)
    for step in range(7):
        assert "features.0.weight" not in changed_by(model, train_step, step)


def test_each_phase_changes_what_it_does_not_freeze_and_later_ones_the_rest():
    model, train_step = learner(recipe(phases=HEAD_FIRST, optimizer=OPTIMIZERS[1], freeze=["^logits.bias"]))
    assert "exp_avg/features.0.weight" in optimizer_tensors(train_step.optimizer, model)
    assert "exp_avg/logits.bias" not in optimizer_tensors(train_step.optimizer, model)
    for step in range(7):
        changed = changed_by(model, train_step, step)
        learns = {name.rpartition("/")[2] for name in changed if "features" in name or "logits" in name}
        assert ("logits.weight" in learns, "logits.bias" in learns) == (True, False)
        assert any(name.startswith("features.5.") for name in learns) == (step >= 3)
        assert any(name.startswith("features.1.") for name in learns) == (step >= 5)
    counts = optimizer_tensors(train_step.optimizer, model)
    names = ("logits.weight", "features.5.weight", "features.0.weight")
    assert [counts[f"step/{name}"].item() for name in names] == [7, 4, 2]


def test_a_frozen_parameter_gets_no_gradient():
    model, train_step = learner(recipe(phases=HEAD_FIRST))
    train_step.backward(0, batch(0))
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"logits.weight", "logits.bias"}
    train_step.optimizer.zero_grad()
    train_step.backward(5, batch(5))
    assert all(p.grad is not None for p in model.parameters())


def test_a_phase_multiplies_the_scheduled_rate():
    _, train_step = learner(recipe(phases=HEAD_FIRST, schedule={"name": "linear"}))
    rates = [train_step.learning_rate(step) for step in (2, 3, 5)]
    assert rates == pytest.approx([0.1 * 0.8 * 0.5, 0.1 * 0.7, 0.1 * 0.5])
    train_step(2, batch(2))
    assert train_step.optimizer.param_groups[0]["lr"] == rates[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6])
def test_going_on_in_any_phase_gives_the_same_bits(optimizer, stop):
    chosen = recipe(phases=HEAD_FIRST, optimizer=optimizer)
    whole, whole_step = learner(chosen)
    for step in range(8):
        if step == stop:
            stored = everything(whole, whole_step)
        whole_step(step, batch(step))
    resumed, resumed_step = learner(chosen)
    resumed.load_state_dict({name: value for name, value in stored.items() if "/" not in name})
    slots = {name: value for name, value in stored.items() if "/" in name}
    load_optimizer_tensors(resumed_step.optimizer, resumed, slots)
    for step in range(stop, 8):
        resumed_step(step, batch(step))
    expected, found = everything(whole, whole_step), everything(resumed, resumed_step)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_compiled_network_follows_the_phases(monkeypatch):
    quick = functools.partial(torch.compile, backend="aot_eager")  # all of it but the generation of C++
    monkeypatch.setattr(torch, "compile", quick)
    small = {"name": "dense", "options": {"widths": [8], "batch_norm": True}}
    phases = ({"steps": 2, "freeze": ["^hidden"]},)
    ends = []
    for compiled in (False, True):
        chosen = recipe(model=small, phases=phases, compile=compiled)
        model, train_step = learner(chosen)
        learnt = [any("hidden" in name for name in changed_by(model, train_step, step)) for step in range(4)]
        assert learnt == [False, False, True, True]
        ends.append(everything(model, train_step))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ["^featurs"]}, r"^freeze: '\^featurs' is found in no .*did you mean 'features'\?"),
        ({"freeze": ["running_mean"]}, "^freeze: 'running_mean' is found in no parameter's name"),
        ({"freeze": ["^logits", "."]}, r"^freeze: '\^logits', '.': leaves nothing to learn"),
        (
            {"phases": [{"steps": 1}, {"steps": 1, "freeze": ["x"]}]},
            r"^phases\[1\]\.freeze: 'x' is found in no",
        ),
        (
            {"freeze": ["^features"], "phases": [{"steps": 1, "freeze": ["^logits"]}]},
            r"^phases\[0\].*nothing to learn",
        ),
        ({"phases": [{"steps": 4}, {"steps": 6}]}, "take 10 steps of a run of 10"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        learner(recipe(**changes))


def test_a_group_learns_until_its_share_of_the_steps_while_the_schedule_runs_its_course():
    chosen = recipe(
        groups=[{"parameters": r"^features\.0", "learning_rate": 0.4, "until": 0.3}],
        schedule={"name": "linear"},
    )
    model, train_step = learner(chosen)
    rates = []
    for step in range(10):
        changed = changed_by(model, train_step, step)
        assert ("features.0.weight" in changed) == (step < 3)
        assert ("momentum_buffer/features.0.weight" in changed) == (step < 3)
        assert "logits.weight" in changed
        (own,) = (group["lr"] for group in train_step.optimizer.param_groups if group["until"])
        rates.append(own)
    assert rates[:3] == pytest.approx([0.4, 0.4 * 2 / 3, 0.4 / 3])
    assert train_step.learning_rate(5) == pytest.approx(0.05)


def test_groups_end_within_phases_and_the_first_group_of_a_parameter_counts():
    chosen = recipe(
        phases=[{"steps": 4, "freeze": ["^logits"], "rate": 0.5}],
        groups=[{"parameters": r"weight$"}, {"parameters": "^(features|logits)", "until": 0.2}],
    )
    model, train_step = learner(chosen)
    found = [changed_by(model, train_step, step) for step in range(6)]
    assert ["features.1.bias" in changed for changed in found] == [True, True, False, False, False, False]
    assert ["logits.weight" in changed for changed in found] == [False] * 4 + [True] * 2
    assert all("logits.bias" not in changed for changed in found)
    assert all("features.1.weight" in changed for changed in found)


def test_groups_may_not_leave_nothing_to_learn():
    with pytest.raises(RecipeError, match="the groups that end: leaves nothing to learn"):
        learner(recipe(groups=[{"parameters": ".", "until": 0.5}]))


def test_batch_norm_can_be_frozen_whatever_it_is_called():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    recipe = Recipe.model_validate(
        {
            "name": "norms",
            "batch_size": 2,
            "steps": 3,
            "freeze_batch_norm": True,
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
        }
    )
    freezing = Freezing(model, recipe, 3)
    model.train()
    freezing.apply(0)
    before = [value.clone() for norm in model[1:] for value in norm.state_dict().values()]
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    assert model[1].weight.grad is None
    assert model[0].weight.grad is not None
    after = [value for norm in model[1:] for value in norm.state_dict().values()]
    assert all(map(torch.equal, before, after))
