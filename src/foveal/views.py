"""Test-time augmentation: one answer from several views of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch.nn import functional

from foveal.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    Network = Callable[[Tensor], Tensor]

Views = Literal["none", "flip", "flip+shift", "10-crop"]


def mean_logits(network: Network, images: Tensor, views: Views) -> Tensor:
    """A network's answer to several views of each image, averaged.

    ``flip``: the image and its mirror image, half each. ``flip+shift``: these with a quarter each, and both
    of them shifted by one pixel up and left, and down and right, with an eighth each; what comes in is
    mirrored about the edge pixels. Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024.
    ``10-crop``: the middle and the four corners, each of 7/8 of the height and width, scaled up to the whole,
    and the mirror images of the five, a tenth each. Source: Krizhevsky, Sutskever, Hinton, "ImageNet
    Classification with Deep Convolutional Neural Networks", 2012, section 4.1.

    Args:
        network: from images to logits, ``[B, classes]``.
        images: float32 ``[B, C, H, W]``; at least 2 x 2 pixels to be shifted, 8 x 8 for crops.
        views: the recipe's ``evaluation.tta``.

    Returns:
        ``[B, classes]``, float32 where there are several views.
    """
    if views == "none":
        return network(images)
    shares = [(network(view).float(), share) for view, share in _views(images, views)]
    total = shares[0][0] * shares[0][1]
    for logits, share in shares[1:]:
        total += logits * share
    return total


def check_views(views: Views, image_shape: Sequence[int]) -> None:
    """Raise RecipeError if images of this height, width and channels have no such views."""
    least = {"flip+shift": 2, "10-crop": 8}.get(views, 1)
    if min(image_shape[:2]) < least:
        raise RecipeError(f"evaluation.tta = {views!r} needs images of at least {least} x {least} pixels")


def _views(images: Tensor, views: Views) -> Iterator[tuple[Tensor, float]]:
    """What the network sees, and how much it counts."""
    if views == "10-crop":
        for crop in _crops(images):
            yield crop, 0.1
            yield crop.flip(-1), 0.1
        return
    share = 0.5 if views == "flip" else 0.25
    yield images, share
    yield images.flip(-1), share
    if views == "flip+shift":
        height, width = images.shape[2:]
        padded = functional.pad(images, (1, 1, 1, 1), "reflect")
        for start in (0, 2):
            shifted = padded[:, :, start : start + height, start : start + width]
            yield shifted, share / 2
            yield shifted.flip(-1), share / 2


def _crops(images: Tensor) -> Iterator[Tensor]:
    """The middle and the corners, as large as the whole."""
    height, width = images.shape[2:]
    rows, columns = height * 7 // 8, width * 7 // 8
    bottom, right = height - rows, width - columns
    for top, left in ((bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)):
        crop = images[:, :, top : top + rows, left : left + columns]
        yield functional.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
