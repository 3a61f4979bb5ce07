"""From a batch of stored images to what the network sees: distortions, then normalisation.

What is drawn is computed once from the examples' positions; the back ends only apply it. Images stay uint8
until the first transform of light and colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.augmentation.backends import Backend, load_backend
from foveal.data.augmentation.geometry import central_windows, random_windows
from foveal.data.augmentation.mixing import mix
from foveal.data.augmentation.program import LINE, PER_IMAGE, PIXELS, TABLE, Finish
from foveal.data.augmentation.segments import Segment
from foveal.data.augmentation.stages import ByteTransform, Stage, byte_stage
from foveal.errors import RecipeError
from foveal.recipe import (
    AlternatingFlip,
    Brightness,
    CentralCrop,
    Clip,
    Contrast,
    Cutmix,
    Cutout,
    Erasing,
    Flip,
    Hue,
    Mixup,
    Noise,
    PadCrop,
    RandomCrop,
    RandomOrder,
    RandomResizedCrop,
    Resize,
    Saturation,
    Translate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foveal.recipe import Normalization, Transform
    from foveal.recipe.transforms import Method
    from foveal.seeding import Draws

_MOVING = Translate | Flip | AlternatingFlip | RandomCrop | PadCrop | CentralCrop


class Augmentation:
    """A list of transforms and a normalisation, applied to batches.

    Where images are encoded and differ in size (``image_shape`` None), the first transform makes them one
    size (``resize``, ``random_resized_crop``, ``central_crop``; or ``central_crop`` by a fraction and
    ``resize``), and is done by decoding: give the decoder ``windows(sizes, draws)`` and ``decoded_shape``.
    Else the windows are the whole images, and nothing is left out.

    Args:
        transforms: what is done, in order; ``mixup`` and ``cutmix`` stand last and are done by :meth:`mix`.
        normalization: what is done at the end.
        image_shape: height, width and channels of the images, or None.
        channels: 1 or 3, what to decode images to; only with ``image_shape`` None.
        backend: ``numba``, or torch where it is not installed; or ``torch``.
        device: where torch computes.
        field: the recipe's field the transforms stand in, for messages.

    Attributes:
        output_shape: height, width and channels of what comes out.
        decoded_shape: those of what goes in.
        method: the filter with which decoding is to resize.
        mixes: whether there is a ``mixup`` or ``cutmix``.

    Raises:
        RecipeError: a transform does not fit the images, or stands in the wrong place.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        normalization: Normalization,
        image_shape: tuple[int, int, int] | None,
        *,
        channels: int | None = None,
        backend: str = "numba",
        device: str = "cpu",
        field: str = "augmentation",
    ) -> None:
        self._field = field
        self._mixing = tuple(each for each in transforms if isinstance(each, Mixup | Cutmix))
        self.mixes = bool(self._mixing)
        numbered = list(enumerate(transforms))
        for number, transform in numbered[: len(numbered) - len(self._mixing)]:
            if isinstance(transform, Mixup | Cutmix):
                self._refuse(number, transform, "mixes finished images: put it last")
        del numbered[len(numbered) - len(self._mixing) :]
        self._sizing: Transform | None = None
        self.method: Method = "bilinear"
        if image_shape is None:
            image_shape = (*self._size_by_decoding(numbered), channels or 3)
        self.decoded_shape = image_shape
        self._shape = image_shape
        self._backend: Backend = load_backend(backend, device)
        self._distorts = bool(numbered)
        self._stages: list[Stage] = []
        self._segment = Segment(*image_shape[:2])
        self._bytes = True  # until the first transform of light and colour
        for number, transform in numbered:
            self._add(number, transform)
        self._segment.build()
        self.output_shape = self._shape
        self._normalization = normalization
        self._finish = _finish(normalization, image_shape[2], bytes_only=self._bytes)
        self._pixels = _raw(image_shape[2])

    def windows(self, sizes: NDArray[np.int64], draws: Draws) -> NDArray[np.int64]:
        """The part of each encoded image that is decoded to ``decoded_shape``.

        Args:
            sizes: int64 ``[B, 2]``, heights and widths.
            draws: those of the batch.

        Returns:
            int64 ``[B, 4]``: top, left, height and width in pixels, inside the image.
        """
        match self._sizing:
            case RandomResizedCrop():
                return random_windows(self._sizing, sizes, draws, f"augmentation/0 {self._sizing.name}")
            case CentralCrop():
                return central_windows(self._sizing, sizes)
        return np.concatenate([np.zeros_like(sizes), sizes], axis=1)

    def __call__(self, images: Any, draws: Draws) -> Any:
        """Distort and normalise.

        Args:
            images: uint8 ``[B, H, W, C]`` of ``decoded_shape``, an array, or a tensor of the device; it is
                left as it is. Without transforms also a float32 array, which is normalised as it is:
                (x - mean) / deviation.
            draws: those of the batch.

        Returns:
            float32 ``[B, *output_shape]``: a new array, or a tensor of the device.

        Raises:
            RecipeError: there are transforms, and images that are not bytes.
        """
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            return self._backend.put(self._normalized(images))
        return self._run(images, draws, self._finish)

    def distort(self, images: Any, draws: Draws) -> NDArray[np.float32]:
        """Distort only: float32 ``[B, *output_shape]``, pixel values on the scale of 0 to 255."""
        return self._backend.host(self._run(images, draws, self._pixels))

    def mix(self, images: Any, targets: NDArray[np.int64], num_classes: int, draws: Draws) -> tuple[Any, Any]:
        """Apply ``mixup`` or ``cutmix`` to finished images; see ``mixing.mix``."""
        return mix(images, targets, num_classes, self._mixing, draws)

    def _run(self, images: Any, draws: Draws, finish: Finish) -> Any:
        # The kernels trust their arguments.
        if not _is_bytes(images) or images.shape[1:] != self.decoded_shape:
            shape = ", ".join(map(str, self.decoded_shape))
            raise ValueError(f"uint8 [B, {shape}] expected, not {images.dtype} {list(images.shape)}")
        batch = self._backend.put(images)
        for stage in self._stages:
            batch = stage(batch, draws)
        return self._backend.distort(batch, self._segment.program, self._segment.draw(draws), finish)

    def _normalized(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Of plain numbers."""
        if self._distorts:
            raise RecipeError(f"{self._field}: transforms are for images of bytes, not for {images.dtype}")
        part, wide = self._normalization, images.astype(np.float64)
        mean, deviation = np.array(part.mean), np.array(part.deviation)
        if part.per_image:
            mean, deviation = (f(axis=(1, 2, 3), keepdims=True) for f in (wide.mean, wide.std))
            deviation = np.maximum(deviation, 1 / np.sqrt(np.prod(wide.shape[1:])))
        result: NDArray[np.float32] = ((wide - mean) / deviation).astype(np.float32)
        return result

    def _refuse(self, number: int, transform: Transform, why: str) -> None:
        raise RecipeError(f"{self._field}.{number} ({transform.name}): {why}")

    def _size_by_decoding(self, numbered: list[tuple[int, Transform]]) -> tuple[int, int]:
        """Take the transforms that make images one size off the list; give that size."""
        found = sizing([transform for _, transform in numbered])
        if found is None:
            raise RecipeError(
                f"{self._field}: the images differ in size: begin with resize, random_resized_crop or "
                "central_crop (by size, or by fraction and then resize)"
            )
        count, size = found
        self._sizing = numbered[0][1]
        if isinstance(last := numbered[count - 1][1], Resize):
            self.method = last.method
        del numbered[:count]
        return size

    def _add(self, number: int, transform: Transform) -> None:
        # Purposes carry the transform's place, so that two of the same kind draw differently.
        purpose = f"augmentation/{number} {transform.name}"
        self._check(number, transform)
        if isinstance(transform, ByteTransform):
            self._close_segment()
            self._stages.append(byte_stage(transform, purpose, self._backend, self._shape[:2]))
            if isinstance(transform, Resize | RandomResizedCrop):
                self._shape = (*transform.size, self._shape[2])
            self._segment = Segment(*self._shape[:2])
            return
        moves = isinstance(transform, _MOVING)
        later = self._segment.colours or (self._segment.boxes if moves else ())
        if later and (moves or isinstance(transform, Cutout | Erasing)):
            self._close_segment()
        self._extend(self._segment, transform, purpose)

    def _extend(self, segment: Segment, transform: Transform, purpose: str) -> None:
        match transform:
            case Cutout():
                segment.cut(purpose, transform)
            case Erasing():
                segment.erase(purpose, transform)
            case Flip(probability=probability):
                segment.mirror(purpose, probability)
            case AlternatingFlip():
                segment.alternate(purpose)
            case Translate() | PadCrop() | RandomCrop() | CentralCrop():
                _shift(segment, transform, purpose)
            case Brightness() | Contrast() | Saturation() | Hue() | Noise() | Clip() | RandomOrder():
                self._bytes = False
                segment.colour(purpose, transform)
        self._shape = (segment.height, segment.width, self._shape[2])

    def _close_segment(self) -> None:
        """Make the segment a stage, and begin the next one."""
        segment, backend, pixels = self._segment, self._backend, _raw(self._shape[2])
        segment.build()
        if segment.colours:
            self._stages.append(
                lambda images, draws: backend.distort(images, segment.program, segment.draw(draws), pixels)
            )
        elif segment.moves or segment.boxes:
            self._stages.append(
                lambda images, draws: backend.move(images, segment.program, segment.draw(draws))
            )
        self._segment = Segment(*self._shape[:2])

    def _check(self, number: int, transform: Transform) -> None:
        """Refuse what does not fit the images as they are at this point."""
        height, width, channels = self._shape
        smallest = min(height, width)
        extent = getattr(transform, "pixels", 0)
        if isinstance(transform, Cutout):
            extent = transform.size
        if extent >= smallest:
            self._refuse(number, transform, f"{extent} pixels do not fit images of {height} x {width}")
        if isinstance(transform, ByteTransform) and not self._bytes:
            self._refuse(number, transform, "works on bytes: put it before those of light and colour")
        match transform:
            case RandomCrop(size=size) | CentralCrop(size=tuple() as size):
                if size[0] > height or size[1] > width:
                    what = f"{size[0]} x {size[1]} pixels do not fit images of {height} x {width}"
                    self._refuse(number, transform, what)
            case Saturation() | Hue() if channels != 3:
                self._refuse(number, transform, f"needs images of 3 channels, not {channels}")
            case RandomOrder(transforms=transforms):
                for each in transforms:
                    self._check(number, each)


def sizing(transforms: Sequence[Transform]) -> tuple[int, tuple[int, int]] | None:
    """How many transforms at the beginning of a list make images of any size one size, and which.

    Decoding can do that on the way, and then decodes only the part that is needed. None where the list does
    not begin so.
    """
    match transforms[:2]:
        case [CentralCrop(fraction=float()), Resize(size=size)]:
            return 2, size
        case [Resize(size=size) | RandomResizedCrop(size=size) | CentralCrop(size=tuple() as size), *_]:
            return 1, size
    return None


def _is_bytes(images: Any) -> bool:
    """Whether an array, or a tensor, is of uint8."""
    return images.dtype == np.uint8 if isinstance(images, np.ndarray) else str(images.dtype) == "torch.uint8"


def _shift(segment: Segment, transform: Translate | PadCrop | RandomCrop | CentralCrop, purpose: str) -> None:
    """The transforms that read pixels at a distance."""
    height, width = segment.height, segment.width
    match transform:
        case Translate(pixels=most, fill=fill):
            segment.shift(purpose, (-most, most), (-most, most), sign=-1, reflect=fill == "reflect")
        case PadCrop(pixels=most, fill=fill):
            segment.shift(purpose, (-most, most), (-most, most), reflect=fill == "reflect")
        case RandomCrop(size=size):
            segment.shift(purpose, (0, height - size[0]), (0, width - size[1]), size=size)
        case CentralCrop():
            top, left, *size = central_windows(transform, np.array([[height, width]]))[0].tolist()
            segment.shift(purpose, (top, top), (left, left), size=(size[0], size[1]))


def _raw(channels: int) -> Finish:
    """Pixels as they are."""
    return Finish(PIXELS, np.empty((channels, 0), np.float32), np.zeros((2, channels)))


def _finish(part: Normalization, channels: int, *, bytes_only: bool) -> Finish:
    """A recipe's normalisation; of bytes it is a table.

    Raises:
        RecipeError: its means or deviations are neither one nor one a channel.
    """
    for field in ("mean", "deviation"):
        if len(getattr(part, field)) not in (1, channels):
            raise RecipeError(
                f"normalization.{field} has {len(getattr(part, field))} numbers; "
                f"images of {channels} channels need one or {channels}"
            )
    mean, deviation = (np.broadcast_to(v, channels) for v in (part.mean, part.deviation))
    table = ((np.arange(256) / 255 - mean[:, None]) / deviation[:, None]).astype(np.float32)
    line = np.stack([1 / (255 * deviation), -mean / deviation])
    kind = PER_IMAGE if part.per_image else TABLE if bytes_only else LINE
    return Finish(kind, table, line)
