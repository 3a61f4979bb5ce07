from __future__ import annotations

import copy
import errno
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveal.data.source import ArraySource, Batch
from foveal.errors import CheckpointError, UnknownNameError, UsageError
from foveal.evaluation import (
    Evaluation,
    EvaluationStopped,
    evaluate,
    evaluate_network,
    find_metric,
    higher_is_better,
)
from foveal.recipe import Recipe

CLASSES = tuple("abcdefgh")


class Fixed(nn.Module):
    """Logits that a table gives for the grey level of the first pixel."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.table[(images[:, 0, 0, 0] * 255).round().long()]


def recipe(batch_size: int) -> Recipe:
    values = {
        "name": "x",
        "batch_size": 1,
        "steps": 1,
        "precision": "float32",
        "loader_threads": 2,
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "evaluation": {"batch_size": batch_size},
    }
    return Recipe.model_validate(values)


@pytest.fixture
def examples() -> tuple[Fixed, ArraySource, torch.Tensor]:
    """100 examples, each of its own grey level, with random labels and logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100, 8, generator=generator) * 2
    targets = torch.randint(0, 8, (100,), generator=generator)
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    return Fixed(logits), ArraySource(images, targets.numpy(), CLASSES), logits


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_every_example_counts_once_whatever_the_batches(
    examples: tuple[Fixed, ArraySource, torch.Tensor], batch_size: int
) -> None:
    model, source, logits = examples
    targets = torch.from_numpy(source.targets)
    result = evaluate_network(model, source, recipe(batch_size), metrics=["f1_score"])
    assert result.examples == 100
    assert result.accuracy == int((logits.argmax(1) == targets).sum()) / 100
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    best = logits.topk(5).indices
    assert result.top5_accuracy == pytest.approx((best == targets[:, None]).any(1).float().mean().item())
    metric = find_metric("f1_score", 8)
    assert result.metrics == {"f1_score": pytest.approx(metric(logits.softmax(1), targets).item(), abs=1e-6)}
    for row, column in np.ndindex(8, 8):
        expected = ((targets == row) & (logits.argmax(1) == column)).sum()
        assert result.confusion[row, column] == expected


def test_averages_are_used_without_touching_the_network(
    examples: tuple[Fixed, ArraySource, torch.Tensor],
) -> None:
    model, source, logits = examples
    model.train()
    right = nn.functional.one_hot(torch.from_numpy(source.targets), 8).float()
    result = evaluate_network(model, source, recipe(10), averages={"table": right})
    assert result.accuracy == 1.0
    assert torch.equal(model.table, logits)
    assert model.training


def test_precision_and_recall_are_of_columns_and_rows() -> None:
    confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    result = Evaluation(5 / 6, 0.5, 6, confusion, ("a", "b", "c"))
    assert result.precision[:2].tolist() == [1.0, 2 / 3]
    assert result.recall[:2].tolist() == [0.75, 1.0]
    assert np.isnan(result.precision[2])
    assert np.isnan(result.recall[2])
    assert result.report()["classes"][2] == {"label": "c", "precision": None, "recall": None, "examples": 0}


def test_the_commonest_mistakes_come_first() -> None:
    confusion = np.array([[9, 1, 0], [4, 9, 0], [0, 2, 9]])
    result = Evaluation(0.8, 0.5, 34, confusion, ("a", "b", "c"))
    assert result.most_confused(2) == [("b", "a", 4), ("c", "b", 2)]
    assert len(result.most_confused(9)) == 3


def test_up_to_five_classes_there_is_no_top_five() -> None:
    images = np.zeros((4, 1, 1, 1), np.uint8)
    source = ArraySource(images, np.zeros(4, np.int64), tuple("abcde"))
    result = evaluate_network(Fixed(torch.eye(5)), source, recipe(2))
    assert result.top5_accuracy is None
    assert "top5_accuracy" not in result.record()


def test_a_network_that_diverged_is_an_error_and_not_a_number() -> None:
    source = ArraySource(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int64), tuple("ab"))
    with pytest.raises(CheckpointError, match="diverged"):
        evaluate_network(Fixed(torch.full((1, 2), float("nan"))), source, recipe(2))


def test_metrics_that_give_one_number_are_found_by_name_and_others_are_not() -> None:
    assert find_metric("cohen_kappa", 3).num_classes == 3
    for name in ("roc", "confusion_matrix", "no_such"):
        with pytest.raises(UnknownNameError):
            find_metric(name, 3)


def test_a_metric_that_is_measured_anyway_is_not_replaced_by_another_of_its_name(
    examples: tuple[Fixed, ArraySource, torch.Tensor],
) -> None:
    model, source, _ = examples
    plain = evaluate_network(model, source, recipe(10)).record()
    assert evaluate_network(model, source, recipe(10), metrics=["accuracy"]).record() == plain


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("accuracy", True),
        ("top5_accuracy", True),
        ("loss", False),
        ("f1_score", True),
        ("specificity", True),
        ("hinge_loss", False),
        ("calibration_error", False),
    ],
)
def test_which_metrics_are_to_rise(name: str, higher: bool) -> None:
    assert higher_is_better(name) is higher


