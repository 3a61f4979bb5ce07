from __future__ import annotations

import pytest
import torch
from torch import nn

import foveal
from foveal import bench_subject, model_benchmark
from foveal.bench_subject import find_subject
from foveal.errors import DataError, RecipeError, UnknownNameError, UsageError
from foveal.machine_rate import Rate
from foveal.model_benchmark import Setting, Timing, bench_model
from foveal.models.registry import MODELS
from foveal.summary import describe_network

QUICK = {"steps": 2, "burn_in": 0}
FLOAT32 = Setting(batch_size=4, precision="float32")


@pytest.fixture(autouse=True)
def _rates(monkeypatch):
    """The machine's best rate is not measured again in every test."""
    monkeypatch.setattr(model_benchmark, "best_rate", lambda *_: Rate("matrix product", 1e12))


@pytest.fixture
def one_thread():
    return ("threads=1", "device=cpu")


def test_times_each_batch_after_the_burn_in(monkeypatch, one_thread):
    sizes = []
    original = nn.Linear.forward

    def watched(self, values):
        sizes.append(len(values))
        return original(self, values)

    monkeypatch.setattr(nn.Linear, "forward", watched)
    found = bench_model("mnist_cnn", [FLOAT32], steps=5, burn_in=3, changes=one_thread)
    assert len(found.timings[0].seconds) == 5
    assert sizes.count(4) == 2 * (1 + 3 + 5)  # two dense layers
    assert (found.name, found.image_shape, found.classes, found.threads) == ("mnist_cnn", (28, 28, 1), 10, 1)


def test_gives_mean_deviation_percentiles_and_rates():
    timing = Timing(FLOAT32, (1.0, 2.0, 3.0, 4.0, 5.0), 300, Rate("x", 1000.0), None)
    assert (timing.mean, timing.percentile(50), timing.percentile(100)) == (3.0, 3.0, 5.0)
    assert timing.deviation == pytest.approx(2**0.5)
    assert timing.images_per_second == pytest.approx(4 / 3)
    assert timing.operations_per_second == pytest.approx(400)
    assert timing.share_of_best == pytest.approx(0.4)


def test_counts_what_the_summary_counts_and_in_training_more(one_thread):
    settings = [FLOAT32, Setting(4, "train", "float32")]
    forward, train = bench_model("small_cnn", settings, changes=one_thread, **QUICK).timings
    subject = find_subject("small_cnn")
    described = describe_network("x", subject.network, (32, 32, 3), 10)
    assert forward.operations == 2 * described.multiply_adds
    assert 2.3 * forward.operations < train.operations <= 3 * forward.operations
    assert bench_model("small_cnn", [FLOAT32], **QUICK).parameters == described.parameters


def test_counts_the_groups_of_a_depthwise_convolution_in_training_too(one_thread):
    settings = [Setting(2, mode, "float32") for mode in ("forward", "train")]
    found = bench_model("efficientnet_lite0", settings, steps=1, burn_in=0, changes=one_thread)
    forward, train = found.timings
    assert 2.9 * forward.operations < train.operations <= 3 * forward.operations


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_says_which_precision_it_was(mode, precision, one_thread):
    (timing,) = bench_model("dense", [Setting(4, mode, precision)], changes=one_thread, **QUICK).timings
    assert timing.setting.precision in (("bfloat16",) if precision == "bfloat16" else ("float32", "bfloat16"))
    assert (timing.setting.mode, timing.setting.batch_size) == (mode, 4)


def test_reports_every_ten_steps(one_thread):
    lines = []
    bench_model("dense", [FLOAT32], steps=25, burn_in=0, changes=one_thread, report=lines.append)
    assert [line.rpartition(", ")[0] for line in lines] == [
        "forward, batch 4, float32: step 10 of 25",
        "forward, batch 4, float32: step 20 of 25",
    ]
    assert all(line.endswith(" sec / batch") for line in lines)


def test_of_a_recipe_the_data_say_size_and_classes(tiny):
    found = bench_model(str(tiny), [FLOAT32], **QUICK)
    assert (found.name, found.image_shape, found.classes) == (str(tiny), (8, 8, 1), 10)
    found = bench_model(foveal.read_recipe(tiny), [FLOAT32], size=12, **QUICK)
    assert (found.name, found.image_shape, found.classes) == ("tiny", (12, 12, 1), 10)


def test_with_size_and_classes_no_data_are_read(tiny, tmp_path):
    missing = ("data.name=folder", f"data.path={tmp_path / 'nowhere'}")
    found = bench_model(str(tiny), [FLOAT32], size=10, classes=7, changes=missing, **QUICK)
    assert (found.image_shape, found.classes) == ((10, 10, 3), 7)
    with pytest.raises(DataError, match="nowhere"):
        bench_model(str(tiny), [FLOAT32], changes=missing, **QUICK)


