"""The tables of transforms: what can be done to a batch of images, and within which limits it is drawn.

Pixel values are numbers from 0 to 255. Those that move or resample pixels work on bytes, and so come first;
those of light and colour (``Photometric``) work on float32 and do not clip, unless ``clip`` asks for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from foveal.recipe.fields import (
    Flag,
    NonNegativeFloat,
    Options,
    Part,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the smallest comes first, then the largest: not {pair[0]}, {pair[1]}")
    return pair


Size = tuple[PositiveInt, PositiveInt]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]
ShareRange = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]], AfterValidator(_ordered)
]
Border = Literal["zero", "reflect"]
Method = Literal["bilinear", "bicubic"]


class Translate(Part):
    """Shift by whole pixels, each axis on its own."""

    name: Literal["translate"] = "translate"
    pixels: PositiveInt
    """Largest shift, in pixels."""
    fill: Border = "zero"
    """What comes in: black, or the image mirrored about its edge pixels."""


class Flip(Part):
    """Mirror left and right."""

    name: Literal["flip"] = "flip"
    probability: UnitFloat = 0.5
    """Share of the examples that are mirrored."""


class AlternatingFlip(Part):
    """Mirror left and right half of the examples in the first epoch, the others in the next, and so on."""

    name: Literal["alternating_flip"] = "alternating_flip"


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


class RandomCrop(Part):
    """Cut out a part of fixed size at a random place."""

    name: Literal["random_crop"] = "random_crop"
    size: Size
    """Height and width of the part, in pixels."""


class PadCrop(Part):
    """Pad all sides, then cut out a part of the former size at a random place."""

    name: Literal["pad_crop"] = "pad_crop"
    pixels: PositiveInt
    """Width of the padding, in pixels."""
    fill: Border = "zero"
    """Pad with black, or with the image mirrored about its edge pixels."""


class CentralCrop(Part):
    """Cut out the middle, by size or by share; without randomness."""

    name: Literal["central_crop"] = "central_crop"
    size: Size | None = None
    """Height and width in pixels. Where images differ in size, smaller ones are scaled up to it."""
    fraction: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Share of the height and of the width."""
    square: Flag = False
    """Cut out a square instead, whose side is that fraction of the shorter side."""

    @model_validator(mode="after")
    def _check(self) -> CentralCrop:
        if (self.size is None) == (self.fraction is None):
            raise ValueError("central_crop takes size or fraction, one of the two")
        if self.square and self.fraction is None:
            raise ValueError("square = true goes with a fraction: size says height and width itself")
        return self


class Resize(Part):
    """Scale to a size, whatever the proportions; antialiased."""

    name: Literal["resize"] = "resize"
    size: Size
    """Height and width afterwards, in pixels."""
    method: Method = "bilinear"
    """As Pillow's BILINEAR, or its BICUBIC (Keys, 1981, a = -0.5), which is sharper and takes longer."""


class RandomResizedCrop(Part):
    """Cut out a part of random area, proportions and place, and scale it to a size (Szegedy et al., 2015)."""

    name: Literal["random_resized_crop"] = "random_resized_crop"
    size: Size
    """Height and width afterwards, in pixels."""
    area: ShareRange = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    aspect: PositiveRange = (3 / 4, 4 / 3)
    """Smallest and largest width, as a multiple of the height; drawn evenly on a logarithmic scale."""


class Cutout(Part):
    """Blacken a square at a random place, which may reach beyond the edge (DeVries, Taylor, 2017)."""

    name: Literal["cutout"] = "cutout"
    size: PositiveInt
    """Side of the square, in pixels."""


class Erasing(Part):
    """Overwrite a rectangle of random area, proportions and place (Zhong et al., 2017)."""

    name: Literal["erasing"] = "erasing"
    probability: UnitFloat = 0.5
    """Share of the examples in which something is erased."""
    area: ShareRange = (0.02, 0.33)
    """Smallest and largest share of the image's area."""
    aspect: PositiveRange = (0.3, 3.3)
    """Smallest and largest width, as a multiple of the height; drawn evenly on a logarithmic scale."""
    fill: Literal["zero", "mean"] = "zero"
    """Black, or the mean of each channel of the image."""


class Invert(Part):
    """Exchange dark and light; without randomness."""

    name: Literal["invert"] = "invert"


class TrivialAugment(Part):
    """One random operation of random strength (TrivialAugment Wide: Mueller, Hutter, 2021)."""

    name: Literal["trivial_augment"] = "trivial_augment"


