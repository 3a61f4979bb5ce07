"""Images that are kept on an accelerator: read once, then gathered there, with nothing to transfer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.data.source import Encoded, blocks
from foveal.data.stream import StreamSource
from foveal.errors import CorruptRecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.data.source import Source

_SHARE = 4  # of the device's free memory, one part may go to images
_BLOCK = 8192  # images transferred at a time


class ResidentImages:
    """All images of a source, as one tensor of a device.

    Args:
        images: uint8 ``[N, H, W, C]`` on the device.
        targets: int64 ``[N]``.
    """

    def __init__(self, images: Any, targets: NDArray[np.int64]) -> None:
        self._images, self._targets = images, targets

    def read(self, indices: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        """The images at ``indices`` (int64 ``[B]``), a tensor of the device, and their classes."""
        import torch

        return self._images[torch.tensor(indices, device=self._images.device)], self._targets[indices]


def make_resident(source: Source, device: str, limit: int) -> ResidentImages | None:
    """Move the images of a source to a device.

    Args:
        source: what has uint8 images of one shape.
        device: where to.
        limit: bytes that the images may have.

    Returns:
        None where there are others, or too many, or not all of them can be read.
    """
    import torch

    shape = source.image_shape
    if shape is None or isinstance(source, StreamSource) or len(source) * math.prod(shape) > limit:
        return None
    images = torch.empty((len(source), *shape), dtype=torch.uint8, device=device)
    targets = np.empty(len(source), np.int64)
    for indices in blocks(len(source), _BLOCK):
        try:
            batch = source.read(indices)
        except CorruptRecordError:
            return None
        if isinstance(batch.images, Encoded) or batch.images.dtype != np.uint8:
            return None
        images[int(indices[0]) : int(indices[-1]) + 1] = torch.tensor(batch.images)
        targets[indices] = batch.targets
    return ResidentImages(images, targets)


def resident_limit(device: str) -> int:
    """Bytes of images that may be kept on a device: a quarter of what is free on CUDA, else none."""
    if not device.startswith("cuda"):
        return 0
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // _SHARE
