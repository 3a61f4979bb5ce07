"""CIFAR-10 with a wider and deeper network, trained longer: for accelerators.

    foveal train cifar10-96 --data FOLDER

Not yet measured; some eighteen times the work of ``cifar10``.

Sources: K. Jordan's record airbench96, 2024 (network, distortions, length: 96.01% after 31 epochs with SGD);
optimizer and its rates as in ``cifar10``, whose comments explain them.
"""

from __future__ import annotations

from foveal.recipe import AlternatingFlip, Erasing, ModelPart, Translate
from foveal.recipes.cifar10 import recipe as cifar10

_SQUARE = (12 / 32) ** 2  # of the image's area

recipe = cifar10.model_copy(
    update={
        "name": "cifar10-96",
        "epochs": 31.0,
        "model": ModelPart(
            name="whitened_cnn",
            options={"widths": [128, 512, 512], "convolutions": 3, "norm_memory": 0.9},
        ),
        "augmentation": (
            AlternatingFlip(),
            Translate(pixels=4, fill="reflect"),
            Erasing(probability=1.0, area=(_SQUARE, _SQUARE), aspect=(1.0, 1.0), fill="mean"),
        ),
    }
)
