"""Timing what is written to a disk; needs nothing but Python, as every peer's environment has it."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def timed_and_forced(save: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Seconds until ``save(path)`` returns, and until what it wrote is on the disk; it is removed again."""
    start = time.perf_counter()
    save(path)
    returned = time.perf_counter() - start
    force(path)
    forced = time.perf_counter() - start
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return returned, forced


def force(path: Path) -> None:
    """Force a file, or a folder and the files in it, to the disk, and its name."""
    members = [*path.iterdir(), path] if path.is_dir() else [path]
    for each in [*members, path.parent]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
