"""Compiled kernels in as many threads as torch computes with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


def in_threads(call: Callable[[int, int], _Result], count: int) -> list[_Result]:
    """Call with the bounds of equal parts of ``count``, each in a thread of its own; the results, in order.

    Each thread goes through all steps of its part by itself, with torch at one thread: between parallel loops
    of torch's its threads wait busily for the next one and would take the processors from the kernels. No
    gradient is recorded; inference mode is the caller's.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(first: int, last: int) -> _Result:
        torch.set_num_threads(1)  # of the calling thread, as the modes are
        with torch.inference_mode(inference), torch.no_grad():
            return call(first, last)

    parts = min(threads, count)
    bounds = [count * number // parts for number in range(parts + 1)]
    others = [_pool().submit(alone, *pair) for pair in pairwise(bounds[1:])]
    try:
        return [alone(bounds[0], bounds[1]), *(other.result() for other in others)]
    finally:
        torch.set_num_threads(threads)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")
