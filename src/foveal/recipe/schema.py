"""The recipe and its tables. Each field's documentation stands under it and is what users are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from foveal.recipe.fields import (
    OPERATIONAL,
    Decay,
    Expression,
    Flag,
    Frequency,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    Part,
    PositiveFloat,
    PositiveInt,
    Renaming,
    Seed,
    Share,
    Span,
    UnitFloat,
)
from foveal.recipe.optimizers import Group, OptimizerPart
from foveal.recipe.transforms import Size, Transform


class Split(Part):
    """Set aside a share of the examples, chosen by a hash of the image: equal images stay on one side."""

    validation: Decay = 0.0
    """Share that becomes the validation part."""
    test: Decay = 0.0
    """Share that becomes the test part."""
    alike: Flag = False
    """Look at all images, once, keep those together that look alike, and take the shares of every class."""
    only_missing: Flag = False
    """Leave out the share of a part that the data have already, instead of refusing to split them."""

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on")
        return self


class DataPart(Part):
    """What is learnt from."""

    name: str = "digits"
    """A known data set; a format (folder, csv, tfrecord, parquet, fixed_length, idx, arrays) of the files at
    'path', or 'auto' to recognise it; or your own: 'package.module:factory', a function that returns a
    foveal.DataSet, whose train part may be a foveal.StreamSource."""
    path: Annotated[Path | None, OPERATIONAL] = None
    """Where its files are. Without it, a known data set: $FOVEAL_DATA/NAME, the cache folder, a download."""
    options: Options = {}
    """Arguments of the format (the column of the label, ...) or of your own factory."""
    validation: NonNegativeInt | None = None
    """Hold out the first so many training examples, to choose the best checkpoint on."""
    split: Split | None = None
    """Or hold out shares of them."""
    sampling: Literal["all", "balanced"] = "all"
    """An epoch shows every example once, or every class equally often (examples of small ones repeatedly)."""
    batching: Literal["continuous", "drop_last", "keep_last"] = "continuous"
    """At the end of an epoch: run on into the next, drop the incomplete batch, or keep it smaller."""
    shuffle: Literal["none", "global", "blocks"] = "global"
    """A new order every epoch: of all examples, or of blocks of neighbours, for slow storage."""
    block: PositiveInt = 1024
    """Examples in a block, with shuffle = 'blocks'."""
    window: PositiveInt = 8
    """Blocks whose examples are shuffled together, with shuffle = 'blocks'."""
    on_corrupt: Annotated[Literal["error", "skip"], OPERATIONAL] = "error"
    """At a damaged record: stop; or train on another in its place, leave it out of evaluations, and list it
    in corrupt.jsonl."""
    corrupt_budget: Annotated[NonNegativeInt | Share, OPERATIONAL] = 0.01
    """How many distinct records may be damaged before that is an error after all: a number, or a share."""
    backend: Literal["auto", "numba", "torch"] = "auto"
    """What computes the distortions: compiled processor kernels, or torch on the device. auto: torch on
    accelerators and where Numba cannot be installed, else numba."""

    @model_validator(mode="after")
    def _check(self) -> DataPart:
        if self.validation is not None and self.split is not None:
            raise ValueError("give validation or split, one of the two")
        return self


class ModelPart(Part):
    """The network."""

    name: str = "small_cnn"
    """A known network, one of timm's ('timm/NAME'), or your own: 'package.module:factory', called with
    num_classes and image_shape."""
    options: Options = {}
    """Arguments of the network."""


class Normalization(Part):
    """From pixels to what the network sees: (pixel / 255 - mean) / deviation."""

    mean: tuple[float, ...] = (0.0,)
    """One number, or one a channel, as a fraction of 255."""
    deviation: tuple[PositiveFloat, ...] = (1.0,)
    """One number, or one a channel, as a fraction of 255."""
    per_image: Flag = False
    """Each image's own mean and deviation instead, as tf.image.per_image_standardization."""

    @model_validator(mode="after")
    def _check(self) -> Normalization:
        if self.per_image and (self.mean, self.deviation) != ((0.0,), (1.0,)):
            raise ValueError("per_image = true takes the place of mean and deviation: leave them out")
        return self


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
    every: Span
    """A number of steps, or '2 epochs', over which one factor is applied."""
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


class Loss(Part):
    """Softmax cross-entropy, averaged over the batch."""

    label_smoothing: Decay = 0.0
    """Share of the target that is spread evenly over all classes."""
    auxiliary_weight: NonNegativeFloat | None = None
    """What the same loss of the network's auxiliary head is multiplied by before it is added: 0.3, where the
    network has such a head and nothing is said here."""


class Ema(Part):
    """An exponential moving average of the weights, which evaluation then uses."""

    decay: Share
    """Share of the average that is kept at each step: min(decay, (1 + n) / (10 + n)) at the n-th update."""
    statistics: Literal["copy", "average", "recompute"] = "copy"
    """Batch norm's means and variances for the averaged weights: the network's own, averages of these, or
    measured anew on training batches whenever the averages are evaluated or saved."""
    batches: PositiveInt = 50
    """Training batches that statistics = 'recompute' measures on."""
    start: Decay = 0.0
    """Share of all steps after which averaging begins; until then, the averages are the weights."""


