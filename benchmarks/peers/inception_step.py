"""Inception v3 on a batch by others' means; run by an environment that has them, prints JSON.

    python benchmarks/peers/inception_step.py CONTENDER STEPS THREADS BATCH

The network is torchvision's, but for TensorFlow's, which is Keras's. Each gets what its documentation advises
for a processor.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

SIZE, WARM_UP = 299, 3
Step = Callable[[], object]


def main() -> None:
    """Measure, and print the median seconds of a batch."""
    name, steps, threads, batch = sys.argv[1], *map(int, sys.argv[2:])
    step = CONTENDERS[name](threads, batch)
    times = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds_per_step": statistics.median(times[WARM_UP:])}))


def network(threads: int, *, auxiliary: bool = False) -> Any:
    """torchvision's, with random weights; a build without a GPU lacks two operators that it asks for."""
    import torch

    torch.set_num_threads(threads)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision.models import inception_v3

    return inception_v3(weights=None, aux_logits=auxiliary, init_weights=False)


def random_images(batch: int) -> Any:
    """Float32 ``[B, 3, 299, 299]``."""
    import torch

    return torch.randn(batch, 3, SIZE, SIZE)


def eager(threads: int, batch: int, *, last: bool = False) -> Step:
    """As a tutorial would evaluate it; with ``last``, in channels_last."""
    import torch

    model, images = network(threads).eval(), random_images(batch)
    if last:
        model, images = (each.to(memory_format=torch.channels_last) for each in (model, images))

    def step() -> object:
        with torch.inference_mode():
            return model(images)

    return step


def compiled(threads: int, batch: int, *, half: bool = False) -> Step:
    """torch.compile with frozen weights."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True  # noqa: SLF001 - how its documentation turns it on
    model, images = network(threads).eval(), random_images(batch)
    model, images = (each.to(memory_format=torch.channels_last) for each in (model, images))
    quick = torch.compile(model)

    def step() -> object:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return quick(images)

    return step


def train(threads: int, batch: int) -> Step:
    """A step of SGD, as a tutorial would write it."""
    import torch
    from torch.nn import functional

    model, images = network(threads, auxiliary=True).train(), random_images(batch)
    targets = torch.randint(1000, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        logits, auxiliary = model(images)
        loss = functional.cross_entropy(logits, targets) + 0.3 * functional.cross_entropy(auxiliary, targets)
        loss.backward()
        optimizer.step()

    return step


def keras(threads: int, batch: int) -> Step:
    """keras.applications, in a graph."""
    import os

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = tf.keras.applications.InceptionV3(weights=None)
    images = tf.random.normal([batch, SIZE, SIZE, 3])
    call = tf.function(lambda values: model(values, training=False))
    return lambda: call(images).numpy()


def onnx_runtime(threads: int, batch: int) -> Step:
    """ONNX Runtime, all optimisations."""
    import io

    import onnxruntime
    import torch

    images, file = random_images(batch), io.BytesIO()
    torch.onnx.export(network(threads).eval(), (images,), file, input_names=["images"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    values = {"images": images.numpy()}
    return lambda: session.run(None, values)


def openvino(threads: int, batch: int, *, half: bool = False) -> Step:
    """OpenVINO, with a hint of the precision."""
    import openvino

    images = random_images(batch)
    converted = openvino.convert_model(network(threads).eval(), example_input=images)
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.compile_model(converted, "CPU", hints)
    values = images.numpy()
    return lambda: model(values)


CONTENDERS: dict[str, Callable[[int, int], Step]] = {
    "eager": eager,
    "channels_last": lambda threads, batch: eager(threads, batch, last=True),
    "compiled": compiled,
    "compiled_bfloat16": lambda threads, batch: compiled(threads, batch, half=True),
    "train": train,
    "keras": keras,
    "onnx_runtime": onnx_runtime,
    "openvino": openvino,
    "openvino_bfloat16": lambda threads, batch: openvino(threads, batch, half=True),
}


if __name__ == "__main__":
    main()
