"""``foveal evaluate --follow``: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

PATIENCE = 60.0  # seconds until a test that waits gives up


def wait_for(path):
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_each_checkpoint_is_a_line_and_the_last_line_sums_up(foveal, run_copy):
    outcome = foveal("evaluate", run_copy, "--follow").succeeded()
    *lines, summary = outcome.out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["step", str(step), "test", "accuracy"] for step in (20, 30, 40)
    ]
    assert summary.startswith(f"{run_copy}: 3 checkpoints evaluated, 3 of them now; test accuracy ")
    assert outcome.err == f"following {run_copy}: 0 checkpoints evaluated so far\n"


def test_json_is_one_document_with_the_last_evaluation_and_all_of_them(foveal, run_copy):
    outcome = foveal("evaluate", run_copy, "--follow", "--split", "validation", "--json").succeeded()
    document = outcome.document
    last = foveal("evaluate", run_copy, "--split", "validation", "--json").document
    names = ("accuracy", "loss", "examples", "step", "weights", "split")
    assert {name: document[name] for name in names} == {name: last[name] for name in names}
    assert (document["finished"], document["new"], document["unusable"]) == (True, 3, [])
    lines = (run_copy / "evaluations-follow.jsonl").read_text().splitlines()
    assert document["evaluations"] == [json.loads(line) for line in lines]
    assert "step 20" in outcome.err


def test_damaged_checkpoint_is_named_and_the_exit_code_is_1(foveal, run_copy):
    (run_copy / "checkpoints/step-000000030/model.safetensors").write_bytes(b"")
    outcome = foveal("evaluate", run_copy, "--follow", "--json")
    assert outcome.code == 1
    assert outcome.document["unusable"] == [30]
    assert "step 30 was passed over" in outcome.err


def test_run_that_does_not_go_on_is_given_up_after_the_timeout(foveal, run_copy):
    recipe = run_copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("\nsteps = 40\n", "\nsteps = 50\n"))
    outcome = foveal("evaluate", run_copy, "--follow", "--timeout", "0.2 s", "--json").succeeded()
    assert outcome.document["finished"] is False
    assert "nothing new for 0.2 seconds, and training has not ended" in outcome.err


def test_run_that_never_appears_is_an_error_after_the_timeout(foveal, tmp_path):
    outcome = foveal("evaluate", tmp_path / "none", "--follow", "--timeout", "0.2 s")
    outcome.refused(1, "none", "no run appeared in 0.2 seconds", "--timeout", after=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "x", "-1", "5 days", "1e3", "min"])
def test_timeout_that_is_no_time_is_refused(foveal, trained_run, text):
    outcome = foveal("evaluate", trained_run, "--follow", f"--timeout={text}")
    outcome.refused(2, f"--timeout {text}", "10 min")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90 s", 90), ("0.5 min", 30), ("2h", 7200), (" 10 min ", 600)]
)
def test_timeout_is_a_time_with_a_unit_or_seconds(text, seconds):
    from foveal.cli.evaluate import parse_duration

    assert parse_duration(text) == seconds


def test_timeout_without_follow_is_refused(foveal, trained_run):
    foveal("evaluate", trained_run, "--timeout", "1 min").refused(2, "--timeout", "--follow")


def test_follow_with_one_checkpoint_several_runs_or_compilation_is_refused(foveal, trained_run):
    foveal("evaluate", trained_run, "--follow", "--tta", "flip").refused(2, "--follow", "evaluation.tta")
    foveal("evaluate", trained_run, "--follow", "--checkpoint", 20).refused(2, "--follow", "--checkpoint")
    foveal("evaluate", trained_run, trained_run, "--follow").refused(2, "--follow", "one run")
    foveal("evaluate", trained_run, "--follow", "--compile").refused(2, "--follow", "--compile")


def test_second_follower_is_refused(foveal, run_copy):
    from foveal.run_folder import RunFolder

    with RunFolder(run_copy).following_lock():
        outcome = foveal("evaluate", run_copy, "--follow")
    outcome.refused(1, str(run_copy), "another process is following this run")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_with_code_3_and_the_same_command_goes_on(start, foveal, run_copy, number):
    recipe = run_copy / "recipe.toml"
    finished = recipe.read_text()
    recipe.write_text(finished.replace("\nsteps = 40\n", "\nsteps = 50\n"))
    process = start("evaluate", run_copy, "--follow", "--json")
    wait_for(run_copy / "evaluations-follow.jsonl")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, err
    assert json.loads(out)["finished"] is False
    assert err.splitlines()[-1] == f"stopped by {number.name}: run the same command to continue"
    recipe.write_text(finished)
    document = foveal("evaluate", run_copy, "--follow", "--json").succeeded().document
    assert [record["step"] for record in document["evaluations"]] == [20, 30, 40]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
def test_signal_while_a_run_is_waited_for_ends_it_with_code_3(start, tmp_path):
    process = start("evaluate", "none", "--follow", stderr=subprocess.PIPE)
    assert process.stderr.readline() == "waiting for a run in none\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (3, "none: no checkpoint was evaluated\n")
    assert not (tmp_path / "none").exists()
