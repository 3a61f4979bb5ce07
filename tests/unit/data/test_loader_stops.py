from __future__ import annotations

import gc
import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import pytest

from foveal.data.loader import Loader

PATIENCE = 20.0


class Pixels:
    """Stands for something large."""


class Reading:
    """Prepares objects out of an open file, and knows which of them still exist."""

    def __init__(self, fail_at=None, block_at=None):
        self.alive = weakref.WeakSet()
        self.blocked, self.gate = threading.Event(), threading.Event()
        self._fail_at, self._block_at = fail_at, block_at

    def __call__(self, step):
        pixels = Pixels()
        self.alive.add(pixels)
        with Path(__file__).open("rb"):
            if step == self._fail_at:
                raise ValueError("step three")
            if step == self._block_at:
                self.blocked.set()
                assert self.gate.wait(PATIENCE)
        return pixels


def exhaust():
    prepare = Reading()
    for _ in Loader(prepare, range(20), threads=3):
        pass
    return prepare.alive


def fail():
    prepare = Reading(fail_at=3)
    with pytest.raises(ValueError, match="step three"):
        list(Loader(prepare, itertools.count(), threads=3))
    return prepare.alive


def close():
    prepare = Reading()
    loader = Loader(prepare, itertools.count(), threads=3)
    next(loader)
    loader.close()
    return prepare.alive


def leave_a_with_block():
    prepare = Reading()

    def consume():
        with Loader(prepare, itertools.count(), threads=3) as loader:
            next(loader)
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    return prepare.alive


def forget():
    prepare = Reading()
    loader = Loader(prepare, itertools.count(), threads=3)
    for _ in loader:
        break
    running = loader._crew.threads
    del _, loader
    for thread in running:
        thread.join(PATIENCE)
    return prepare.alive


def interrupt():
    prepare, main = Reading(block_at=3), threading.main_thread().ident

    def press():
        assert prepare.blocked.wait(PATIENCE)
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)
        prepare.gate.set()

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        list(Loader(prepare, itertools.count(), threads=3))
    pressing.join(PATIENCE)
    return prepare.alive


@pytest.mark.parametrize("stop", [exhaust, fail, close, leave_a_with_block, forget, interrupt])
def test_no_thread_file_or_batch_is_left_however_a_loader_is_stopped(stop):
    gc.collect()
    gc.disable()  # what is freed is freed because nothing refers to it
    try:
        threads, descriptors = threading.enumerate(), set(Path("/proc/self/fd").iterdir())
        alive = stop()
        assert threading.enumerate() == threads
        assert set(Path("/proc/self/fd").iterdir()) == descriptors
        assert list(alive) == []
    finally:
        gc.enable()


def test_no_more_batches_exist_than_ahead_and_those_handed_out():
    prepare = Reading()
    with Loader(prepare, range(60), threads=4, ahead=3) as loader:
        for pixels in loader:
            assert pixels in prepare.alive
            assert len(prepare.alive) <= 3 + 1


def test_many_loaders_leave_no_memory_behind():
    def use():
        for _ in range(100):
            with Loader(bytearray, itertools.repeat(50_000), threads=2) as loader:
                next(loader)
        gc.collect()

    use()
    tracemalloc.start()
    try:
        use()
        before, _ = tracemalloc.get_traced_memory()
        use()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 500_000  # ten batches, of a hundred loaders


def start(script):
    program = "import itertools, sys, threading, time\nfrom foveal.data import loader\n" + textwrap.dedent(
        script
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_interpreter_ends_while_a_loader_waits_for_someone_to_take_its_batches():
    process = start("""
        batches = loader.Loader(int, itertools.count(), threads=3)
        print(next(batches))
    """)
    assert process.communicate(timeout=PATIENCE) == ("0\n", "")
    assert process.returncode == 0


def test_the_interpreter_ends_although_preparing_a_batch_never_does():
    process = start("""
        loader._GRACE = 0.1
        started = threading.Event()

        def prepare(step):
            started.set()
            threading.Event().wait()

        batches = loader.Loader(prepare, itertools.count(), threads=3)
        started.wait()
    """)
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("forgotten", [False, True])
def test_the_interpreter_waits_for_what_is_being_prepared(forgotten):
    process = start(f"""
        started = threading.Event()

        def prepare(step):
            started.set()
            time.sleep(0.3)
            print("prepared", step)

        batches = loader.Loader(prepare, itertools.count(), threads=1)
        started.wait()
        if {forgotten}:
            del batches
    """)
    assert process.communicate(timeout=PATIENCE) == ("prepared 0\n", "")


@pytest.mark.parametrize("script", ["list(batches)", "with batches: list(batches)"])
def test_ctrl_c_ends_a_program_that_waits_for_a_batch(script):
    process = start(f"""
        loader._GRACE = 0.1

        def prepare(step):
            if step == 2:
                print("blocked", flush=True)
                threading.Event().wait()

        batches = loader.Loader(prepare, itertools.count(), threads=2)
        {script}
    """)
    assert process.stdout.readline() == "blocked\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert errors.endswith("KeyboardInterrupt\n")
    assert errors.count("Traceback") == 1
    assert process.returncode == -signal.SIGINT
