"""TensorBoard's messages: a number, a distribution, an image."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

BUCKETS = 30
"""Of equal width between the smallest and the largest value, as TensorFlow 2's histograms have."""

CHANNELS = (1, 3, 4)
"""Channels that an image may have: grey, colour, colour with opacity."""


def scalar(tag: str, value: float) -> Any:
    """A ``Summary.Value`` of a number."""
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary.Value(tag=tag, simple_value=value)


def histogram(tag: str, values: Tensor) -> Any:
    """A ``Summary.Value`` of how values are distributed.

    Infinite values and NaNs are left out; where nothing is left, the histogram is of no values.

    Args:
        tag: the name.
        values: floating-point numbers of any shape, on any device.
    """
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

    values = values.detach().flatten().float()
    if values.device.type == "mps":  # which has no float64
        values = values.cpu()
    finite = values.isfinite()
    if not finite.all():
        values = values[finite]
    if not len(values):
        return Summary.Value(tag=tag, histo=HistogramProto())
    low, high = (limit.item() for limit in values.aminmax())
    counts, limits = [float(len(values))], [high]
    if low < high:
        width = (high - low) / BUCKETS
        # torch.histc has no deterministic form on CUDA, and counts in float32 everywhere.
        places = ((values.double() - low) / width).long().clamp_(max=BUCKETS - 1)
        counts = torch.bincount(places, minlength=BUCKETS).tolist()
        limits = [low + width * number for number in range(1, BUCKETS)] + [high]
    content = HistogramProto(
        min=low,
        max=high,
        num=len(values),
        sum=values.sum(dtype=torch.float64).item(),
        sum_squares=values.square().sum(dtype=torch.float64).item(),
        bucket_limit=limits,
        bucket=counts,
    )
    return Summary.Value(tag=tag, histo=content)


def image(tag: str, values: Tensor) -> Any:
    """A ``Summary.Value`` of an image, its numbers mapped to 0..255 as ``tf.summary.image`` does.

    Where none is negative, the largest becomes 255 and 0 stays 0. Else 0 becomes 127.5, and what is farthest
    from it 0 or 255.

    Args:
        tag: the name.
        values: floating-point numbers ``[C, H, W]``, C one of :data:`CHANNELS`.
    """
    from tensorboardX.proto.summary_pb2 import Summary

    values = values.detach().float().cpu()
    largest = values.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    values = values / largest * 255 if values.min() >= 0 else (values / largest + 1) * 127.5
    pixels = values.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    height, width, channels = pixels.shape
    encoded = BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(encoded, "PNG")
    content = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encoded.getvalue()
    )
    return Summary.Value(tag=tag, image=content)
