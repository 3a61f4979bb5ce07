"""What the contenders' scripts share: their command line, and how a stream of batches is timed."""

from __future__ import annotations

import argparse
import json
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Batches = Iterable[tuple[Any, ...]]


def run(
    contenders: Mapping[str, Callable[[str], Batches]],
    version: str,
    facts: Mapping[str, Callable[[str], dict[str, Any]]] = MappingProxyType({}),
) -> None:
    """Print as JSON what the command line asks for.

    Args:
        contenders: by name, what is timed: functions of the path of the files that give batches without end,
            tuples of arrays or tensors with a row an example.
        version: of the library.
        facts: by name, what is measured otherwise: functions of the path that say what was found.
    """
    parser = argparse.ArgumentParser(description="Time a pipeline; prints examples a second as JSON.")
    parser.add_argument("name", choices=[*contenders, *facts])
    parser.add_argument("path", help="the file or folder that is read")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long is measured")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before that")
    options = parser.parse_args()
    if options.name in facts:
        result = facts[options.name](options.path)
    else:
        batches = contenders[options.name](options.path)
        result = examples_per_second(batches, options.seconds, options.warm_up)
    print(json.dumps({**result, "version": version}))


def examples_per_second(batches: Batches, seconds: float, warm_up: float) -> dict[str, Any]:
    """The rate of endless ``batches`` over ``seconds``; shape and dtype of the first array of a batch."""
    stream = iter(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < warm_up:
        next(stream)
    examples, elapsed = 0, 0.0
    start = time.perf_counter()
    while elapsed < seconds:
        images, *_ = next(stream)
        examples += len(images)
        elapsed = time.perf_counter() - start
    return {
        "examples_per_second": examples / elapsed,
        "shape": list(map(int, images.shape)),
        "dtype": str(images.dtype),
    }
