"""The network and training of TensorFlow's CIFAR-10 tutorial, to the letter.

    foveal train cifar10-tutorial --data FOLDER
    foveal train cifar10-tutorial --data FOLDER --set model.options.conv_deviation=0.05

A million steps, as in the tutorial; --steps gives fewer, and what was trained can be evaluated at any time.
The convolutions' first weights have the deviation 1e-4 of the tutorial's first versions; the second command
has the 5e-2 of later ones. TensorBoard has all that the tutorial shows there.
Source: TensorFlow models, tutorials/image/cifar10, which states 86% after 100,000 steps.
"""

from __future__ import annotations

from foveal.recipe import (
    Brightness,
    CentralCrop,
    Checkpointing,
    Contrast,
    DataPart,
    Ema,
    Exponential,
    Flip,
    Frequency,
    Logging,
    ModelPart,
    Normalization,
    RandomCrop,
    Recipe,
    Sgd,
)

recipe = Recipe(
    name="cifar10-tutorial",
    batch_size=128,
    steps=1_000_000,
    data=DataPart(name="cifar10"),
    model=ModelPart(name="cifar10_cnn", options={"conv_deviation": 1e-4}),
    augmentation=(RandomCrop(size=(24, 24)), Flip(), Brightness(delta=63), Contrast(low=0.2, high=1.8)),
    preprocessing=(CentralCrop(size=(24, 24)),),
    normalization=Normalization(per_image=True),
    optimizer=Sgd(learning_rate=0.1, weight_decay=0.004, decayed=r"^local[34]\.weight$"),
    schedule=Exponential(factor=0.1, every=int(50_000 / 128 * 350), staircase=True),
    ema=Ema(decay=0.9999),
    logging=Logging(
        every=Frequency(10, "steps"),
        loss_averages=0.9,
        histograms=("activations", "weights", "gradients"),
        histograms_every=Frequency(100, "steps"),
        images=3,
        images_every=Frequency(100, "steps"),
        graph=True,
    ),
    checkpoint=Checkpointing(every=Frequency(1_000, "steps"), keep_last=5),
)
