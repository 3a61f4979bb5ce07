"""``foveal bench``."""

from __future__ import annotations

import re

import pytest

from foveal.cli import bench


def test_data_prints_one_json_document(foveal, tiny):
    found = foveal("bench", "data", tiny, "--seconds", 0.1, "--threads", 2, "--json").succeeded().document
    assert found["images_per_second"] > 0
    assert found["bytes_per_second"] > 0
    assert (found["recipe"], found["threads"], found["batch_size"]) == ("tiny", 2, 100)
    assert found["slowest_stage"] in found["stages"]
    assert 0 <= found["waiting"] <= 1
    assert found["first_batch_seconds"] > 0


def test_data_prints_a_table_and_rates(foveal, tiny):
    text = foveal("bench", "data", tiny, "--seconds", 0.1).succeeded().out
    for part in ("stage", "read", "distort", "idle", "images/s", "1 thread, batches of 100", "slowest stage"):
        assert part in text


def test_data_takes_settings_and_a_folder(foveal, tiny, mnist):
    settings = ("--set", "data.name=mnist", "--set", "batch_size=8", "--data", mnist)
    found = foveal("bench", "data", tiny, *settings, "--seconds", 0, "--json").succeeded().document
    assert (found["images"], found["batch_size"]) == (8, 8)
    assert found["bytes"] % (8 * 8 * 8) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digit",), ("'digits'",)),
        (("missing.toml",), ("missing.toml",)),
        (("digits", "--set", "batch_sise=3"), ("batch_size",)),
        (("digits", "--threads", "0"), ("--threads",)),
        (("digits", "--seconds", "-1"), ("--seconds",)),
        (("digits", "--data", "somewhere"), ("digits come with foveal",)),
    ],
)
def test_data_says_in_one_line_what_is_wrong(foveal, arguments, words):
    foveal("bench", "data", *arguments).refused(2, *words)


QUICK = ("--steps", 10, "--burn-in", 1, "--batch", 4, "--set", "threads=1", "--device", "cpu")


def test_model_prints_the_time_of_a_batch_and_a_row(foveal):
    found = foveal("bench", "model", "dense", *QUICK, "--precision", "float32").succeeded()
    first, _, headers, row, *_, last = found.out.splitlines()
    assert re.fullmatch(r"Forward across 10 steps, 0\.\d{3,} \+/- 0\.\d{3,} sec / batch", first)
    for part in ("median", "images/s", "GFLOP/image", "GFLOP/s", "of best", "memory"):
        assert part in headers
    assert re.match(r"forward +float32 +4 ", row)
    assert "dense: images of 32 x 32 x 3, 10 classes, 197,322 parameters; cpu, 1 thread\n" in found.out
    assert last.startswith("best rate in float32: ")
    assert re.fullmatch(r"forward, batch 4, float32: step 10 of 10, .* sec / batch\n", found.err)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00123, "1.23 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (34.56, "34.6 s")]
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert bench._time(seconds) == text


@pytest.fixture
def _known_rate(monkeypatch):
    """The machine's best rate, without measuring it."""
    from foveal.machine_rate import Rate

    monkeypatch.setattr("foveal.model_benchmark.best_rate", lambda *_: Rate("matrix product", 1e12))


@pytest.mark.usefixtures("_known_rate")
def test_model_compares_settings_in_one_table(foveal):
    ways = ("--batch", 2, "--precision", "float32", "--precision", "bfloat16", "--mode", "train")
    found = foveal("bench", "model", "dense", *QUICK, *ways, "--mode", "forward").succeeded()
    assert found.out.count("across 10 steps") == 8
    assert "Training across 10 steps" in found.out
    assert "sec / batch (forward, batch 2, bfloat16)" in found.out
    assert len(re.findall(r"^(?:forward|train) +(?:float32|bfloat16) +[24] ", found.out, re.MULTILINE)) == 8


@pytest.mark.usefixtures("_known_rate")
def test_model_prints_one_json_document(foveal, tiny):
    found = foveal("bench", "model", tiny, *QUICK, "--mode", "train", "--json").succeeded().document
    assert found["images_per_second"] == pytest.approx(4 / found["seconds_per_batch"])
    assert (found["mode"], found["batch_size"], found["steps"]) == ("train", 4, 10)
    assert found["image_shape"] == [8, 8, 1]
    assert found["results"][0]["share_of_best"] == found["share_of_best"] > 0
    assert found["flops_per_image"] > 0
    assert found["parameters"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("small_cn",), ("'small_cnn'",)),
        (("dense", "--batch", "0"), ("--batch",)),
        (("dense", "--steps", "0"), ("--steps",)),
        (("dense", "--burn-in", "-1"), ("--burn-in",)),
        (("dense", "--classes", "1"), ("--classes",)),
        (("dense", "--mode", "backward"), ("--mode",)),
        (("dense", "--precision", "float16"), ("--precision",)),
        (("whitened_cnn", "--size", "5"), ("too small", "5 x 5")),
        (("dense", "--set", "model.options.wide=3"), ("'widths'",)),
        (("dense", "--device", "toaster"), ("toaster",)),
    ],
)
def test_model_says_in_one_line_what_is_wrong(foveal, arguments, words):
    foveal("bench", "model", *arguments).refused(2, *words)


def test_help_shows_an_example(foveal):
    for command in (("bench",), ("bench", "data")):
        assert "Example: foveal bench data digits" in foveal(*command, "--help").succeeded().out
    assert "Example: foveal bench model small_cnn" in foveal("bench", "model", "--help").succeeded().out


def test_without_a_command_is_a_mistake(foveal):
    foveal("bench").refused(2, "--help")
