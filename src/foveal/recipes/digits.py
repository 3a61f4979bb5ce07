"""Handwritten digits of 8x8 pixels, which come with foveal: the recipe to start with.

    foveal train digits

Two cores of a Xeon, 10 seeds: 100% of the 400 test digits, 4.4 s of training. 1,200 of the 1,797 digits are
trained on, 197 validate, 400 test.
Source of the data: UCI "Optical Recognition of Handwritten Digits" (data/digits/README.md).
"""

from __future__ import annotations

from foveal.recipe import (
    Affine,
    Checkpointing,
    DataPart,
    Ema,
    Evaluation,
    Frequency,
    Linear,
    Logging,
    Loss,
    ModelPart,
    Normalization,
    Recipe,
    Sgd,
)

recipe = Recipe(
    name="digits",
    batch_size=64,
    epochs=30,
    data=DataPart(name="digits"),
    model=ModelPart(
        name="small_cnn",
        options={"widths": [32, 64, 128], "kernel": 3, "stride": 1, "padding": True, "dropout": 0.3},
    ),
    augmentation=(Affine(degrees=10, scale=(0.9, 1.1), shear=5, pixels=0.7),),
    normalization=Normalization(mean=(0.305,), deviation=(0.376,)),
    loss=Loss(label_smoothing=0.1),
    optimizer=Sgd(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Linear(warmup=0.15),
    ema=Ema(decay=0.99),
    evaluation=Evaluation(every=Frequency(10, "epochs")),
    logging=Logging(every=Frequency(100, "steps")),
    checkpoint=Checkpointing(every=Frequency(10, "epochs")),
)
