"""``foveal bench``."""

from __future__ import annotations

import pytest


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


def test_help_shows_an_example(foveal):
    for command in (("bench",), ("bench", "data")):
        assert "Example: foveal bench data digits" in foveal(*command, "--help").succeeded().out


def test_without_a_command_is_a_mistake(foveal):
    foveal("bench").refused(2, "--help")
