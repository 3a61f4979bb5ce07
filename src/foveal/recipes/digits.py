"""Handwritten digits of 8x8 pixels, which come with foveal: the recipe to start with.

foveal train digits
"""

from __future__ import annotations

from foveal.recipe import (
    AdamW,
    DataPart,
    Evaluation,
    Frequency,
    Logging,
    ModelPart,
    OneCycle,
    Recipe,
    Translate,
)

recipe = Recipe(
    name="digits",
    batch_size=100,
    epochs=30,
    data=DataPart(name="digits"),
    model=ModelPart(name="digits_cnn"),
    augmentation=(Translate(pixels=1),),
    optimizer=AdamW(learning_rate=0.01, weight_decay=0.05),
    schedule=OneCycle(),
    evaluation=Evaluation(every=Frequency(10, "epochs")),
    logging=Logging(every=Frequency(60, "steps")),
)
