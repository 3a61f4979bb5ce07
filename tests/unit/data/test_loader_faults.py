from __future__ import annotations

import errno
import gc
import re
import threading
import time
import traceback
import weakref

import pytest

from foveal.data import loader as loader_module
from foveal.data.loader import Loader
from foveal.data.stream import StreamSource
from foveal.errors import DataError, ReadError

PATIENCE = 20.0


@pytest.fixture
def quick(monkeypatch):
    """Pauses between tries that take no time."""
    monkeypatch.setattr(loader_module, "_PAUSE", 1e-4)


@pytest.fixture
def uncollected():
    """What is freed meanwhile is freed because nothing refers to it: there are no cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Failing:
    """Prepares step numbers; at step 2 the first tries fail."""

    def __init__(self, error, tries):
        self.error, self.tries, self.seen = error, tries, []

    def __call__(self, step):
        self.seen.append(step)
        if step == 2 and self.seen.count(2) <= self.tries:
            raise self.error
        return step


def test_a_step_that_could_not_be_read_is_tried_again_after_growing_pauses_and_each_is_reported():
    messages = []
    prepare = Failing(OSError(errno.EIO, "Input/output error", "a.bin"), tries=2)
    start = time.monotonic()
    with Loader(prepare, range(4), report=messages.append) as loader:
        assert list(loader) == [0, 1, 2, 3]
    assert time.monotonic() - start >= 0.1 + 0.4
    assert messages == [
        "step 2: [Errno 5] Input/output error: 'a.bin'; trying again in 0.1 seconds (1 of 3)",
        "step 2: [Errno 5] Input/output error: 'a.bin'; trying again in 0.4 seconds (2 of 3)",
    ]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "no"), TimeoutError("no"), ReadError("a.bin record 3: cannot be read")]
)
def test_trying_again_changes_neither_results_nor_order(error, threads):
    with Loader(Failing(error, tries=3), range(9), threads=threads) as loader:
        assert list(loader) == list(range(9))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("options", "tries"), [({}, 4), ({"retries": 1}, 2), ({"retries": 0}, 1)])
def test_a_step_that_still_cannot_be_read_raises_at_its_turn(options, tries):
    error = OSError(errno.EIO, "Input/output error")
    prepare = Failing(error, tries=100)
    loader = Loader(prepare, range(4), **options)
    assert [next(loader), next(loader)] == [0, 1]
    with pytest.raises(OSError, match="Input/output") as caught:
        next(loader)
    assert caught.value is error
    assert prepare.seen.count(2) == tries


def caused_by(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "gone"),
        PermissionError(errno.EACCES, "not yours"),
        IsADirectoryError(errno.EISDIR, "a folder"),
        NotADirectoryError(errno.ENOTDIR, "not a folder"),
        caused_by(ReadError("a.bin: cannot be read"), PermissionError(errno.EACCES, "not yours")),
        DataError("a.bin record 3: label 12 is out of range"),
        ValueError("a mistake"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_fail_again_is_not_tried_again(error):
    messages = []
    prepare = Failing(error, tries=1)
    with pytest.raises(type(error)) as caught:
        list(Loader(prepare, range(4), report=messages.append))
    assert caught.value is error
    assert prepare.seen.count(2) == 1
    assert messages == []


def test_closing_does_not_wait_for_a_pause_to_end(monkeypatch):
    monkeypatch.setattr(loader_module, "_PAUSE", 1000.0)
    paused = threading.Event()
    prepare = Failing(OSError(errno.EIO, "no"), tries=100)
    loader = Loader(prepare, range(4), report=lambda _text: paused.set())
    assert paused.wait(PATIENCE)
    running = loader._crew.threads
    loader.close()
    assert not any(thread.is_alive() for thread in running)
    assert prepare.seen.count(2) == 1


def fail_inside(step):
    def innermost():
        raise KeyError(step)

    innermost()


def test_an_exception_keeps_its_traceback_and_gains_nothing_else():
    with pytest.raises(KeyError) as caught:
        next(Loader(fail_inside, range(1)))
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["fail_inside", "innermost"]
    assert caught.value.args == (0,)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not hasattr(caught.value, "__notes__")


class Pixels:
    """Stands for something large."""


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("raised", [True, False], ids=["raised", "dropped"])
def test_an_exception_that_is_dealt_with_holds_on_to_nothing(raised):
    held, failed = weakref.WeakSet(), threading.Event()

    def prepare(step):
        pixels = Pixels()
        held.add(pixels)
        if step == 1:
            failed.set()
            raise ValueError
        return pixels

    loader = Loader(prepare, range(9))
    next(loader)
    assert failed.wait(PATIENCE)
    if raised:
        with pytest.raises(ValueError, match=r"^$"):
            next(loader)
    loader.close()
    del loader
    assert list(held) == []


class Stalled:
    """Prepares nothing until it has been told so often that this takes long."""

    def __init__(self, reports):
        self.messages, self.reports = [], reports
        self.started, self.gate = threading.Event(), threading.Event()

    def report(self, text):
        self.messages.append(text)
        if len(self.messages) == self.reports:
            self.gate.set()

    def __call__(self, step):
        self.started.set()
        assert self.gate.wait(PATIENCE)
        return step


def test_a_stall_is_reported_once_an_interval_with_what_each_thread_is_doing():
    prepare = Stalled(reports=3)
    with Loader(prepare, [7, 9], threads=3, stall_seconds=0.15, report=prepare.report) as loader:
        assert list(loader) == [7, 9]
    assert len(prepare.messages) == 3
    place = r"foveal/data/loader\.py:\d+ _prepared > \w[\w.]*/threading\.py:\d+ wait"
    doing = (
        rf"(?=.*foveal-loader-\d: step 7, {place})(?=.*foveal-loader-\d: step 9, {place})"
        r"(?=.*foveal-loader-\d: idle)"
    )
    waits = []
    for message in prepare.messages:
        found = re.fullmatch(rf"waiting for the batch of step 7 for ([\d.]+) seconds: {doing}.*", message)
        assert found, message
        waits.append(float(found[1]))
    assert waits == sorted(waits)
    assert waits[0] >= 0.1
    assert waits[2] >= 0.4


def test_a_stall_report_names_the_innermost_place_within_foveal_and_the_innermost_of_all():
    stalled = Stalled(reports=1)

    def examples():
        yield b"", stalled(0)

    source = StreamSource(examples, ["a"], None)
    options = {"stall_seconds": 0.05, "report": stalled.report}
    with Loader(lambda _step: source.batches(1).__next__(), range(1), **options) as loader:
        next(loader)
    place = r"foveal/data/stream\.py:\d+ _checked > python3\.\d+/threading\.py:\d+ wait"
    assert re.search(rf": foveal-loader-0: step 0, {place}$", stalled.messages[0])


def test_nothing_is_reported_before_the_time_is_up_or_where_nobody_asks():
    prepare = Stalled(reports=1)
    threading.Timer(0.2, prepare.gate.set).start()
    with Loader(prepare, range(1), stall_seconds=None, report=prepare.report) as loader:
        assert list(loader) == [0]
    with Loader(prepare, range(50), report=prepare.report) as loader:
        assert list(loader) == list(range(50))
    assert prepare.messages == []


def test_a_thread_that_does_not_end_is_given_up_and_reported(monkeypatch):
    monkeypatch.setattr(loader_module, "_GRACE", 0.05)
    stalled = Stalled(reports=2)
    loader = Loader(stalled, range(5), report=stalled.report)
    running = loader._crew.threads
    assert stalled.started.wait(PATIENCE)
    loader.close()
    loader.close()
    assert len(stalled.messages) == 1
    assert stalled.messages[0].startswith("a stopped loader is still busy: foveal-loader-0: step 0, foveal/")
    stalled.gate.set()
    for thread in running:
        thread.join(PATIENCE)
        assert not thread.is_alive()
