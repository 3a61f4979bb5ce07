from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveal.data.source import ArraySource, Batch
from foveal.ensemble import check_ensemble, mean_answer, shared_batches
from foveal.errors import CorruptRecordError, RunError, UsageError
from foveal.inference import TrainedRun
from foveal.recipe import Recipe, Resize

CLASSES = ("a", "b", "c")


def recipe(**changes: Any) -> Recipe:
    values = {
        "name": "x",
        "batch_size": 1,
        "steps": 1,
        "device": "cpu",
        "loader_threads": 1,
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "evaluation": {"batch_size": 4},
        "data": {"backend": "numba", "on_corrupt": "skip"},
    }
    return Recipe.model_validate(values | changes)


class Counted:
    """Ten grey images, each of a level of its own, some of them damaged; says how often it was read."""

    def __init__(self, *damaged: int) -> None:
        images = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, axis=1).repeat(4, axis=2)
        self._source = ArraySource(images * 20, np.arange(10) % 3, CLASSES)
        self._damaged = damaged
        self.reads = 0

    def __len__(self) -> int:
        return 10

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, indices: np.ndarray) -> Batch:
        self.reads += 1
        if found := set(indices.tolist()) & set(self._damaged):
            raise CorruptRecordError(f"record {min(found)} is damaged")
        return self._source.read(indices)


def collect(source: Any, recipes: list[Recipe]) -> list[Any]:
    with shared_batches(source, recipes, lambda _text: None, lambda: False) as batches:
        return list(batches)


def test_the_mean_answer_is_the_logarithm_of_the_mean_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(50, 7, generator=generator) * scale for scale in (1, 5, 30)]
    expected = torch.stack([each.double().softmax(dim=1) for each in logits]).mean(dim=0)
    found = mean_answer(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.softmax(dim=1).double(), expected, rtol=1e-5, atol=1e-8)


def test_the_answer_of_one_network_is_its_own_to_the_bit() -> None:
    logits = torch.randn(5, 3)
    assert mean_answer([logits]) is logits


def test_what_one_network_rules_out_is_left_to_the_other() -> None:
    sure = torch.tensor([[0.0, -1000.0]])
    torch.testing.assert_close(mean_answer([sure, torch.zeros(1, 2)]).exp(), torch.tensor([[0.75, 0.25]]))
    assert mean_answer([sure, sure])[0, 1].item() == pytest.approx(-1000)
    assert not math.isinf(mean_answer([sure, sure]).min().item())


def test_each_network_sees_every_example_once_in_its_own_way() -> None:
    small = recipe(preprocessing=(Resize(size=(2, 3)),))
    bright = recipe(normalization={"mean": (0.5,), "deviation": (2.0,)})
    batches = collect(Counted(), [recipe(), small, bright])
    assert torch.cat([batch.targets for batch in batches]).tolist() == [i % 3 for i in range(10)]
    whole, resized, normalised = (torch.cat([batch.images[i] for batch in batches]) for i in range(3))
    assert (whole.shape, resized.shape) == ((10, 1, 4, 4), (10, 1, 2, 3))
    levels = torch.arange(10) * 20 / 255
    torch.testing.assert_close(whole[:, 0, 0, 0], levels)
    torch.testing.assert_close(resized[:, 0, 0, 0], levels)
    torch.testing.assert_close(normalised[:, 0, 0, 0], (levels - 0.5) / 2)


def test_recipes_that_prepare_images_alike_read_them_once() -> None:
    alike = recipe(seed={"init": 1, "data": 2}, optimizer={"name": "sgd", "learning_rate": 0.1})
    one, two, three = Counted(), Counted(), Counted()
    collect(one, [recipe()])
    batches = collect(two, [recipe(), alike])
    collect(three, [recipe(), recipe(preprocessing=(Resize(size=(2, 2)),))])
    assert (one.reads, two.reads) == (3, 3)
    assert three.reads >= 6
    assert all(torch.equal(*batch.images) for batch in batches)


def test_distortions_that_are_drawn_are_each_recipes_own() -> None:
    drawn = {"preprocessing": ({"name": "translate", "pixels": 3},)}
    batches = collect(Counted(), [recipe(**drawn), recipe(**drawn, seed={"data": 1})])
    assert not all(torch.equal(*batch.images) for batch in batches)


def test_damaged_records_are_left_out_for_all_and_counted_once() -> None:
    recipes = [recipe(), recipe(preprocessing=(Resize(size=(2, 2)),))]
    batches = collect(Counted(1, 4, 5, 6, 7), recipes)
    assert [batch.targets.tolist() for batch in batches] == [[0, 2, 0], [], [2, 0]]
    assert [len(batch.corrupt) for batch in batches] == [1, 4, 0]
    assert [[len(images) for images in batch.images] for batch in batches] == [[3, 3], [0, 0], [2, 2]]


def run(name: str, **changes: Any) -> TrainedRun:
    state = {"classes": list(CLASSES), "data": "1234", "image_shape": [4, 4, 1], "step": 1} | changes
    data = {"name": "folder", "path": state.pop("path", "photos")}
    return TrainedRun(Path(name), recipe(data=data), nn.Linear(1, 1), "raw", state)


def test_runs_of_the_same_classes_and_data_go_together() -> None:
    check_ensemble([run("a"), run("b"), run("c", path="moved/photos")], same_data=True)
    check_ensemble([run("a"), run("b", data="balanced")], same_data=True)  # from the same place
    check_ensemble([run("a"), run("b", data="other", path="other")], same_data=False)


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["a", "c", "b"], ["number 1", "'b'", "'c'"]), (["a", "b"], ["3 and 2"])],
)
def test_runs_of_other_classes_are_refused_saying_which(classes: list[str], words: list[str]) -> None:
    with pytest.raises(RunError, match="other classes") as caught:
        check_ensemble([run("runs/a"), run("runs/b", classes=classes)], same_data=False)
    assert all(word in str(caught.value) for word in ["runs/a", "runs/b", *words])


def test_runs_on_other_data_are_refused() -> None:
    with pytest.raises(RunError, match=r"runs/a and runs/b were trained on other data.*--data"):
        check_ensemble([run("runs/a"), run("runs/b", data="other", path="other")], same_data=True)


def test_a_run_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="named twice"):
        check_ensemble([run("runs/a"), run("runs/b"), run("runs/b/../a")], same_data=True)