def test_a_metric_that_there_is_not_neither_rises_nor_falls() -> None:
    with pytest.raises(UnknownNameError, match="f1_score"):
        higher_is_better("f1_scor")


def test_of_its_own_metrics_foveal_knows_without_loading_others() -> None:
    program = (
        "import sys\n"
        "from foveal.evaluation import higher_is_better\n"
        "print([higher_is_better(n) for n in ('accuracy', 'top5_accuracy', 'loss')],"
        " 'torchmetrics' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[True, True, False] False\n"


class Normalised(nn.Module):
    """Batch norm, a frozen one, and dropout, before logits; draws random numbers in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.BatchNorm2d(1)
        self.logits = nn.Linear(1, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.frozen(self.norm(images)).flatten(1)
        logits: torch.Tensor = self.logits(nn.functional.dropout(features, 0.5, training=True))
        return logits


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_in_training_is_evaluated_without_a_trace(
    examples: tuple[Fixed, ArraySource, torch.Tensor], averaged: bool, precision: str
) -> None:
    _, source, _ = examples
    model = Normalised().train()
    model.frozen.eval()
    model(torch.randn(4, 1, 1, 1)).sum().backward()
    averages = {name: torch.rand_like(v) for name, v in model.state_dict().items() if v.is_floating_point()}
    before = copy.deepcopy((model.state_dict(), averages, [each.grad for each in model.parameters()]))
    random = torch.get_rng_state()
    settings = recipe(10).model_copy(update={"precision": precision})
    found = []
    for _ in range(2):
        result = evaluate_network(model, source, settings, averages=averages if averaged else None)
        found.append(result.record())
        after = (model.state_dict(), averages, [each.grad for each in model.parameters()])
        assert torch.equal(torch.get_rng_state(), random)
        torch.manual_seed(1)
        random = torch.get_rng_state()
    for old, new in zip(before[:2], after[:2], strict=True):
        assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert all(map(torch.equal, before[2], after[2]))  # type: ignore[arg-type]
    assert [each.training for each in model.modules()] == [True, True, False, True]
    assert found[0] == found[1]  # it draws the same again


def test_averages_may_replace_statistics_of_batch_norm_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(1, 2, bias=False)).train()
    images = np.full((1, 1, 1, 1), 255, np.uint8)
    source = ArraySource(images, np.zeros(1, np.int64), ("a", "b"))
    averages = {
        "0.running_mean": torch.zeros(1),
        "0.running_var": torch.full((1,), 0.25),
        "2.weight": torch.tensor([[1.0], [0.0]]),
    }
    result = evaluate_network(model, source, recipe(1), averages=averages)
    expected = nn.functional.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item()
    assert result.loss == pytest.approx(expected, rel=1e-4)


def test_float32_averages_of_a_bfloat16_network_are_evaluated_in_bfloat16() -> None:
    images = np.zeros((1, 1, 1, 1), np.uint8)
    source = ArraySource(images, np.zeros(1, np.int64), ("a", "b"))
    table = torch.tensor([[1 / 3, 0.0]])
    found = [
        evaluate_network(Fixed(torch.zeros(1, 2, dtype=dtype)), source, recipe(1), averages={"table": table})
        for dtype in (torch.bfloat16, torch.float32)
    ]
    expected = [
        nn.functional.cross_entropy(table.to(dtype).float(), torch.tensor([0])).item()
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert [each.loss for each in found] == pytest.approx(expected, abs=1e-7)
    assert abs(expected[0] - expected[1]) > 1e-5


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_evaluation_ends_after_the_batch_in_which_it_is_asked_to(
    examples: tuple[Fixed, ArraySource, torch.Tensor], batches: int
) -> None:
    model, source, _ = examples
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    model.register_forward_hook(count)
    with pytest.raises(EvaluationStopped):
        evaluate_network(model, source, recipe(10), stopped=lambda: seen >= batches)
    assert seen == batches


class Failing:
    """A source whose device fails at the first read."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source
        self._failed = False

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, indices: np.ndarray) -> Batch:
        if not self._failed:
            self._failed = True
            raise OSError(errno.EIO, "Input/output error")
        return self._source.read(indices)


def test_trouble_with_the_data_is_reported(examples: tuple[Fixed, ArraySource, torch.Tensor]) -> None:
    model, source, _ = examples
    lines: list[str] = []
    result = evaluate_network(model, Failing(source), recipe(50), report=lines.append)
    assert result.examples == 100
    assert len(lines) == 1
    assert "trying again" in lines[0]


def test_to_evaluate_no_run_at_all_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="no run"):
        evaluate([])