def test_trains_a_recipe_as_it_says_and_leaves_its_network_alone(tiny, monkeypatch):
    subject = find_subject(
        str(tiny),
        changes=(
            "optimizer.name=muon",
            "optimizer.learning_rate=0.1",
            "optimizer.rest_learning_rate=0.1",
            'phases=[{steps = 3, freeze = ["features"]}]',
            "micro_batch=50",
        ),
    )
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    monkeypatch.setattr(model_benchmark, "find_subject", lambda *_, **__: subject)
    bench_model("x", [Setting(100, "train", "float32")], **QUICK)
    after = subject.network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(parameter.requires_grad for parameter in subject.network.parameters())


def test_of_a_run_the_newest_checkpoint_is_used(trained_run):
    found = bench_model(trained_run, [FLOAT32], size=9, **QUICK)
    assert (found.name, found.image_shape, found.classes) == (str(trained_run), (9, 9, 1), 10)


def test_of_a_network_of_ones_own(tmp_path, monkeypatch, one_thread):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, image_shape, width=2):\n"
        "    return nn.Sequential(nn.Conv2d(image_shape[2], width, 3), nn.BatchNorm2d(width),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    changes = (*one_thread, "model.options.width=5")
    found = bench_model("mine:network", [FLOAT32], size=9, classes=3, changes=changes, **QUICK)
    assert found.parameters == 3 * 9 * 5 + 5 + 10 + 15 + 3


def test_views_do_not_multiply_the_time_of_a_batch(tiny, monkeypatch):
    sizes = []
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: sizes.append(len(x)) or original(self, x))
    bench_model(str(tiny), [FLOAT32], changes=["evaluation.tta=flip+shift"], **QUICK)
    assert sizes.count(4) == 1 + 2


def test_leaves_random_state_and_threads_alone(one_thread):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    bench_model("dense", [FLOAT32, Setting(4, "train")], changes=one_thread, **QUICK)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_a_report_has_the_first_settings_figures_on_top_and_all_below(one_thread):
    settings = [FLOAT32, Setting(2, precision="float32")]
    found = bench_model("dense", settings, changes=one_thread, **QUICK)
    report = found.report()
    assert [each["batch_size"] for each in report["results"]] == [4, 2]
    assert report["results"][0].items() <= report.items()
    assert report["seconds_per_batch"] == found.timings[0].mean
    assert report["images_per_second"] == found.timings[0].images_per_second
    assert report["percentiles"]["50"] == found.timings[0].percentile(50)
    assert "timings" not in report


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"what": "small_cn"}, UnknownNameError, "'small_cnn'"),
        ({"what": "digit"}, UnknownNameError, "'digits'"),
        ({"what": "small_cnn", "size": 3}, RecipeError, "too small"),
        ({"what": "small_cnn", "changes": ["model.options.width=3"]}, UnknownNameError, "'widths'"),
        ({"what": "small_cnn", "changes": ["batch_sise=3"]}, UsageError, "batch_size"),
        ({"what": "./nowhere"}, foveal.FovealError, "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        bench_model(**arguments, settings=[FLOAT32], **QUICK)


def test_a_runs_recipe_and_classes_are_settled(trained_run):
    for more in ({"classes": 3}, {"changes": ["threads=1"]}):
        with pytest.raises(UsageError, match="settled"):
            bench_model(trained_run, [FLOAT32], **more)


def test_images_that_a_run_cannot_take_are_refused_in_a_line(trained_run):
    with pytest.raises(UsageError, match=r"cannot be used on 2 images of 40 x 40 x 1: ") as caught:
        bench_model(trained_run, [FLOAT32], size=40, **QUICK)
    assert "\n" not in str(caught.value)


def test_without_a_compiler_compilation_is_refused(monkeypatch):
    monkeypatch.setattr(model_benchmark, "can_compile", lambda: False)
    with pytest.raises(UsageError, match="C\\+\\+ compiler"):
        bench_model("dense", [Setting(compiled=True)])


def test_networks_have_a_size_of_their_own_or_a_common_one():
    assert bench_subject._SHAPES.keys() <= MODELS.keys()
    assert find_subject("mnist_cnn").image_shape == (28, 28, 1)
    assert find_subject("dense").image_shape == bench_subject._SHAPE
    assert find_subject("mnist_cnn", size=8, classes=3).image_shape == (8, 8, 1)
