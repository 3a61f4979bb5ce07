"""TensorFlow's times for saving and restoring a state; run by its own Python, prints JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from storage import timed, timed_and_forced

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Make the variables, save and restore them in turn, print seconds by name."""
    shapes, folder, rounds = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[4]))
    generator = np.random.default_rng(0)
    values = {
        f"{part}/{name}": generator.standard_normal(shape).astype(np.float32)
        for part in ("model", "optimizer", "ema")
        for name, shape in shapes.items()
    }
    seconds: dict[str, list[float]] = {}
    for ways in (saver(values), train_checkpoint(values)):
        for number in range(rounds + 1):
            for name, measured in measure(*ways, folder).items():
                if number:  # the first is a warm-up
                    seconds.setdefault(name, []).append(measured)
    print(json.dumps(seconds))


def measure(
    name: str, save: Callable[[str], object], load: Callable[[str], object], folder: Path
) -> dict[str, float]:
    """Seconds for saving, for saving durably, and for restoring."""

    def save_into(path: Path) -> None:
        path.mkdir()
        save(str(path / "state"))

    returned, forced = timed_and_forced(save_into, folder)
    folder.mkdir()
    path = save(str(folder / "state"))
    load(str(path))
    restored = timed(lambda: load(str(path)))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return {f"{name} save": returned, f"{name} save, fsync": forced, f"{name} load": restored}


def saver(values: dict[str, np.ndarray]) -> tuple[str, Callable[[str], object], Callable[[str], object]]:
    """The Saver of TensorFlow 1."""
    graph = tf.Graph()
    with graph.as_default():
        variables = [
            tf.compat.v1.get_variable(name.replace(":", "_"), shape=value.shape)
            for name, value in values.items()
        ]
        made = tf.compat.v1.train.Saver(variables)
        session = tf.compat.v1.Session()
        session.run(tf.compat.v1.global_variables_initializer())

    def save(path: str) -> object:
        with graph.as_default():
            return made.save(session, path, write_meta_graph=False)

    def load(path: str) -> None:
        with graph.as_default():
            made.restore(session, path)

    return "tf Saver", save, load


def train_checkpoint(
    values: dict[str, np.ndarray],
) -> tuple[str, Callable[[str], object], Callable[[str], object]]:
    """The Checkpoint of TensorFlow 2."""
    made = tf.train.Checkpoint(variables={name: tf.Variable(value) for name, value in values.items()})
    return "tf.train.Checkpoint", made.write, made.read


if __name__ == "__main__":
    main()