class Init(Part):
    """The weights training starts from, instead of random ones."""

    path: Annotated[Path, OPERATIONAL]
    """A run folder, a checkpoint folder, a .safetensors file, a PyTorch state dict (.pt, .pth), or a
    TensorFlow checkpoint: its prefix, or a folder of such. Or the name of a pretrained model:
    'efficientnet-lite0', whose weights come with foveal[pretrained], or 'timm/NAME', which timm fetches."""
    sha256: str | None = None
    """Of the file of weights; filled in when the run is begun."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Which weights of a run or checkpoint. auto: the averages where there are some; of a TensorFlow
    checkpoint that is gone on from, the weights themselves."""
    names: Annotated[Path | None, OPERATIONAL] = None
    """A file with the network's names for the variables of a TensorFlow checkpoint (a name map); by default
    the one that comes with the network."""
    resume: Flag = True
    """Go on at the step of a TensorFlow checkpoint whose weights all fit, with its moving averages and, where
    the optimizer has them too, its slots; false: begin at step 0."""
    map: tuple[Renaming, ...] = ()
    """'REGEX=REPLACEMENT' for the names in the file, applied in order to the whole name (re.sub), before they
    are matched with the network's."""
    skip: tuple[Expression, ...] = ()
    """Tensors of the network that keep their first values: regular expressions searched in their names."""
    partial: Flag = False
    """Accept that tensors of the network are not in the file, or are of another shape."""


class Head(Part):
    """Before the first step, fit the last layer to what the others make of the training images."""

    penalties: tuple[PositiveFloat, ...] = (0.01, 0.1, 1.0)
    """Halves of these times the sum of the squared weights are added to the loss; of several, the one that
    does best on the validation part is used, or, without one, the middle one. Features are standardised."""
    examples: PositiveInt = 20_000
    """At most so many images are used, spread evenly over the data."""

    @model_validator(mode="after")
    def _check(self) -> Head:
        if not self.penalties:
            raise ValueError("penalties = []: at least one")
        return self


class Phase(Part):
    """A stretch at the beginning of training in which less is learnt, or at another rate."""

    steps: PositiveInt
    """How long it is; the next phase, or the rest of training, follows."""
    freeze: tuple[Expression, ...] = ()
    """What is frozen meanwhile, besides the recipe's own 'freeze'."""
    rate: PositiveFloat = 1.0
    """Multiplies the scheduled learning rate meanwhile."""


class Resolution(Part):
    """A stretch at the beginning of training in which the network sees images of another size."""

    size: Size
    """Height and width, in pixels: finished images are scaled to it, antialiased bilinear."""
    until: Share
    """When it ends, as a share of all steps."""


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
    first: Flag = False
    """Evaluate it before the first step too: what the weights that training starts from are worth."""
    final: Flag = True
    """When training has ended, evaluate on the test part, if there is one."""
    use: Literal["latest", "best"] = "latest"
    """The checkpoint that this last evaluation measures, and that evaluate and predict use where nobody names
    one: that of the last step, or the best of the validation part."""
    calibrate: Flag = False
    """Divide the network's logits by a temperature, fitted at each evaluation to the validation part, so that
    probabilities are neither too sure nor too doubtful; evaluate and predict do so too."""
    metrics: tuple[str, ...] = ()
    """More metrics by name, of torchmetrics.classification: 'f1_score', 'auroc', 'cohen_kappa', ..."""
    best: str = "accuracy"
    """The metric of the validation part that decides which checkpoint is the best: accuracy, loss,
    top5_accuracy, or one of 'metrics'."""
    patience: PositiveInt | None = None
    """End training after so many evaluations in a row without a new best."""
    batch_size: Annotated[PositiveInt, OPERATIONAL] = 500
    """Examples evaluated at a time."""
    tta: Literal["none", "flip", "flip+shift", "10-crop"] = "none"
    """Test-time augmentation: an answer is the mean of the logits for the image and its mirror image (flip);
    or, with half of the weight, besides for both of these shifted by a pixel up and left, and down and right
    (flip+shift); or for the middle and the four corners, scaled up, and their mirror images (10-crop). These
    take two, six and ten times as long."""


class Logging(Part):
    """What is written down on the way, and how often."""

    every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often a line goes to the console, metrics.jsonl and TensorBoard; the first and the last step's do
    besides."""
    loss_averages: Annotated[Decay | None, OPERATIONAL] = None
    """Log besides, with 'every', the parts of the loss: cross-entropy, each parameter's weight decay (where
    that is a term of the loss: sgd, rmsprop) and their total; as they are, and as moving averages, which keep
    this share of themselves at every step and start from zero."""
    activations: Annotated[tuple[str, ...], OPERATIONAL] = ()
    """Activations to summarise: names of the network's modules, or 'probabilities'."""
    activations_every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often they are summarised."""
    histograms: Annotated[tuple[Literal["activations", "weights", "gradients"], ...], OPERATIONAL] = ()
    """Distributions for TensorBoard: each layer's output, with the share of it that is zero; each parameter;
    each parameter's gradient."""
    histograms_every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often these are written."""
    images: Annotated[NonNegativeInt, OPERATIONAL] = 0
    """For TensorBoard, so many images of a training batch, as the network sees them."""
    images_every: Annotated[Frequency, OPERATIONAL] = Frequency(100, "steps")
    """How often these are written."""
    graph: Annotated[Flag, OPERATIONAL] = False
    """Write the network's graph for TensorBoard, once, when the run begins."""

    @property
    def frequencies(self) -> dict[str, Frequency]:
        """How often each thing is written, by the field's name."""
        return {name: value for name, value in self if isinstance(value, Frequency)}


