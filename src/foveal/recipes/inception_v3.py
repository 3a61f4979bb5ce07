"""Inception v3 as it was published, for photographs of your own: folders, TFRecords, Parquet.

    foveal train inception-v3 --data FOLDER --set 'data.split={validation=0.1}'
    foveal train inception-v3 --data FOLDER --init-from inception_v3.ckpt --steps 2000

Made for ImageNet. Batch norm's statistics are averages over thousands of steps: in a run of less, measure
them (--set ema.statistics=recompute), or have them forget sooner (--set model.options.norm_decay=0.99). The
earlier paper's schedule: --set schedule.factor=0.96 --set 'schedule.every=8 epochs'. The second command
begins with the weights of a checkpoint of slim's.
Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015 (78.8% top-1 on
ImageNet's validation part, one crop); TensorFlow models, research/inception and slim's
inception_preprocessing.py.
"""

from __future__ import annotations

from foveal.recipe import (
    Brightness,
    CentralCrop,
    Checkpointing,
    Clip,
    Contrast,
    DataPart,
    Ema,
    Exponential,
    Flip,
    Frequency,
    Hue,
    Loss,
    ModelPart,
    Normalization,
    RandomOrder,
    RandomResizedCrop,
    Recipe,
    Resize,
    RmsProp,
    Saturation,
)

recipe = Recipe(
    name="inception-v3",
    batch_size=32,
    epochs=100,
    data=DataPart(name="auto"),
    model=ModelPart(name="inception_v3", options={"auxiliary_head": True}),
    augmentation=(
        RandomResizedCrop(size=(299, 299), area=(0.05, 1.0)),
        Flip(),
        RandomOrder(
            transforms=(
                Brightness(delta=32),
                Saturation(low=0.5, high=1.5),
                Hue(delta=0.2),
                Contrast(low=0.5, high=1.5),
            )
        ),
        Clip(),
    ),
    preprocessing=(CentralCrop(fraction=0.875), Resize(size=(299, 299))),
    normalization=Normalization(mean=(0.5,), deviation=(0.5,)),
    loss=Loss(label_smoothing=0.1, auxiliary_weight=0.3),
    optimizer=RmsProp(learning_rate=0.045, decay=0.9, momentum=0.9, epsilon=1.0, weight_decay=4e-5),
    schedule=Exponential(factor=0.94, every=Frequency(2, "epochs"), staircase=True),
    ema=Ema(decay=0.9999),
    checkpoint=Checkpointing(every=Frequency(1, "epochs")),
)
