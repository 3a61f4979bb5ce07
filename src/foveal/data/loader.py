"""Preparing batches ahead of the step that needs them: threads, in order, bounded."""

from __future__ import annotations

import atexit
import math
import sys
import threading
import time
import weakref
from collections import deque
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from foveal.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

T = TypeVar("T")

_PAUSE = 0.1  # seconds before the second try; each further pause is four times as long
_GLANCE = 0.2  # seconds between looks at whether to stop, while waiting
_GRACE = 5.0  # seconds that stopping waits for what is being prepared
_PERMANENT = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_PACKAGE = Path(__file__).parents[1]


class Loader(Generic[T]):
    """Iterate over ``prepare(step)`` for each step, computed ahead by threads and handed out in order.

    What is prepared depends on the step alone, so the results are the same for any number of threads, and a
    step whose data could not be read can be tried again. An exception in ``prepare`` is raised by ``next``
    when its turn comes, in the thread that iterates, with the traceback it had.

    The threads end when the steps are exhausted, at an exception (Ctrl-C too), on :meth:`close`, at the end
    of a ``with`` block, when the loader is garbage-collected, and with the interpreter. Steps that wait are
    dropped then. One that is being prepared is waited for, but not for ever: reading may never end where a
    device or a pipe has failed. Such a thread keeps no process alive.

    Args:
        prepare: called by the threads, from several at a time.
        steps: in the order in which results are wanted; taken from it as there is room.
        threads: how many.
        ahead: results that exist at most, besides the one that was handed out last; this is what bounds
            memory. By default two more than threads.
        retries: how often ``prepare`` is tried again after an ``OSError`` or ``ReadError`` that may pass (a
            missing file or permission does not), after pauses of 0.1, 0.4, 1.6, ... seconds; 0 where it
            cannot be called twice.
        stall_seconds: after so long a wait for a batch, and again after each such interval, what every
            thread is doing is reported; None for never.
        report: told of retries (by the threads) and of stalls (by the thread that iterates), in a line each.
        stopped: asked now and then while a batch is waited for; when it says yes, the iteration ends.

    Attributes:
        waited: seconds that ``next`` has spent waiting for a batch that was not ready.

    Raises:
        ValueError: there are to be no threads.
    """

    def __init__(
        self,
        prepare: Callable[[int], T],
        steps: Iterable[int],
        *,
        threads: int = 1,
        ahead: int | None = None,
        retries: int = 3,
        stall_seconds: float | None = 60.0,
        report: Callable[[str], None] = lambda _text: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        if threads < 1:
            raise ValueError(f"{threads} threads prepare nothing")
        self._work = partial(_prepared, prepare, retries, report)
        self._steps = iter(steps)
        self._stall_seconds, self._report, self._stopped = stall_seconds, report, stopped
        self._pending: deque[_Task[T]] = deque()
        self._crew = _Crew()
        self._finalizer = weakref.finalize(self, self._crew.stop)
        self.waited = 0.0
        self._crew.start(threads)
        for _ in range(ahead or threads + 2):
            self._submit()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._pending or not self._wait(self._pending[0]):
            self.close()
            raise StopIteration
        try:
            task = self._pending.popleft()
            result = task.take()
            self._submit()
        except StopIteration as error:  # it would end the loop of whoever iterates
            self.close()
            raise RuntimeError("preparing a batch raised StopIteration") from error
        except BaseException:
            self.close()
            raise
        return result

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop: what is running is waited for (5 seconds at most), what is queued is dropped."""
        if self._finalizer.alive:
            self._finalizer()
            if late := self._crew.wait(time.monotonic() + _GRACE):
                self._report(f"a stopped loader is still busy: {_describe(late, self._pending)}")
            self._pending.clear()

    def _submit(self) -> None:
        for step in self._steps:
            task = _Task(step, self._work)
            self._pending.append(task)
            self._crew.tasks.put(task)
            return

    def _wait(self, task: _Task[T]) -> bool:
        """Wait until it is done, or for a stop; whether it is done."""
        if task.done.acquire(blocking=False):
            return True
        start = time.perf_counter()
        report_at = start + (self._stall_seconds or math.inf)
        try:
            while not task.done.acquire(timeout=min(_GLANCE, max(0.0, report_at - time.perf_counter()))):
                if self._stopped():
                    return False
                elapsed = time.perf_counter() - start
                if start + elapsed >= report_at:
                    report_at += self._stall_seconds or 0.0
                    doing = _describe(self._crew.threads, self._pending)
                    self._report(
                        f"waiting for the batch of step {task.step} for {elapsed:.1f} seconds: {doing}"
                    )
        except BaseException:
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - start
        return True


class _Task(Generic[T]):
    """A step, and what becomes of it.

    Attributes:
        done: a lock that is free once there is a result or an error.
        thread: the identifier of the thread that prepares it, or has.
    """

    __slots__ = ("_error", "_result", "_work", "done", "step", "thread")

    def __init__(self, step: int, work: Callable[[_Crew, int], T]) -> None:
        self.step, self._work = step, work
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread: int | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self, crew: _Crew) -> None:
        """Prepare, on a thread of the crew."""
        self.thread = threading.get_ident()
        try:
            self._result = self._work(crew, self.step)
        except BaseException as error:  # noqa: BLE001 - raised by take
            self._error = error
        finally:
            del self._work
            self.done.release()
            del self  # the error refers to this frame: such a cycle would hold on to memory

    def take(self) -> T:
        """The result, or the error raised; once, for the task does not keep it."""
        try:
            if self._error is not None:
                raise self._error
            result: T = self._result
            return result
        finally:
            self._result = self._error = None


def _prepared(
    prepare: Callable[[int], T], retries: int, report: Callable[[str], None], crew: _Crew, step: int
) -> T:
    """What ``prepare`` gives, at the last try at least."""
    for attempt in range(retries):
        try:
            return prepare(step)
        except (OSError, ReadError) as error:
            if isinstance(error, _PERMANENT) or isinstance(error.__cause__, _PERMANENT):
                raise
            pause = _PAUSE * 4**attempt
            report(f"step {step}: {error}; trying again in {pause:.1f} seconds ({attempt + 1} of {retries})")
            if crew.stopped_within(pause):
                raise
    return prepare(step)


class _Crew:
    """Threads that work on tasks. They refer to nothing else, so that a loader can be garbage-collected.

    Everything that :meth:`stop` does may be done by a garbage collection in the middle of anything: simple
    queues allow that, and locks held by Python code do not.
    """

    def __init__(self) -> None:
        self.tasks: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self._stopped: SimpleQueue[None] = SimpleQueue()

    def start(self, threads: int) -> None:
        _crews.add(self)
        for number in range(threads):
            # Python waits for threads that are not daemons before it calls anybody who could end them.
            thread = threading.Thread(target=self._work, name=f"foveal-loader-{number}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        """Drop the tasks that wait, and tell the threads to end; may be called again."""
        try:
            while True:
                self.tasks.get_nowait()
        except Empty:
            pass
        for _ in self.threads:
            self._stopped.put(None)
            self.tasks.put(None)

    def stopped_within(self, seconds: float) -> bool:
        """Wait for so long, unless told to stop meanwhile."""
        try:
            self._stopped.get(timeout=seconds)
        except Empty:
            return False
        return True

    def wait(self, deadline: float) -> list[threading.Thread]:
        """Wait for the threads to end, until ``deadline`` of the monotonic clock; those that have not."""
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread for thread in self.threads if thread.is_alive()]

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            task.run(self)
            del task  # its result belongs to the loader alone


_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()  # each lives as long as its loader or one of its threads


@atexit.register
def _stop_all() -> None:
    """Let no thread run on into the end of the interpreter, where compiled code would crash."""
    crews, deadline = list(_crews), time.monotonic() + _GRACE
    for crew in crews:
        crew.stop()
    for crew in crews:
        crew.wait(deadline)


def _describe(threads: Iterable[threading.Thread], tasks: Iterable[_Task[T]]) -> str:
    """What each thread is doing."""
    steps = {task.thread: task.step for task in tasks if task.done.locked()}
    return "; ".join(
        f"{thread.name}: step {steps[thread.ident]}, {_places(thread.ident)}"
        if thread.ident in steps
        else f"{thread.name}: idle"
        for thread in threads
    )


def _places(thread: int | None) -> str:
    """The innermost call within foveal, and the innermost of all."""
    innermost = frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - documented, in spite of its name
    while frame and not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame = frame.f_back
    return " > ".join(dict.fromkeys(_place(each) for each in (frame, innermost) if each))


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else Path(*path.parts[-2:])
    return f"{shown}:{frame.f_lineno} {frame.f_code.co_name}"