class Checkpointing(Part):
    """When the state is saved, and what is kept."""

    every: Annotated[Frequency, OPERATIONAL] = Frequency(1, "epochs")
    """How often; the end of training, a signal and a new best are always saved."""
    save: Annotated[Literal["async", "sync"], OPERATIONAL] = "async"
    """async: training goes on while a copy of the state is written. sync: it waits, and needs no copy."""
    keep_last: Annotated[PositiveInt, OPERATIONAL] = 3
    """The newest checkpoints that are kept."""
    keep_best: Annotated[NonNegativeInt | dict[str, PositiveInt], OPERATIONAL] = 1
    """The best checkpoints that are kept besides: a number, by 'evaluation.best'; or a number for each of
    several metrics of the validation part: {accuracy = 2, loss = 1}."""
    keep_steps: Annotated[PositiveInt | None, OPERATIONAL] = None
    """Keep besides one checkpoint, the first, of every so many steps."""
    keep_hours: Annotated[PositiveFloat | None, OPERATIONAL] = None
    """Keep besides one checkpoint, the first, of every so many hours of training."""


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
    """What the network computes in; weights are float32. auto: bfloat16 where it measures clearly faster."""
    kernels: Flag = True
    """Use foveal's kernels for convolutions and max-pooling on a processor where they are quicker."""
    compile: Flag | Literal["auto"] = False
    """Compile the network with torch.compile. auto: if that is measured to pay off over the whole run."""
    device: Annotated[str, OPERATIONAL] = "auto"
    """'cpu', 'cuda', 'mps', or the best there is."""
    threads: Annotated[PositiveInt | Literal["auto"], OPERATIONAL] = "auto"
    """Processor threads that compute. auto: the processors this process may use."""
    loader_threads: Annotated[PositiveInt | Literal["auto"], OPERATIONAL] = "auto"
    """Threads that prepare batches ahead. auto: one for every four processors, at least one; where images are
    decoded as they are used, one for each."""
    deterministic: Flag = True
    """On CUDA, choose kernels that give the same bits every time."""

    data: DataPart = DataPart()
    model: ModelPart = ModelPart()
    augmentation: tuple[Transform, ...] = ()
    """Distortions of the training images, in order. Images of several sizes must first be made one size;
    where no transform here does that, preprocessing does."""
    preprocessing: tuple[Transform, ...] = ()
    """What is done to the images instead when they are evaluated or predicted: resize, central_crop."""
    normalization: Normalization = Normalization()
    init: Init | None = None
    head: Head | None = None
    freeze: tuple[Expression, ...] = ()
    """Parameters that do not learn: regular expressions searched in their names. No gradient, no weight
    decay; batch norm whose parameters are all frozen keeps its statistics."""
    freeze_batch_norm: Flag = False
    """Batch norm learns nothing, and keeps the statistics that it begins with: for a pretrained network and
    few images, of which a batch says little."""
    phases: tuple[Phase, ...] = ()
    """Stretches at the beginning of training in which more is frozen, or the learning rate is another."""
    resolution: tuple[Resolution, ...] = ()
    """Smaller (or larger) images at first; afterwards, and in evaluations, they have their own size."""
    loss: Loss = Loss()
    optimizer: OptimizerPart
    groups: tuple[Group, ...] = ()
    """Parameters that learn at another rate, decay otherwise, or learn only at the beginning. Of several
    groups that a parameter is in, the first counts."""
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
        logging = {f"logging.{name}": value for name, value in self.logging.frequencies.items()}
        for field, frequency in {"evaluation.every": self.evaluation.every, **logging}.items():
            if frequency.unit == "min":
                raise ValueError(f"{field} must be in steps or epochs: by the clock, no two runs would agree")
        best, kept = self.evaluation.best, self.checkpoint.keep_best
        keeps_best = best in kept if isinstance(kept, dict) else kept > 0
        if self.evaluation.use == "best" and not keeps_best:
            raise ValueError("evaluation.use = 'best' needs checkpoint.keep_best to keep it")
        ends = [stretch.until for stretch in self.resolution]
        if ends != sorted(set(ends)):
            raise ValueError("resolution: each 'until' must be above the one before")
        return self

    @property
    def depends_on_total(self) -> bool:
        """Whether a longer run would have learnt otherwise from the start."""
        shares = (self.resolution, self.ema and self.ema.start, *(group.until for group in self.groups))
        return isinstance(self.schedule, Cosine | Linear | OneCycle) or any(shares)
