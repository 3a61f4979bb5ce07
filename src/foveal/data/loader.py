"""Preparing batches ahead of the step that needs them: threads, in order, bounded."""

from __future__ import annotations

import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


class Loader(Generic[T]):
    """Iterate over ``prepare(step)`` for each step, computed ahead by threads and handed out in order.

    What is prepared depends on the step alone, so the results are the same for any number of threads.
    An exception in ``prepare`` is raised by ``next`` when its turn comes, in the thread that iterates.
    The threads end when the steps are exhausted, on :meth:`close`, at the end of a ``with`` block, and when
    the loader is garbage-collected.

    Attributes:
        waited: seconds that ``next`` has spent waiting for a batch that was not ready.
    """

    def __init__(
        self, prepare: Callable[[int], T], steps: Iterable[int], *, threads: int = 1, ahead: int | None = None
    ) -> None:
        """Start the threads; ``ahead`` results at most exist at a time (default: two more than threads)."""
        self._prepare = prepare
        self._steps = iter(steps)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="foveal-loader")
        self._finalizer = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._pending: deque[Future[T]] = deque()
        self.waited = 0.0
        for _ in range(ahead or threads + 2):
            self._submit()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._pending:
            self.close()
            raise StopIteration
        future = self._pending.popleft()
        try:
            if not future.done():
                start = time.perf_counter()
                try:
                    future.exception()
                finally:
                    self.waited += time.perf_counter() - start
            result = future.result()
        except StopIteration as error:  # it would end the loop of whoever iterates
            self.close()
            raise RuntimeError("preparing a batch raised StopIteration") from error
        except BaseException:
            self.close()
            raise
        self._submit()
        return result

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop: what is running is waited for, what is queued is dropped."""
        self._finalizer.detach()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _submit(self) -> None:
        for step in self._steps:
            self._pending.append(self._pool.submit(self._prepare, step))
            return
