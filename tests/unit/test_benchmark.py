from __future__ import annotations

import math
import threading

import pytest
from PIL import Image

import foveal
from foveal.benchmark import bench_data
from foveal.errors import DataError, RecipeError, UsageError


@pytest.fixture
def recipe(tiny):
    """The recipe of tests, changed: the digits, in batches of 100, one thread."""
    return lambda *changes: foveal.override_recipe(foveal.read_recipe(tiny), changes)


def test_counts_whole_batches_and_the_bytes_that_were_read(recipe):
    found = bench_data(recipe(), seconds=0.2)
    assert found.images % 100 == 0
    assert found.images >= 100
    assert found.bytes >= 0.5 * found.images * 64  # threads read ahead, so not exactly
    assert 0.2 <= found.seconds < 5
    assert found.images_per_second == found.images / found.seconds
    assert found.bytes_per_second == found.bytes / found.seconds
    assert found.first_batch_seconds > 0


def test_shares_the_threads_time_among_the_stages(recipe):
    found = bench_data(recipe("loader_threads=2"), seconds=0.3)
    assert found.threads == 2
    assert found.stages.keys() >= {"order", "read", "distort"}
    assert all(share >= 0 for share in found.stages.values())
    assert 0 < sum(found.stages.values()) < 1.2  # a stage may have begun before the first batch
    assert found.stages[found.slowest_stage] == max(found.stages.values())
    assert 0 <= found.waiting <= 1


def test_knows_the_stage_of_decoding_where_images_are_encoded(recipe, tmp_path):
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300 + number, 200), (number, 99, 0)).save(path)
    sizes = sum(path.stat().st_size for path in tmp_path.rglob("*.jpg"))
    changes = (
        "data.name=folder",
        f"data.path={tmp_path / 'photos'}",
        'augmentation=[{name="resize", size=[32, 32]}]',
        'preprocessing=[{name="resize", size=[32, 32]}]',
        "batch_size=12",
    )
    found = bench_data(recipe(*changes), seconds=0.2)
    assert found.slowest_stage == "decode"
    assert found.bytes % sizes == 0  # every batch is a whole epoch


def test_gives_a_report_with_rates(recipe):
    found = bench_data(recipe(), seconds=0.0)
    assert found.report() == vars(found) | {
        "images_per_second": found.images_per_second,
        "bytes_per_second": found.bytes_per_second,
        "slowest_stage": found.slowest_stage,
    }


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_ends_after_one_batch_without_a_time(recipe, seconds):
    assert bench_data(recipe(), seconds=seconds).images == 100


def test_leaves_no_thread(recipe):
    before = threading.active_count()
    bench_data(recipe("loader_threads=3"), seconds=0.05)
    assert threading.active_count() == before


def test_of_balanced_data_times_them_as_training_draws_them(recipe):
    assert bench_data(recipe("data.sampling=balanced"), seconds=0.0).images == 100


def test_refuses_a_stream(recipe, tmp_path, monkeypatch):
    (tmp_path / "feeding.py").write_text(
        "import numpy as np\n"
        "from foveal.data.source import DataSet\n"
        "from foveal.data.stream import StreamSource\n"
        "def open_stream():\n"
        "    items = [(np.zeros((8, 8, 1), np.uint8), 0)] * 9\n"
        "    return DataSet(StreamSource(items, ('a', 'b'), (8, 8, 1)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="stream"):
        bench_data(recipe("data.name=feeding:open_stream"))


def test_of_data_that_are_not_there_is_an_error(recipe, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        bench_data(recipe("data.name=folder", f"data.path={tmp_path / 'nowhere'}"))


def test_of_a_recipe_that_does_not_fit_is_an_error(recipe):
    with pytest.raises(RecipeError, match="random_crop"):
        bench_data(recipe('augmentation=[{name="random_crop", size=[24, 24]}]'))
