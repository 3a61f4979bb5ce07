"""What a run remembers besides weights: its best step, its patience, what it keeps, what it has yet to do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.checkpoints.layout import read_state
from foveal.data.catalog import open_data
from foveal.errors import CheckpointError, RecipeError, UnknownNameError
from foveal.recipe import from_toml, override
from foveal.run_folder import RunFolder
from foveal.training.console import Silent
from foveal.training.session import Session

VALIDATING = ("steps=24", "evaluation.every=4 steps", "checkpoint.every=never", "logging.every=1 step")


@pytest.fixture
def recipe(tiny: Path):
    def make(*settings: str) -> foveal.Recipe:
        return override(from_toml(tiny), [*VALIDATING, *settings])

    return make


def saved_steps(run: Path) -> list[int]:
    return RunFolder(run).checkpoints.steps()


def state(run: Path, step: int) -> dict[str, Any]:
    return read_state(RunFolder(run).checkpoints.path(step))


def validations(run: Path) -> list[dict[str, Any]]:
    return [record for record in RunFolder(run).evaluations() if record["split"] == "validation"]


def without_times(run: Path, name: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / name).read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def assert_equal_runs(first: Path, second: Path, step: int) -> None:
    for part in ("model", "ema", "optimizer"):
        name = f"checkpoints/step-{step:09d}/{part}.safetensors"
        assert (first / name).read_bytes() == (second / name).read_bytes()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_times(first, log) == without_times(second, log)
    assert {**state(first, step), "train_seconds": 0, "logs": 0} == {
        **state(second, step),
        "train_seconds": 0,
        "logs": 0,
    }


class StopAfter:
    """Says stop once it has been asked a number of times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


HARDLY_LEARNING = ("optimizer.learning_rate=1e-30", "evaluation.patience=2", "steps=60")


def test_training_ends_when_evaluations_bring_no_new_best(recipe, tmp_path: Path) -> None:
    result = foveal.train(recipe(*HARDLY_LEARNING), tmp_path / "run")
    measured = {record["step"]: record["accuracy"] for record in validations(tmp_path / "run")}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert (result.step, result.finished) == (best + 8, True)
    assert max(measured) == result.step < 60
    again = foveal.train(recipe(*HARDLY_LEARNING), tmp_path / "run")
    assert (again.step, again.accuracy) == (result.step, result.accuracy)


def test_patience_survives_an_interruption(recipe, tmp_path: Path) -> None:
    whole = foveal.train(recipe(*HARDLY_LEARNING), tmp_path / "whole")
    half_spent = whole.step - 4
    foveal.train(recipe(*HARDLY_LEARNING, f"steps={half_spent}"), tmp_path / "parts")
    assert state(tmp_path / "parts", half_spent)["stale"] == 1
    foveal.train(recipe(*HARDLY_LEARNING), tmp_path / "parts")
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole", whole.step)


