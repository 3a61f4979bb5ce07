"""TensorFlow reads, writes and lists checkpoints on request; run by its own Python.

A request is a line of JSON: ``[work, prefix]``; the answer is another: seconds by name, or how much it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from storage import timed_and_forced

if TYPE_CHECKING:
    from collections.abc import Mapping


def main() -> None:
    """Make variables of the shapes of a file, and do what is asked until there is nothing more."""
    state = State(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(f"TensorFlow {tf.__version__}"), flush=True)
    for line in sys.stdin:
        work, prefix = json.loads(line)
        print(json.dumps(getattr(state, work)(prefix)), flush=True)


class State:
    """Variables, and savers of them in both formats."""

    def __init__(self, shapes: Mapping[str, list[int]]) -> None:
        generator = np.random.default_rng(0)
        self._graph = tf.Graph()
        with self._graph.as_default():
            variables = [
                tf.compat.v1.get_variable(
                    name, initializer=generator.standard_normal(shape, np.float32), use_resource=True
                )
                for name, shape in shapes.items()
            ]
            self._savers = {
                version: tf.compat.v1.train.Saver(variables, write_version=version)
                for version in (tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2)
            }
            self._session = tf.compat.v1.Session()
            self._session.run(tf.compat.v1.global_variables_initializer())

    def write(self, prefix: str) -> dict[str, float]:
        """Save with the Saver into a new folder, which is removed again."""
        returned, forced = timed_and_forced(
            lambda folder: self._save(folder / Path(prefix).name, tf.compat.v1.train.SaverDef.V2),
            Path(prefix).parent,
        )
        return {"returned": returned, "forced": forced}

    def write_v1(self, prefix: str) -> str:
        """Save in the old format, and keep it."""
        return self._save(Path(prefix), tf.compat.v1.train.SaverDef.V1)

    def read(self, prefix: str) -> dict[str, Any]:
        """Read all tensors; TensorFlow's reader verifies every checksum, too."""
        start = time.perf_counter()
        reader = tf.train.load_checkpoint(prefix)
        arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tensors": len(arrays),
            "nbytes": sum(each.nbytes for each in arrays.values()),
        }

    def names(self, prefix: str) -> dict[str, Any]:
        """List all variables with shapes and dtypes."""
        start = time.perf_counter()
        reader = tf.train.load_checkpoint(prefix)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        listed = [(name, shapes[name], dtypes[name]) for name in sorted(shapes)]
        return {"seconds": time.perf_counter() - start, "tensors": len(listed)}

    def _save(self, prefix: Path, version: int) -> str:
        prefix.parent.mkdir(exist_ok=True)
        with self._graph.as_default():
            saver = self._savers[version]
            return str(saver.save(self._session, str(prefix), write_meta_graph=False))


if __name__ == "__main__":
    main()
