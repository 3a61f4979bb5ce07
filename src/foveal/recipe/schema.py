"""The recipe and its tables. Each field's documentation stands under it and is what users are shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from foveal.recipe.fields import (
    OPERATIONAL,
    Decay,
    Flag,
    Frequency,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    Part,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    UnitFloat,
)


class DataPart(Part):
    """What is learnt from."""

    name: str = "digits"
    """A known data set, or your own: 'package.module:factory', a function that returns a foveal.DataSet."""
    path: Annotated[Path | None, OPERATIONAL] = None
    """The folder of its files. Without it: $FOVEAL_DATA/NAME, the cache folder, a download."""
    options: Options = {}
    """Arguments of your own factory; of cifar100: labels = 'fine' or 'coarse'."""
    validation: NonNegativeInt | None = None
    """Hold out the first so many training examples, to choose the best checkpoint on."""
    batching: Literal["continuous", "drop_last", "keep_last"] = "continuous"
    """At the end of an epoch: run on into the next, drop the incomplete batch, or keep it smaller."""
    shuffle: Flag = True
    """Draw a new order every epoch."""


class ModelPart(Part):
    """The network."""

    name: str = "small_cnn"
    """A known network, or your own: 'package.module:factory', called with num_classes and image_shape."""
    options: Options = {}
    """Arguments of the network."""


class Translate(Part):
    """Shift by whole pixels, each axis on its own; what comes in is black."""

    name: Literal["translate"] = "translate"
    pixels: PositiveInt
    """Largest shift, in pixels."""


class Flip(Part):
    """Mirror left and right."""

    name: Literal["flip"] = "flip"
    probability: UnitFloat = 0.5
    """Share of the examples that are mirrored."""


class Affine(Part):
    """Rotate, scale, shear and shift about the centre; bilinear, what comes in is black."""

    name: Literal["affine"] = "affine"
    degrees: NonNegativeFloat = 0.0
    """Largest rotation, in degrees."""
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Smallest and largest magnification."""
    shear: NonNegativeFloat = 0.0
    """Largest shear, in degrees."""
    pixels: NonNegativeFloat = 0.0
    """Largest shift, in pixels, fractions included."""

    @model_validator(mode="after")
    def _check(self) -> Affine:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale is the smallest magnification, then the largest")
        if self.shear >= 90:
            raise ValueError("shear must be below 90 degrees")
        return self


class Cutout(Part):
    """Blacken a square at a random place, which may reach beyond the edge (DeVries, Taylor, 2017)."""

    name: Literal["cutout"] = "cutout"
    size: PositiveInt
    """Side of the square, in pixels."""


class CustomTransform(Part):
    """Your own distortion of a batch."""

    name: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """'package.module:factory'; it returns a function of (images uint8 [B, H, W, C], foveal.Draws)."""
    options: Options = {}
    """Arguments of the factory."""


def _transform_tag(value: Any) -> Any:
    """What tells one kind of transform from another: its name, or that the name is a reference."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "custom" if isinstance(name, str) and ":" in name else name


Transform = Annotated[
    Annotated[Translate, Tag("translate")]
    | Annotated[Flip, Tag("flip")]
    | Annotated[Affine, Tag("affine")]
    | Annotated[Cutout, Tag("cutout")]
    | Annotated[CustomTransform, Tag("custom")],
    Discriminator(_transform_tag),
]


class Normalization(Part):
    """From pixels to what the network sees: (pixel / 255 - mean) / deviation."""

    mean: tuple[float, ...] = (0.0,)
    """One number, or one a channel, as a fraction of 255."""
    deviation: tuple[PositiveFloat, ...] = (1.0,)
    """One number, or one a channel, as a fraction of 255."""


class Constant(Part):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate first rises from near zero."""


class Exponential(Part):
    """Multiply by a factor every so many steps."""

    name: Literal["exponential"] = "exponential"
    factor: Annotated[float, Field(gt=0, le=1, strict=True)]
    """The factor."""
    every: PositiveInt
    """Steps over which one factor is applied."""
    staircase: Flag = False
    """Apply it at once at the end of those steps, not evenly over them."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate first rises from near zero."""


class Cosine(Part):
    """Half a cosine from the full rate to the final one."""

    name: Literal["cosine"] = "cosine"
    final: UnitFloat = 0.0
    """The last rate, as a share of the full one."""
    warmup: Decay = 0.0
    """Share of all steps over which the rate first rises from near zero."""


class Linear(Part):
    """A straight line from the full rate to the final one."""

    name: Literal["linear"] = "linear"
    final: UnitFloat = 0.0
    """The last rate, as a share of the full one."""
    warmup: Decay = 0.0
    """Share of all steps over which the rate first rises from near zero."""


class OneCycle(Part):
    """Up by half a cosine, then down by half a cosine (Smith, Topin, 2017)."""

    name: Literal["one_cycle"] = "one_cycle"
    peak: Share = 0.25
    """When the full rate is reached, as a share of all steps."""
    start: UnitFloat = 0.04
    """The first rate, as a share of the full one."""
    final: UnitFloat = 0.0
    """The last rate, as a share of the full one."""


SchedulePart = Annotated[Constant | Exponential | Cosine | Linear | OneCycle, Field(discriminator="name")]


class _Optimizer(Part):
    learning_rate: PositiveFloat
    """The full rate; the schedule multiplies it."""
    weight_decay: NonNegativeFloat = 0.0
    """Strength of the pull towards zero. SGD and RMSProp add it times the weight to the gradient (the loss
    term weight_decay / 2 * sum of squares); AdamW takes learning rate * weight_decay of the weight off."""
    decayed: str = "kernels"
    """What decays: 'kernels' (parameters of two or more dimensions), 'all', or a regular expression that is
    searched in the parameters' names."""

    @field_validator("decayed")
    @classmethod
    def _check_expression(cls, expression: str) -> str:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"{expression!r} is not a regular expression: {error}") from None
        return expression


