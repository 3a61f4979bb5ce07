"""CIFAR-100 with the network and the training of ``cifar10``, for longer.

    foveal train cifar100 --data FOLDER

Not yet measured. --set data.options.labels=coarse learns the 20 superclasses.

Sources: those of ``cifar10``, whose comments explain the rates; means and deviations are of these images.
"""

from __future__ import annotations

from foveal.recipe import DataPart, Normalization
from foveal.recipes.cifar10 import recipe as cifar10

recipe = cifar10.model_copy(
    update={
        "name": "cifar100",
        "epochs": 18.0,
        "data": DataPart(name="cifar100"),
        "normalization": Normalization(mean=(0.5071, 0.4865, 0.4409), deviation=(0.2673, 0.2564, 0.2762)),
    }
)
