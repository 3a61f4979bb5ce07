"""What goes to standard output and what to standard error; help, version, JSON, pipes that close."""

from __future__ import annotations

import os
import signal
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from foveal.errors import UsageError

COMMANDS = ("train", "evaluate", "predict", "recipes")


def test_train_prints_one_json_document_and_reports_progress_elsewhere(foveal, tiny, tmp_path):
    outcome = foveal("train", tiny, "--steps", 20, "--run", "run", "--json").succeeded()
    keys = {"run", "step", "finished", "train_seconds", "examples_per_second", "accuracy"}
    assert outcome.document.keys() >= keys
    assert (outcome.document["run"], outcome.document["step"]) == ("run", 20)
    assert outcome.document["finished"] is True
    assert 0 < outcome.document["accuracy"] <= 1
    assert outcome.document["examples_per_second"] > 0
    for text in ("step 10/20", "step 20/20", "validation accuracy", "test accuracy"):
        assert text in outcome.err
    assert (tmp_path / "run" / "recipe.toml").is_file()


def test_train_without_json_prints_one_line(retrain, run_copy):
    (line,) = retrain().succeeded().out.splitlines()
    for text in (str(run_copy), "40 steps", "test accuracy"):
        assert text in line


def test_evaluate_prints_one_json_document(foveal, trained_run):
    outcome = foveal("evaluate", trained_run, "--json").succeeded()
    assert outcome.document.keys() >= {"accuracy", "loss", "examples", "step", "weights", "split"}
    assert outcome.err == ""


def test_evaluate_prints_the_same_numbers_as_a_table(foveal, trained_run):
    document = foveal("evaluate", trained_run, "--json").document
    text = foveal("evaluate", trained_run).succeeded().out
    assert f"accuracy {document['accuracy']:.2%}" in text
    assert f"loss {document['loss']:.4f}" in text
    assert "400 test examples, ema weights of step 40" in text


def test_train_and_evaluate_agree_on_the_accuracy(foveal, retrain, run_copy):
    accuracy = retrain("--json").document["accuracy"]
    assert foveal("evaluate", run_copy, "--json").document["accuracy"] == accuracy


def test_run_folder_is_named_after_the_recipe_by_default(foveal, tiny, tmp_path):
    outcome = foveal("train", tiny, "--steps", 1, "--json").succeeded()
    assert outcome.document["run"] == "runs/tiny"
    assert (tmp_path / "runs" / "tiny" / "recipe.toml").is_file()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_each_command_shows_an_example(foveal, command, option):
    text = " ".join(foveal(command, option).succeeded().out.split())
    assert f"Example: foveal {command} " in text


def test_no_arguments_and_help_list_the_commands(foveal):
    for arguments in ((), ("--help",)):
        outcome = foveal(*arguments).succeeded()
        assert all(f"  {command} " in outcome.out for command in COMMANDS)
        assert "foveal train digits" in outcome.out


def test_version_is_that_of_the_package(start):
    process = start("--version")
    assert process.communicate() == (f"foveal {metadata.version('foveal')}\n", "")
    assert process.returncode == 0


def test_recipes_lists_every_recipe_and_prints_one_completely(foveal):
    listed = foveal("recipes").succeeded().out
    assert "digits" in listed
    assert "mnist-tutorial" in listed
    printed = foveal("recipes", "mnist-tutorial").succeeded().out
    for text in ("[optimizer]", "learning_rate = 0.001", "[semantic]", "[operational]"):
        assert text in printed


def test_mistake_is_one_line_and_exit_code_2_in_a_real_process(start):
    process = start("train", "digit", "--json")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: no recipe named 'digit'")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("place", [0, 2])
def test_debug_raises_the_error_itself(foveal, place):
    arguments = ["train", "digit"]
    arguments.insert(place, "--debug")
    with pytest.raises(UsageError, match="digit"):
        foveal(*arguments)


def test_debug_shows_a_traceback_in_a_real_process(start):
    process = start("train", "digit", "--debug")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Traceback")


@pytest.mark.parametrize("arguments", [("recipes", "digits"), ("recipes",), ("--help",)])
def test_reader_that_has_gone_gives_no_traceback(start, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = start(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert process.communicate()[1] == ""
    assert process.returncode in (0, 1, -signal.SIGPIPE)


def test_reader_that_takes_one_line_gives_no_traceback(program, tmp_path):
    done = subprocess.run(
        f"{program} recipes digits | head -n 1", shell=True, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.stderr == b""
    assert done.stdout.startswith(b"# Handwritten digits")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("recipes", "digits"), ("recipes",)])
def test_full_disk_under_standard_output_is_one_line_and_failure(start, arguments):
    with Path("/dev/full").open("w") as full:
        process = start(*arguments, stdout=full)
        err = process.communicate()[1]
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "No space left" in err
    assert "a mistake in foveal" not in err
    assert len(err.splitlines()) == 1