class RandAugment(Part):
    """Some random operations of one strength, out of TrivialAugment's (Cubuk et al., 2020)."""

    name: Literal["rand_augment"] = "rand_augment"
    number: PositiveInt = 2
    """How many operations."""
    magnitude: UnitFloat = 0.3
    """Their strength: 0 changes nothing, 1 is the strongest of TrivialAugment Wide."""


class _Light(Part):
    """What transforms of light and colour have in common."""

    probability: UnitFloat = 1.0
    """Share of the examples that are changed."""


class _Factor(_Light):
    """A factor drawn from a range."""

    low: NonNegativeFloat
    """Smallest factor; 1 changes nothing."""
    high: NonNegativeFloat
    """Largest factor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


class Brightness(_Light):
    """Add a number to every pixel value."""

    name: Literal["brightness"] = "brightness"
    delta: NonNegativeFloat
    """The number is drawn from [-delta, delta); pixel values go from 0 to 255."""


class Contrast(_Factor):
    """Multiply the differences from each channel's mean, as tf.image.adjust_contrast."""

    name: Literal["contrast"] = "contrast"


class Saturation(_Factor):
    """Multiply the saturation (in HSV) of colour images, as tf.image.adjust_saturation."""

    name: Literal["saturation"] = "saturation"


class Hue(_Light):
    """Turn the hue (in HSV) of colour images, as tf.image.adjust_hue."""

    name: Literal["hue"] = "hue"
    delta: Annotated[float, Field(ge=0, le=0.5, strict=True)]
    """The turn is drawn from [-delta, delta), as a share of the circle."""


class Noise(_Light):
    """Add a number drawn from a normal distribution to each value of each pixel."""

    name: Literal["noise"] = "noise"
    deviation: NonNegativeFloat
    """Standard deviation; pixel values go from 0 to 255."""


class Clip(Part):
    """Bring values below 0 to 0, and those above 255 to 255."""

    name: Literal["clip"] = "clip"


Photometric = Annotated[
    Brightness | Contrast | Saturation | Hue | Noise | Clip,
    Field(discriminator="name"),
]


class RandomOrder(Part):
    """Several transforms of light and colour, in an order drawn for each example."""

    name: Literal["random_order"] = "random_order"
    transforms: tuple[Photometric, ...]
    """The transforms: brightness, contrast, saturation, hue, noise, clip."""


class Mixup(Part):
    """Add pairs of images, and their targets, with random weights (Zhang et al., 2018)."""

    name: Literal["mixup"] = "mixup"
    alpha: PositiveFloat = 0.2
    """The weight is drawn from Beta(alpha, alpha), once for 16 examples that are mixed among themselves."""


class Cutmix(Part):
    """Paste a rectangle of one image into another, and mix the targets by area (Yun et al., 2019)."""

    name: Literal["cutmix"] = "cutmix"
    alpha: PositiveFloat = 1.0
    """The share that stays is drawn from Beta(alpha, alpha), once for 16 examples."""


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
    | Annotated[AlternatingFlip, Tag("alternating_flip")]
    | Annotated[Affine, Tag("affine")]
    | Annotated[RandomCrop, Tag("random_crop")]
    | Annotated[PadCrop, Tag("pad_crop")]
    | Annotated[CentralCrop, Tag("central_crop")]
    | Annotated[Resize, Tag("resize")]
    | Annotated[RandomResizedCrop, Tag("random_resized_crop")]
    | Annotated[Cutout, Tag("cutout")]
    | Annotated[Erasing, Tag("erasing")]
    | Annotated[Invert, Tag("invert")]
    | Annotated[TrivialAugment, Tag("trivial_augment")]
    | Annotated[RandAugment, Tag("rand_augment")]
    | Annotated[Brightness, Tag("brightness")]
    | Annotated[Contrast, Tag("contrast")]
    | Annotated[Saturation, Tag("saturation")]
    | Annotated[Hue, Tag("hue")]
    | Annotated[Noise, Tag("noise")]
    | Annotated[Clip, Tag("clip")]
    | Annotated[RandomOrder, Tag("random_order")]
    | Annotated[Mixup, Tag("mixup")]
    | Annotated[Cutmix, Tag("cutmix")]
    | Annotated[CustomTransform, Tag("custom")],
    Discriminator(_transform_tag),
]
