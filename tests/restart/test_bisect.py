"""Real runs, and where they part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.errors import RunError
from foveal.recipe import from_toml, override
from foveal.reproducibility.bisect import bisect
from foveal.training.loop import train


def contents(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def make(tiny, tmp_path_factory):
    """Train that recipe, changed: checkpoints at 20, 30 and 40 of 40 steps, losses logged at every tenth."""

    def run(*settings):
        folder = tmp_path_factory.mktemp("run") / "run"
        train(override(from_toml(tiny), settings), folder)
        return folder

    return run


@pytest.fixture(scope="module")
def other(make):
    """The same as ``trained_run``, trained a second time."""
    return make()


@pytest.fixture
def copy(trained_run, tmp_path):
    """A copy of the run, to change."""
    return Path(shutil.copytree(trained_run, tmp_path / "copy"))


def perturb(run: Path, step: int) -> None:
    """Go back to a checkpoint, move one weight a little in it, and save that as any other."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    folder = run / "checkpoints" / f"step-{step:09d}"
    stored = read_checkpoint(folder)
    shutil.rmtree(folder)
    stored.tensors["model"]["logits.bias"][3] += 1e-3
    write_checkpoint(folder, stored.tensors, stored.state)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def kinds(result):
    return {kind: each.step for kind, each in result.found.items()}


class TestEqualRuns:
    def test_are_identical_and_their_records_are_enough(self, trained_run, other):
        before = contents(trained_run, other)
        result = bisect(trained_run, other)
        assert (result.identical, result.first, result.steps) == (True, None, 40)
        assert list(result.replayed) == []
        assert contents(trained_run, other) == before

    def test_of_different_lengths_are_identical_in_the_steps_both_have_done(self, trained_run, make):
        result = bisect(trained_run, make("steps=27"))
        assert (result.identical, result.steps) == (True, 27)
        assert list(result.replayed) == [21, 22, 23, 24, 25, 26, 27]

    def test_that_log_and_save_at_other_steps_are_identical(self, trained_run, make):
        result = bisect(trained_run, make("logging.every=7 steps", "checkpoint.every=19 steps", "name=x"))
        assert (result.identical, result.steps) == (True, 40)

    def test_without_checkpoints_are_done_again_from_the_start(self, trained_run, copy):
        shutil.rmtree(copy / "checkpoints")
        result = bisect(trained_run, copy)
        assert (result.identical, list(result.replayed)) == (True, list(range(1, 41)))

    def test_are_identical_where_a_damaged_checkpoint_is_passed_over(self, trained_run, copy):
        damage(copy / "checkpoints" / "step-000000040" / "manifest.json")
        damage(copy / "checkpoints" / "step-000000030" / "model.safetensors")
        before, said = contents(copy), []
        result = bisect(trained_run, copy, report=said.append)
        assert (result.identical, list(result.replayed)) == (True, list(range(21, 41)))
        assert sum("step-000000030" in line for line in said) == 1
        assert contents(copy) == before


