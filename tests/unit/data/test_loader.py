from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
import time

import pytest

from foveal.data.loader import Loader

PATIENCE = 20.0  # seconds until a test that waits gives up


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("foveal-loader")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    gc.collect()  # those of loaders that earlier tests have forgotten
    assert_ended(threads())
    yield
    assert_ended(threads())


def assert_ended(some):
    for thread in some:
        thread.join(PATIENCE)
    assert [thread.name for thread in some if thread.is_alive()] == []


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def all_done(loader):
    return not any(task.done.locked() for task in loader._pending)


def first_done(loader):
    return not loader._pending[0].done.locked()


def square(step):
    return step * step


class PulledSteps:
    """Step numbers without end, which counts those that were taken."""

    def __init__(self):
        self.count = 0

    def __iter__(self):
        while True:
            self.count += 1
            yield self.count - 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_results_come_in_order_whatever_the_number_of_threads(count):
    def prepare(step):
        time.sleep(0.002 * (step % 3))  # later steps are often done before earlier ones
        return step * step

    with Loader(prepare, range(40), threads=count) as loader:
        assert list(loader) == [step * step for step in range(40)]


def test_steps_may_be_any_numbers():
    with Loader(square, [5, 3, 3, 0]) as loader:
        assert list(loader) == [25, 9, 9, 0]


@pytest.mark.parametrize("count", [0, -1])
def test_a_loader_without_threads_is_refused(count):
    with pytest.raises(ValueError, match=rf"^{count} threads"):
        Loader(square, range(3), threads=count)


def test_no_steps_give_no_results():
    assert list(Loader(square, [])) == []


def test_as_many_steps_as_threads_are_prepared_at_the_same_time():
    barrier = threading.Barrier(3)

    def prepare(step):
        barrier.wait(PATIENCE)
        return step

    with Loader(prepare, range(6), threads=3) as loader:
        assert list(loader) == list(range(6))


@pytest.mark.parametrize(("options", "bound"), [({"ahead": 3}, 3), ({}, 4), ({"ahead": 1}, 1)])
def test_no_more_results_are_prepared_ahead_than_asked_for(options, bound):
    steps = PulledSteps()
    with Loader(square, steps, threads=2, **options) as loader:
        assert steps.count == bound
        for taken in range(1, 20):
            next(loader)
            assert steps.count == taken + bound


def test_steps_without_end_can_be_iterated():
    with Loader(square, itertools.count()) as loader:
        assert list(itertools.islice(loader, 5)) == [0, 1, 4, 9, 16]


def fail_at_three(step):
    if step == 3:
        raise ValueError("step three")
    return step