def test_patience_without_a_validation_part_is_refused(recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.patience needs a validation part"):
        foveal.train(
            recipe("evaluation.patience=3", "data.name=tests.unit.training.test_run_state:no_validation"),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def no_validation() -> foveal.DataSet:
    digits = open_data(foveal.load_recipe("digits").data)
    return foveal.DataSet(digits.train, test=digits.test)


def test_the_best_checkpoint_may_be_that_of_lowest_loss(recipe, tmp_path: Path) -> None:
    settings = ("evaluation.best=loss", "checkpoint.keep_last=1", "optimizer.learning_rate=0.03")
    foveal.train(recipe(*settings), tmp_path / "run")
    measured = {record["step"]: record["loss"] for record in validations(tmp_path / "run")}
    best = min(measured, key=lambda step: measured[step])
    assert set(saved_steps(tmp_path / "run")) == {best, 24}
    assert state(tmp_path / "run", best)["score"] == -measured[best]
    assert foveal.evaluate(tmp_path / "run", checkpoint="best", split="validation").step == best


@pytest.mark.parametrize("setting", ["evaluation.best=accurracy", "checkpoint.keep_best={f1_score=1}"])
def test_a_metric_that_is_not_measured_cannot_decide(recipe, tmp_path: Path, setting: str) -> None:
    with pytest.raises(UnknownNameError, match="no metric named"):
        foveal.train(recipe(setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_kept_is_the_same_for_a_run_in_parts(recipe, tmp_path: Path) -> None:
    settings = (
        "checkpoint.every=2 steps",
        "checkpoint.keep_last=2",
        "checkpoint.keep_steps=10",
        "checkpoint.keep_best={accuracy=1, loss=1}",
    )
    foveal.train(recipe(*settings), tmp_path / "whole")
    for steps in (8, 16, 24):
        foveal.train(recipe(*settings, f"steps={steps}"), tmp_path / "parts")
    kept = saved_steps(tmp_path / "whole")
    assert kept == saved_steps(tmp_path / "parts")
    assert {10, 20, 22, 24} <= set(kept)


def test_a_checkpoint_kept_by_name_outlives_those_around_it(recipe, tmp_path: Path) -> None:
    settings = ("checkpoint.every=2 steps", "checkpoint.keep_last=1", "checkpoint.keep_best=0")
    foveal.train(recipe(*settings, "steps=6"), tmp_path / "run")
    RunFolder(tmp_path / "run").checkpoints.keep(6)
    foveal.train(recipe(*settings), tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [6, 24]


@pytest.mark.parametrize("batches_evaluated", [0, 1, 3])
def test_a_stop_during_an_evaluation_loses_neither_the_step_nor_the_evaluation(
    recipe, tmp_path: Path, batches_evaluated: int
) -> None:
    chosen = recipe("evaluation.batch_size=20", "checkpoint.keep_last=1", "checkpoint.every=4 steps")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    foveal.train(chosen, whole)
    interrupt_first_evaluation(chosen, stopped, batches_evaluated)
    assert saved_steps(stopped) == [4]
    assert state(stopped, 4)["evaluation_pending"] is True
    assert validations(stopped) == []
    foveal.train(chosen, stopped)
    assert_equal_runs(whole, stopped, 24)
    assert saved_steps(whole) == saved_steps(stopped)


def interrupt_first_evaluation(recipe: foveal.Recipe, run: Path, batches: int) -> None:
    from foveal.evaluation import EvaluationStopped

    folder = RunFolder(run)
    session = Session(resolved(recipe), open_data(recipe.data), Silent(), stopped=StopAfter(batches))
    folder.create(fresh=False)
    session.open(folder)
    with session.batches() as prepared:
        for _ in range(3):
            session.train(next(prepared))
        with pytest.raises(EvaluationStopped):
            session.train(next(prepared))
    session.save()
    session.finish_saving()
    session.close()


def resolved(recipe: foveal.Recipe) -> foveal.Recipe:
    from foveal.device import resolve_machine

    return resolve_machine(recipe)


@pytest.mark.parametrize("save", ["async", "sync"])
def test_a_save_that_fails_ends_training_and_leaves_a_run_that_goes_on(
    recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    chosen = recipe("checkpoint.every=2 steps", f"checkpoint.save={save}")
    sync = os.fsync

    def full(descriptor: int) -> None:
        if "step-000000008" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"step-000000008 .*No space left.*free some space"):
            foveal.train(chosen, tmp_path / "run")
    assert saved_steps(tmp_path / "run")[-1] == 6
    foveal.train(chosen, tmp_path / "run")
    foveal.train(chosen, tmp_path / "whole")
    assert_equal_runs(tmp_path / "run", tmp_path / "whole", 24)


@pytest.mark.parametrize("save", ["async", "sync"])
def test_both_ways_of_saving_write_the_same(recipe, tmp_path: Path, save: str) -> None:
    foveal.train(recipe(f"checkpoint.save={save}", "checkpoint.every=1 step"), tmp_path / save)
    foveal.train(recipe(), tmp_path / "reference")
    assert_equal_runs(tmp_path / save, tmp_path / "reference", 24)


def test_a_saved_state_is_that_of_its_step_though_training_went_on(recipe, tmp_path: Path) -> None:
    settings = ("checkpoint.every=1 step", "checkpoint.keep_last=100")
    foveal.train(recipe(*settings, "steps=6"), tmp_path / "all")
    for step in range(1, 7):
        foveal.train(recipe(f"steps={step}"), tmp_path / str(step))
        manager = RunFolder(tmp_path / "all").checkpoints
        ours, alone = manager.load(step), RunFolder(tmp_path / str(step)).checkpoints.load(step)
        assert ours is not None
        assert alone is not None
        for part in alone.tensors:
            for name, tensor in alone.tensors[part].items():
                assert torch.equal(ours.tensors[part][name], tensor), (step, part, name)