class Sgd(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    momentum: Decay = 0.0
    """Share of the last update that is carried on."""
    nesterov: Flag = False
    """Look ahead along the momentum."""

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov, Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root."""


class RmsProp(_Optimizer):
    """RMSProp as TensorFlow 1.x computes it: epsilon inside the root, averages that start at one."""

    name: Literal["rmsprop"] = "rmsprop"
    decay: Decay = 0.9
    """Decay of the average of the squared gradient."""
    momentum: Decay = 0.0
    """Share of the last update that is carried on."""
    epsilon: PositiveFloat = 1e-10
    """Added to the average, under the root."""


OptimizerPart = Annotated[Sgd | AdamW | RmsProp, Field(discriminator="name")]


class Loss(Part):
    """Softmax cross-entropy, averaged over the batch."""

    label_smoothing: Decay = 0.0
    """Share of the target that is spread evenly over all classes."""


class Ema(Part):
    """An exponential moving average of the weights, which evaluation then uses."""

    decay: Share
    """Share of the average that is kept at each step: min(decay, (1 + n) / (10 + n)) at the n-th update."""


class Seeds(Part):
    """Where randomness comes from."""

    init: Seed = 0
    """For the first weights."""
    data: Seed = 0
    """For the order of examples, their distortions, and dropout."""


class Evaluation(Part):
    """Measuring the network on the validation part, and at the end on the test part."""

    every: Frequency = Frequency(1, "epochs")
    """How often the validation part is evaluated, if there is one."""
    final: Flag = True
    """Evaluate the last weights on the test part, if there is one."""
    metrics: tuple[str, ...] = ()
    """More metrics by name, of torchmetrics.classification: 'f1_score', 'auroc', 'cohen_kappa', ..."""
    batch_size: Annotated[PositiveInt, OPERATIONAL] = 500
    """Examples evaluated at a time."""


class Logging(Part):
    """What is written down on the way, and how often."""

    every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often a line goes to the console, metrics.jsonl and TensorBoard."""
    activations: Annotated[tuple[str, ...], OPERATIONAL] = ()
    """Activations to summarise: names of the network's modules, or 'probabilities'."""
    activations_every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often they are summarised."""


class Checkpointing(Part):
    """When the state is saved, and what is kept."""

    every: Annotated[Frequency, OPERATIONAL] = Frequency(1, "epochs")
    """How often; the end of training, a signal and a new best are always saved."""
    keep_last: Annotated[PositiveInt, OPERATIONAL] = 3
    """The newest checkpoints that are kept."""
    keep_best: Annotated[NonNegativeInt, OPERATIONAL] = 1
    """The checkpoints of best validation accuracy that are kept besides."""


class Recipe(Part):
    """Everything that decides what a run learns (semantic) and how it is run (operational)."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    """What the run folder is called by default: letters, digits, '_', '.' and '-'."""
    batch_size: PositiveInt
    """Examples in a step, over all devices."""
    micro_batch: PositiveInt | None = None
    """Examples that go through the network at a time; gradients are summed up to the batch."""
    steps: Annotated[PositiveInt | None, OPERATIONAL] = None
    """How long to train. Semantic where the learning rate depends on it."""
    epochs: Annotated[PositiveFloat | None, OPERATIONAL] = None
    """How long to train, as passes over the data, instead of steps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the network computes in; weights are float32. auto: whichever this machine measures faster."""
    compile: Flag | Literal["auto"] = False
    """Compile the network with torch.compile. auto: if that is measured to pay off over the whole run."""
    device: Annotated[str, OPERATIONAL] = "auto"
    """'cpu', 'cuda', 'mps', or the best there is."""
    threads: Annotated[PositiveInt | Literal["auto"], OPERATIONAL] = "auto"
    """Processor threads that compute. auto: the processors this process may use."""
    loader_threads: Annotated[PositiveInt | Literal["auto"], OPERATIONAL] = "auto"
    """Threads that prepare batches ahead. auto: one, or one for every four processors."""
    deterministic: Flag = True
    """On CUDA, choose kernels that give the same bits every time."""

    data: DataPart = DataPart()
    model: ModelPart = ModelPart()
    augmentation: tuple[Transform, ...] = ()
    """Distortions of the training images, in order."""
    normalization: Normalization = Normalization()
    loss: Loss = Loss()
    optimizer: OptimizerPart
    schedule: SchedulePart = Constant()
    ema: Ema | None = None
    seed: Seeds = Seeds()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    checkpoint: Checkpointing = Checkpointing()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of the two")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} must divide batch_size = {self.batch_size}")
        warmup = getattr(self.schedule, "warmup_steps", 0)
        if self.steps is not None and warmup >= self.steps:
            raise ValueError(f"schedule.warmup_steps = {warmup} must be below steps = {self.steps}")
        for field, frequency in (
            ("evaluation.every", self.evaluation.every),
            ("logging.every", self.logging.every),
            ("logging.activations_every", self.logging.activations_every),
        ):
            if frequency.unit == "min":
                raise ValueError(f"{field} must be in steps or epochs: by the clock, no two runs would agree")
        return self

    @property
    def depends_on_total(self) -> bool:
        """Whether a longer run would have learnt otherwise from the start."""
        return isinstance(self.schedule, Cosine | Linear | OneCycle)