class TestRunsThatDiffer:
    def test_in_the_data_seed_part_in_the_first_batch(self, trained_run, make):
        result = bisect(trained_run, make("seed.data=1"))
        assert result.recipe == {"seed.data": (0, 1)}
        assert kinds(result) == {"batch": 1, "loss": 1, "weights": 1}
        assert result.first.kind == "batch"
        assert [line.partition(":")[0] for line in result.first.details] == ["examples", "classes", "pixels"]
        assert (result.data, result.contradictions) == (None, ())

    def test_in_the_distortions_part_in_the_pixels_of_the_first_batch(self, trained_run, make):
        result = bisect(trained_run, make('augmentation=[{name="translate", pixels=2}]'))
        assert list(result.recipe) == ["augmentation"]
        assert (result.first.kind, result.first.step) == ("batch", 1)
        assert [line.partition(":")[0] for line in result.first.details] == ["pixels"]

    def test_in_the_learning_rate_part_in_the_weights_that_the_first_step_gives(self, trained_run, make):
        result = bisect(trained_run, make("optimizer.learning_rate=0.02"))
        assert result.recipe == {"optimizer.learning_rate": (0.01, 0.02)}
        assert kinds(result) == {"weights": 1, "loss": 2}
        assert (result.first.kind, result.identical) == ("weights", False)
        assert list(result.replayed) == list(range(1, 11))

    def test_in_the_rate_of_a_late_phase_part_where_that_begins(self, make):
        phases = "phases=[{{steps=23}}, {{steps=5, rate={rate}}}]"
        result = bisect(make(phases.format(rate=0.5)), make(phases.format(rate=0.25)))
        assert kinds(result) == {"weights": 24, "loss": 25}
        assert list(result.replayed) == list(range(21, 31))
        assert list(result.recipe) == ["phases"]

    def test_in_the_seed_of_the_weights_part_before_the_first_step(self, trained_run, make):
        result = bisect(trained_run, make("seed.init=9"))
        assert kinds(result) == {"weights": 0, "loss": 1}

    def test_in_the_network_part_before_the_first_step(self, trained_run, make):
        wider = "model.options={widths=[16, 40], kernel=3, stride=1, padding=true}"
        result = bisect(trained_run, make(wider))
        assert list(result.recipe) == ["model.options"]
        assert result.first.step == 0
        assert any(
            "float32 [32, 16, 3, 3] != float32 [40, 16, 3, 3]" in line for line in result.first.details
        )

    def test_in_the_decay_of_the_averages_part_in_these_alone(self, trained_run, make):
        result = bisect(trained_run, make("ema.decay=0.5"))
        assert kinds(result) == {"weights": 9}  # (1 + n) / (10 + n) is above 0.5 from there on
        assert all(line.startswith("ema ") for line in result.first.details)

    def test_only_in_a_field_without_effect_on_training_do_not_part(self, trained_run, make):
        result = bisect(trained_run, make("evaluation.every=20 steps"))
        assert (list(result.recipe), result.first, result.identical) == (["evaluation.every"], None, False)

    def test_in_one_pixel_of_their_data_part_when_it_is_shown(self, make, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
        runs = []
        for name in ("a", "b"):
            np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=np.arange(60) % 10)
            path = f"data.path={tmp_path / name}.npz"
            shuffle = 'data.shuffle="none"'
            runs.append(
                make("data.name=arrays", path, shuffle, "batch_size=16", "steps=9", "augmentation=[]")
            )
            images[40, 3, 3] ^= 255
        result = bisect(*runs)
        assert result.data is not None
        assert len(set(result.data)) == 2
        assert (result.first.kind, result.first.step, result.recipe) == ("batch", 3, {})
        assert len(result.first.details) == 1
        assert result.first.details[0].startswith("pixels: 1 of 16 differ")
        with pytest.raises(RunError, match="not the data it was trained on"):
            bisect(*runs, data=tmp_path / "a.npz")


class TestRunsThatCannotBeReproduced:
    def test_are_named_with_the_step_at_which_their_weights_were_changed(self, trained_run, copy, tiny):
        perturb(copy, 20)
        train(override(from_toml(tiny), []), copy)
        result = bisect(trained_run, copy)
        assert (result.recipe, result.data, kinds(result)) == ({}, None, {"weights": 20})
        (found,) = result.contradictions
        assert (found.run, found.kind, found.since, found.step) == (copy, "weights", 20, 20)
        assert found.details == ("model logits.bias: 1 of 10 values differ, by at most 0.001",)
        assert result.identical is False

    def test_are_bracketed_by_what_they_recorded(self, trained_run, copy, tiny):
        perturb(copy, 20)
        train(override(from_toml(tiny), []), copy)
        shutil.rmtree(copy / "checkpoints" / "step-000000020")
        result = bisect(copy, trained_run)
        (found,) = result.contradictions
        assert (found.run, found.since, found.step) == (copy, 20, 30)
        assert (kinds(result), found.kind) == ({"loss": 30}, "loss")
        assert list(result.replayed) == list(range(1, 31))

    def test_are_found_even_if_both_tell_the_same(self, copy, tmp_path):
        lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        lines[2]["loss"] += 1e-7
        (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.rmtree(copy / "checkpoints")
        twin = shutil.copytree(copy, tmp_path / "twin")
        result = bisect(copy, twin)
        assert [(each.run, each.step) for each in result.contradictions] == [(copy, 20), (twin, 20)]
        assert (result.first, result.identical) == (None, False)


class TestDamagedLogs:
    def test_are_used_up_to_the_damage(self, trained_run, copy):
        content = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_bytes(content[0] + b"\xff{}\n" + content[2])
        said = []
        assert bisect(trained_run, copy, report=said.append).identical is True
        assert [line.partition(": ")[0] for line in said] == [str(copy / "metrics.jsonl")]

    def test_of_a_run_that_recorded_nothing_leave_nothing_to_compare(self, trained_run, copy):
        shutil.rmtree(copy / "checkpoints")
        (copy / "metrics.jsonl").write_bytes(b"\0" * 100)
        result = bisect(trained_run, copy)
        assert (result.steps, result.found) == (0, {})


def test_a_folder_without_a_run_is_refused(trained_run, tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        bisect(trained_run, tmp_path)
