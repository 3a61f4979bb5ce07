"""What foveal train ./FOLDER does: your classes of photographs, learnt by a network that has seen ImageNet.

    foveal train ./photos                       or: foveal train folder --data photos
    foveal review runs/photos

EfficientNet-Lite0 (extra 'pretrained') sees the middle square of each image. A fifth of every class is held
out, like images together. The head is fitted to features in seconds; then all layers but batch norm learn at
a low rate, averaged, until the held-out images are recognised no better. Small classes are shown as often as
large ones. The best weights are used, their probabilities calibrated.
The settings were chosen on CIFAR-10's training part: docs/log.md.
"""

from __future__ import annotations

from foveal.recipe import (
    AdamW,
    CentralCrop,
    DataPart,
    Ema,
    Evaluation,
    Flip,
    Head,
    RandomResizedCrop,
    Resize,
    Split,
)
from foveal.recipes import efficientnet_lite0

_SIZE = (224, 224)

recipe = efficientnet_lite0.recipe.model_copy(
    update={
        "name": "folder",
        "epochs": 12.0,
        "data": DataPart(
            name="auto",
            split=Split(validation=0.2, alike=True, only_missing=True),
            sampling="balanced",
            on_corrupt="skip",
            corrupt_budget=0.1,
        ),
        "model": efficientnet_lite0.recipe.model.model_copy(update={"options": {"survival": 1.0}}),
        "augmentation": (RandomResizedCrop(size=_SIZE, area=(0.5, 1.0)), Flip()),
        "preprocessing": (
            CentralCrop(fraction=1.0, square=True),
            Resize(size=_SIZE, method="bicubic"),
        ),
        "freeze_batch_norm": True,
        "head": Head(),
        "optimizer": AdamW(learning_rate=1e-4, weight_decay=0.01),
        "ema": Ema(decay=0.9),
        "evaluation": Evaluation(
            first=True, best="loss", use="best", patience=6, calibrate=True, batch_size=64
        ),
    }
)
