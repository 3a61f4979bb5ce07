"""The processors of this machine."""

from __future__ import annotations

import os


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shorten_busy_waiting() -> None:
    """Have OpenMP's threads sleep after a moment without work, unless the user has said how they should wait.

    GNU's, which torch brings for Linux, otherwise wait busily for several milliseconds, and take the
    processors from the kernels that follow. It is read when torch is loaded: later calls change nothing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
