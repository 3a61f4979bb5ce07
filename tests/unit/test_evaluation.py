from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from foveal.data.source import ArraySource
from foveal.errors import CheckpointError, UnknownNameError
from foveal.evaluation import Evaluation, evaluate_network, find_metric
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
