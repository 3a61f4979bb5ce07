"""Whole runs, small: what may change nothing changes nothing, and what is written down is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.errors import RunError
from foveal.files import exclusive_lock

if TYPE_CHECKING:
    from pathlib import Path

SMALL = (
    "model.options={widths=[8, 16], kernel=3, stride=1, padding=true, dropout=0.2}",
    "batch_size=40",
    "steps=24",
    "schedule.name=constant",
    "precision=float32",
    "threads=1",
    "logging.every=1 step",
    "evaluation.every=never",
    "checkpoint.every=never",
)


def small(*settings: str) -> foveal.Recipe:
    return foveal.override_recipe(foveal.load_recipe("digits"), [*SMALL, *settings])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int = 24) -> bytes:
    return (run / f"checkpoints/step-{step:09d}/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("session") / "reference"
    foveal.train(small(), run)
    return run


@pytest.mark.parametrize(
    "settings",
    [
        ("evaluation.every=3 steps",),
        ("logging.activations=['features', 'probabilities']", "logging.activations_every=2 steps"),
        (
            "logging.loss_averages=0.9",
            "logging.histograms=['activations', 'weights', 'gradients']",
            "logging.histograms_every=2 steps",
            "logging.images=3",
            "logging.images_every=1 step",
            "logging.graph=true",
        ),
        ("loader_threads=3",),
        ("checkpoint.every=5 steps", "checkpoint.keep_last=1", "checkpoint.keep_best=0"),
        ("ema={decay=0.9}", "evaluation.every=5 steps"),
    ],
    ids=[
        "evaluating",
        "looking at activations",
        "all for TensorBoard",
        "more loader threads",
        "saving",
        "averaging",
    ],
)
def test_what_only_looks_changes_nothing(reference: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    foveal.train(small(*settings), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(reference)
    assert weights(tmp_path / "run") == weights(reference)


def test_a_run_in_two_parts_ends_like_one_in_a_single_part(reference: Path, tmp_path: Path) -> None:
    for steps in (7, 24):
        result = foveal.train(small(f"steps={steps}"), tmp_path / "run")
        assert (result.step, result.finished) == (steps, True)
    assert losses(tmp_path / "run") == losses(reference)
    assert weights(tmp_path / "run") == weights(reference)


def test_other_seeds_train_otherwise(reference: Path, tmp_path: Path) -> None:
    for seed in ("seed.init=1", "seed.data=1"):
        foveal.train(small(seed), tmp_path / seed)
        assert losses(tmp_path / seed) != losses(reference)


def test_training_a_finished_run_again_says_the_same_and_changes_no_file(reference: Path) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    result = foveal.train(small(), reference)
    after = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    assert after == before
    assert result.accuracy == json.loads((reference / "evaluations.jsonl").read_text())["accuracy"]


def test_the_stored_recipe_is_complete_and_trains_the_same(reference: Path, tmp_path: Path) -> None:
    recipe = foveal.read_recipe(reference / "recipe.toml")
    assert "auto" not in (reference / "recipe.toml").read_text()
    foveal.train(recipe, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(reference)


def test_automatic_precision_is_measured_once_and_stored(tmp_path: Path) -> None:
    foveal.train(small("precision=auto", "steps=2"), tmp_path / "run")
    stored = foveal.read_recipe(tmp_path / "run" / "recipe.toml")
    assert stored.precision in ("float32", "bfloat16")
    foveal.train(small("precision=auto", "steps=4"), tmp_path / "run")
    assert foveal.read_recipe(tmp_path / "run" / "recipe.toml").precision == stored.precision


def test_the_best_checkpoint_by_validation_outlives_newer_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("evaluation.every=4 steps", "checkpoint.every=4 steps", "checkpoint.keep_last=1")
    foveal.train(small(*settings), run)
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    validated = {r["step"]: r["accuracy"] for r in records if r["split"] == "validation"}
    best = max(validated, key=lambda step: (validated[step], -step))
    kept = {int(path.name[5:]) for path in (run / "checkpoints").iterdir()}
    assert kept == {24, best}
    evaluated = foveal.evaluate(run, checkpoint="best", split="validation")
    assert (evaluated.step, evaluated.accuracy) == (best, validated[best])


def test_evaluating_a_run_gives_what_training_logged(reference: Path) -> None:
    logged = json.loads((reference / "evaluations.jsonl").read_text())
    result = foveal.evaluate(reference)
    assert (result.accuracy, result.loss, result.examples) == (logged["accuracy"], logged["loss"], 400)
    assert result.confusion.sum() == 400
    assert np.trace(result.confusion) / 400 == result.accuracy


def test_activations_are_logged_with_the_step_they_belong_to(tmp_path: Path) -> None:
    settings = ("logging.every=never", "logging.activations=['logits']", "logging.activations_every=10 steps")
    foveal.train(small(*settings), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line.get("activations", {}) for line in lines}
    assert set(found) == {10, 20, 24}
    assert set(found[10]["logits"]) == {"mean", "deviation", "min", "max", "zeros"}


def test_a_second_trainer_in_the_same_folder_is_refused(reference: Path) -> None:
    with (
        exclusive_lock(reference / ".lock", "held"),
        pytest.raises(RunError, match="another process is training"),
    ):
        foveal.train(small(), reference)


def test_a_run_can_be_described_and_predicted_with_as_a_library(reference: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    good, bad = foveal.predict(reference, [tmp_path / "black.png", tmp_path / "none.png"], top=3)
    assert len(good.top) == 3
    assert sum(guess.probability for guess in good.top) <= 1.0001
    assert good.top[0].probability >= good.top[1].probability
    assert bad.error is not None
    assert "none.png" in bad.error


@pytest.mark.parametrize("batching", ["drop_last", "keep_last"])
def test_every_way_of_batching_trains_and_resumes(tmp_path: Path, batching: str) -> None:
    chosen = (f"data.batching={batching}", "batch_size=500")
    for run, parts in ((tmp_path / "whole", (8,)), (tmp_path / "parts", (2, 8))):
        for steps in parts:
            foveal.train(small(*chosen, f"steps={steps}"), run)
    assert weights(tmp_path / "whole", 8) == weights(tmp_path / "parts", 8)


def _record(run: Path, step: int) -> dict[str, Any]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return next(line for line in lines if line["step"] == step)


def test_a_logged_step_holds_its_numbers_and_its_times_apart(reference: Path) -> None:
    record = _record(reference, 12)
    assert set(record) == {"step", "epoch", "loss", "learning_rate", "time"}
    assert record["epoch"] == pytest.approx(12 * 40 / 1200)
    assert set(record["time"]) == {"wall", "seconds_per_batch", "examples_per_second", "data_wait"}
    assert 0 <= record["time"]["data_wait"] <= 1


def test_images_of_several_sizes_need_no_preprocessing_where_nothing_is_evaluated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10 + number, 12), np.uint8)).save(path)
    settings = ("steps=2", "batch_size=4", "augmentation=[{name='random_resized_crop', size=[8, 8]}]")
    recipe = small(*settings, f"data={{name='folder', path='{tmp_path / 'data'}'}}")
    assert foveal.train(recipe, tmp_path / "run").finished
