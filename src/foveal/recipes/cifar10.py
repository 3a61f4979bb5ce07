"""CIFAR-10 in twelve passes: a small network, Muon, and images that grow from 18 to 32 pixels.

    foveal train cifar10 --data FOLDER

Two seeds gave 94.04% and 94.31% of the test images, in 14 and 16 minutes on two cores (docs/log.md). All
50,000 training images are trained on; hold some out to tune: --set data.validation=5000.

Sources: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, and the record airbench94_muon
after it (network, optimizer, its rates, distortions, test-time augmentation), which descends from T. Swezey's
hlb-CIFAR10. They sum the loss over the batch; rates and decays here are theirs for its mean. Images that
grow: fast.ai's entry to DAWNBench, 2018.
"""

from __future__ import annotations

from foveal.recipe import (
    AlternatingFlip,
    Checkpointing,
    DataPart,
    Ema,
    Evaluation,
    Frequency,
    Group,
    Linear,
    Logging,
    Loss,
    ModelPart,
    Muon,
    Normalization,
    Recipe,
    Resolution,
    Translate,
)

# What the record gives for the sum over a batch, made rates for the mean. At equal logits its head is 256 / 9
# of ours, and its gradient 9 / 256.
_BATCH = 2000
_BIAS_RATE = 0.053 * _BATCH
_HEAD_RATE = 0.67 * _BATCH * (9 / 256) ** 2
_DECAY = 2e-6 * _BATCH  # share of a weight that is taken off at the full rate

recipe = Recipe(
    name="cifar10",
    batch_size=_BATCH,
    epochs=12,
    data=DataPart(name="cifar10"),
    model=ModelPart(name="whitened_cnn"),
    augmentation=(AlternatingFlip(), Translate(pixels=2, fill="reflect")),
    normalization=Normalization(mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616)),
    resolution=(Resolution(size=(18, 18), until=0.3), Resolution(size=(26, 26), until=0.6)),
    loss=Loss(label_smoothing=0.2),
    optimizer=Muon(
        learning_rate=0.24,
        momentum=0.6,
        iterations=3,
        normalize=True,
        rest_learning_rate=_BIAS_RATE,
        rest_momentum=0.85,
        weight_decay=_DECAY / _BIAS_RATE,
        decayed="all",
    ),
    groups=(
        Group(parameters=r"^whiten\.", until=3 / 8),
        Group(parameters=r"^head\.", learning_rate=_HEAD_RATE, weight_decay=_DECAY / _HEAD_RATE),
    ),
    schedule=Linear(),
    ema=Ema(decay=0.8, start=0.75, statistics="average"),
    evaluation=Evaluation(tta="flip+shift"),
    logging=Logging(every=Frequency(25, "steps")),
    checkpoint=Checkpointing(every=Frequency(1, "epochs")),
)
