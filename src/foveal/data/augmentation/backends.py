"""What computes the transforms: compiled processor kernels, or torch on any device; both give the same."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foveal.data.augmentation.program import TABLE
from foveal.seeding import bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.data.augmentation.program import Drawn, Finish, Program


class Backend(Protocol):
    """Operations on batches of images ``[B, H, W, C]``: arrays or tensors of the back end's own."""

    def put(self, images: NDArray[Any]) -> Any:
        """The back end's form of an array."""

    def host(self, images: Any) -> NDArray[Any]:
        """And back."""

    def move(self, images: Any, program: Program, drawn: Drawn) -> Any:
        """A segment without colours; of the type of ``images``."""

    def distort(self, images: Any, program: Program, drawn: Drawn, finish: Finish) -> Any:
        """A whole segment, of uint8 or of float32 from 0 to 255; float32."""

    def affine(self, images: Any, matrices: NDArray[np.int64]) -> Any:
        """See ``resampling_kernels.affine``, and there too for those that follow."""

    def resize(
        self,
        images: Any,
        tops: NDArray[np.int64],
        vertical: NDArray[np.int32],
        lefts: NDArray[np.int64],
        horizontal: NDArray[np.int32],
    ) -> Any:
        """Antialiased scaling."""

    def histogram(self, images: Any) -> NDArray[np.int64]:
        """How often each byte occurs."""

    def look_up(self, images: Any, tables: NDArray[np.uint8]) -> Any:
        """Replace bytes by others."""

    def colour(self, images: Any, factors: NDArray[np.int64]) -> Any:
        """Towards grey, or away from it."""

    def sharpen(self, images: Any, factors: NDArray[np.int64]) -> Any:
        """Towards a smoothed image, or away from it."""


def load_backend(name: str, device: str = "cpu") -> Backend:
    """The back end ``numba`` (torch where Numba is not installed) or ``torch``."""
    if name != "torch" and find_spec("numba"):
        return NumbaBackend()
    from foveal.data.augmentation.torch_backend import TorchBackend

    return TorchBackend(device)


class NumbaBackend:
    """The compiled kernels on NumPy arrays."""

    def __init__(self) -> None:
        from foveal.data.augmentation import kernels, resampling_kernels

        bits(0, "start", [0])  # Numba's own start takes a third of a second: here, and not in the first batch
        self._kernels = kernels
        self.affine = resampling_kernels.affine
        self.resize = resampling_kernels.resize
        self.histogram = resampling_kernels.histogram
        self.look_up = resampling_kernels.look_up
        self.colour = resampling_kernels.colour
        self.sharpen = resampling_kernels.sharpen

    def put(self, images: NDArray[Any]) -> NDArray[Any]:
        """Contiguous, and writeable: to Numba, what is not is another type, and compiled anew."""
        plain = images.flags.c_contiguous and images.flags.writeable
        return images if plain else np.require(images, requirements=("C", "W"))

    def host(self, images: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return images

    def move(self, images: NDArray[Any], program: Program, drawn: Drawn) -> NDArray[Any]:
        """A segment without colours."""
        count, height, width, channels = images.shape
        moved = self._kernels.move(
            images.reshape(count, height, width * channels),
            channels,
            drawn.values,
            program.moves,
            program.boxes,
            program.height,
            program.width,
        )
        return moved.reshape(count, program.height, program.width, channels)  # type: ignore[no-any-return]

    def distort(
        self, images: NDArray[Any], program: Program, drawn: Drawn, finish: Finish
    ) -> NDArray[np.float32]:
        """A whole segment."""
        if finish.kind == TABLE and (len(program.moves) or len(program.boxes)):
            images = self.move(images, program, drawn)
        count, height, width, channels = images.shape
        flat = images.reshape(count, height, width * channels)
        if finish.kind == TABLE:
            return self._kernels.normalize(flat, finish.table).reshape(images.shape)  # type: ignore[no-any-return]
        out = self._kernels.distort(
            flat,
            channels,
            drawn.values,
            drawn.words,
            drawn.order,
            program.moves,
            program.boxes,
            program.colours,
            program.height,
            program.width,
            finish.kind,
            finish.line,
            program.quantiles,
        )
        return out.reshape(count, program.height, program.width, channels)  # type: ignore[no-any-return]
