"""``foveal verify-resume``: real processes, killed for real; bugs planted in what they run (planted.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveal.errors import RunError, UsageError
from foveal.faults import POINTS
from foveal.recipe import from_toml, override
from foveal.reproducibility.verify_resume import _plan, verify_resume
from foveal.run_folder import RunFolder

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    """The processes find planted.py, and so does this one."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def recipe(tiny):
    """The small recipe, with a transform of planted.py and more changes."""

    def make(transform, *changes):
        return override(from_toml(tiny), [f'augmentation=[{{name="planted:{transform}"}}]', *changes])

    return make


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "foveal", "verify-resume", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_run_killed_at_every_fault_point_is_identical_to_one_that_never_was(tiny, tmp_path):
    kept = tmp_path / "kept"
    with start(
        tiny, "--json", "--kills", 8, "--keep", kept, "--set", 'augmentation=[{name="planted:harmless"}]'
    ) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["identical"] is True
    assert document["differences"] == []
    assert document["not_applicable"] == {}
    kills = document["kills"]
    assert sorted(kill["point"] for kill in kills) == sorted([*POINTS, "random"])
    assert all(kill["differences"] == [] for kill in kills)
    assert all(kill["resumed_from"] <= kill["step"] + 1 for kill in kills)
    steps = [kill["resumed_from"] for kill in kills]
    assert steps == sorted(steps)
    assert len(set(steps)) > 4
    assert document["compared"]["records of metrics.jsonl"] == document["steps"] == 40
    assert document["compared"]["tensors"] > 30
    lines = [line for line in err.splitlines() if line.endswith("identical so far")]
    assert len(lines) == 8
    logs = [path.read_text() for path in sorted(kept.glob("killed-*.log"))]
    assert len(logs) == 9
    for kill, log, after in zip(kills, logs, logs[1:], strict=False):
        assert f"killed: {kill['point']} at step {kill['step']}" in log
        assert (f"continuing from step {kill['resumed_from']} " in after) == (kill["resumed_from"] > 0)
    assert (kept / "killed" / "recipe.toml").read_bytes() == (
        kept / "undisturbed" / "recipe.toml"
    ).read_bytes()


@pytest.mark.parametrize("seed", range(20))
def test_kills_are_spread_over_the_run_and_each_has_room_to_happen(trained_run, seed):
    strikes, _ = _plan(RunFolder(trained_run), 9, seed)
    assert sorted(strike.point for strike in strikes) == sorted([*POINTS, "random", "random"])
    assert [strike.step // 4 for strike in strikes] == list(range(9))  # 40 steps: the last four are left
    steps = {strike.point: strike.step for strike in strikes}
    assert steps["loader"] <= 32  # later, all batches may be loaded already
    assert steps["deletion"] >= 4  # sooner, there is nothing to delete


def found(recipe):
    """The verification of a recipe with a bug; the last kill of it is the one that shows it."""
    told = []
    result = verify_resume(recipe, kills=7, killed=told.append)
    assert result.report()["identical"] is False
    assert tuple(told) == result.kills
    assert [bool(kill.differences) for kill in told] == [False] * (len(told) - 1) + [True]
    return result


def test_a_slot_of_the_optimizer_that_is_not_restored_is_found(recipe):
    result = found(recipe("forgotten_slot"))
    assert any(": loss " in line for line in result.kills[-1].differences)
    assert any(": optimizer exp_avg/" in line for line in result.comparison.differences)


@pytest.mark.slow
def test_a_slot_of_the_optimizer_that_is_not_saved_is_found(recipe):
    result = found(recipe("unsaved_slot"))
    assert any(": loss " in line for line in result.kills[-1].differences)


def test_a_distortion_drawn_from_a_generator_of_the_process_is_found(recipe):
    result = found(recipe("global_generator"))
    assert any(": loss " in line for line in result.kills[-1].differences)
    assert any(": model " in line for line in result.comparison.differences)


def test_logs_that_are_not_cut_are_found_though_nothing_is_evaluated(recipe):
    changes = ("evaluation.every=never", "evaluation.final=false")
    result = found(recipe("uncut_logs", *changes))
    assert any("stands in it 2 times" in line for line in result.kills[-1].differences)
    assert not any(": model " in line for line in result.comparison.differences)
    assert result.not_applicable == {"evaluation": "nothing is evaluated"}


@pytest.mark.slow
def test_a_restart_that_repeats_what_was_done_is_found_though_it_learns_the_same(recipe):
    result = found(recipe("blind_restart"))
    assert any("is no longer there" in line for line in result.kills[-1].differences)


@pytest.mark.slow
def test_data_without_validation_are_killed_in_the_test_at_the_end(recipe):
    chosen = recipe("harmless", "data.name=planted:digits_without_validation")
    result = verify_resume(chosen, kills=7)
    assert result.identical
    assert (result.kills[-1].point, result.kills[-1].step) == ("evaluation", 39)


@pytest.mark.slow
def test_a_process_that_fails_instead_of_resuming_is_named_with_what_it_said(recipe):
    with pytest.raises(RunError, match=r"kill \d: the process .* exit code 1: .*nothing can be restored"):
        verify_resume(recipe("broken_resume"), kills=7)


def test_a_recipe_that_cannot_be_trained_is_refused_with_what_the_process_said(recipe):
    with pytest.raises(UsageError, match=r"the undisturbed run ended with exit code 2: .*no_such_metric"):
        verify_resume(recipe("harmless", 'evaluation.metrics=["no_such_metric"]'), kills=7)


@pytest.mark.parametrize(
    ("arguments", "change", "said"),
    [
        ({"kills": 6}, "steps=40", "6 kills are too few: there is one for each of step, loader, "),
        ({"kills": 7, "steps": 31}, "steps=40", "7 kills need 32 steps or more, there are 31"),
        ({"kills": 20}, "epochs=3", "20 kills need 84 steps or more, there are 36"),
        ({"kills": 7}, "data.name=planted:stream", "its data are a stream"),
    ],
)
def test_what_cannot_be_verified_is_refused_at_once(recipe, arguments, change, said):
    with pytest.raises(UsageError, match=said):
        verify_resume(recipe("harmless", change), **arguments)


def test_a_folder_with_something_in_it_is_left_alone(recipe, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(RunError, match="is not empty"):
        verify_resume(recipe("harmless"), tmp_path, kills=7)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupt_ends_the_processes_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with start(tiny, "--steps", 100_000) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/undisturbed/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (3, ""), err
    assert "interrupted" in err
    assert list(tmp_path.glob("foveal-*")) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)