@pytest.mark.parametrize("count", [1, 4])
def test_an_exception_is_raised_at_its_turn_in_the_thread_that_iterates(count):
    loader = Loader(fail_at_three, range(10), threads=count, ahead=6)
    until(lambda: all_done(loader))  # the error has happened already
    assert [next(loader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="step three"):
        next(loader)


def test_after_an_exception_the_threads_have_ended_and_nothing_more_comes():
    loader = Loader(fail_at_three, range(10), threads=2)
    with pytest.raises(ValueError, match="step three"):
        list(loader)
    assert threads() == []
    assert list(loader) == []


def test_after_the_last_step_the_threads_have_ended():
    loader = Loader(square, range(5), threads=2)
    assert threads() != []
    assert list(loader) == [0, 1, 4, 9, 16]
    assert threads() == []
    with pytest.raises(StopIteration):
        next(loader)


def test_close_ends_the_threads_and_the_iteration_and_may_be_called_twice():
    loader = Loader(square, itertools.count(), threads=3)
    assert next(loader) == 0
    loader.close()
    assert threads() == []
    loader.close()
    assert list(loader) == []


def test_close_waits_for_what_runs_and_drops_what_is_queued():
    started, gate, finished = threading.Event(), threading.Event(), []

    def prepare(step):
        started.set()
        assert gate.wait(PATIENCE)
        finished.append(step)

    loader = Loader(prepare, itertools.count(), threads=1, ahead=4)
    assert started.wait(PATIENCE)
    assert not loader._crew.tasks.empty()
    closing = threading.Thread(target=loader.close)
    closing.start()
    until(lambda: loader._crew.tasks.qsize() == 1)  # what tells the thread to end
    assert closing.is_alive()
    gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert finished == [0]


def test_a_with_block_ends_the_threads():
    with Loader(square, itertools.count(), threads=2) as loader:
        next(loader)
        assert threads() != []
    assert threads() == []


def test_an_exception_inside_a_with_block_ends_the_threads():
    def consume():
        with Loader(square, itertools.count(), threads=2) as loader:
            next(loader)
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert threads() == []


def test_a_loader_that_is_left_early_and_forgotten_ends_its_threads():
    loader = Loader(square, itertools.count(), threads=2)
    for _ in loader:
        break
    running = threads()
    assert running != []
    del loader
    gc.collect()
    assert_ended(running)


def test_a_loader_that_is_forgotten_drops_what_is_queued():
    started, gate, finished = threading.Event(), threading.Event(), []

    def prepare(step):
        started.set()
        assert gate.wait(PATIENCE)
        finished.append(step)

    loader = Loader(prepare, itertools.count(), threads=1, ahead=4)
    assert started.wait(PATIENCE)
    running = threads()
    del loader
    gc.collect()
    gate.set()
    assert_ended(running)
    assert finished == [0]


@pytest.mark.parametrize("result", ["step", "self"])
def test_a_loader_that_is_forgotten_inside_a_cycle_ends_its_threads(result):
    class Owner:
        def __init__(self):
            self.loader = Loader(self.prepare, itertools.count(), threads=2)

        def prepare(self, step):
            return {"step": step, "self": self}[result]

    owner = Owner()
    next(owner.loader)
    until(functools.partial(all_done, owner.loader))
    running = threads()
    assert running != []
    del owner

    def ended():
        gc.collect()  # again and again: a step that is being prepared holds on to the cycle
        return not any(thread.is_alive() for thread in running)

    until(ended)


def release_when_waiting(thread, gate):
    """Open ``gate`` once ``thread`` waits inside ``Loader.__next__``."""

    def waits():
        frame, names = sys._current_frames()[thread.ident], []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names[:2] == ["_wait", "__next__"]

    until(waits)
    gate.set()


def test_waited_stays_zero_while_results_are_ready():
    with Loader(square, range(20), threads=2) as loader:
        for _ in range(20):
            until(lambda: first_done(loader))
            next(loader)
        assert loader.waited == 0.0


def test_waited_grows_when_a_result_is_not_ready():
    gate = threading.Event()

    def prepare(step):
        assert step != 1 or gate.wait(PATIENCE)
        return step

    with Loader(prepare, range(3), threads=1) as loader:
        until(lambda: first_done(loader))
        assert next(loader) == 0
        assert loader.waited == 0.0
        releasing = threading.Thread(target=release_when_waiting, args=(threading.current_thread(), gate))
        releasing.start()
        assert next(loader) == 1
        releasing.join(PATIENCE)
        waited = loader.waited
        assert waited > 0.0
        until(lambda: first_done(loader))
        assert next(loader) == 2
        assert loader.waited == waited


def test_waiting_for_an_exception_counts_as_waiting():
    gate = threading.Event()

    def prepare(_step):
        assert gate.wait(PATIENCE)
        raise ValueError("late")

    loader = Loader(prepare, range(1))
    releasing = threading.Thread(target=release_when_waiting, args=(threading.current_thread(), gate))
    releasing.start()
    with pytest.raises(ValueError, match="late"):
        next(loader)
    releasing.join(PATIENCE)
    assert loader.waited > 0.0


def test_a_task_that_ends_an_iteration_is_an_error_and_not_the_end():
    def prepare(step):
        if step == 1:
            raise StopIteration
        return step

    loader = Loader(prepare, range(4))
    assert next(loader) == 0
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(loader)
