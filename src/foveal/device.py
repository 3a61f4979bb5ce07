"""The device, threads, precision and determinism a run computes with."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from foveal.errors import UsageError
from foveal.processors import processors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveal.recipe import Recipe


# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def find_device(name: str) -> torch.device:
    """The device of a recipe's ``device`` field.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device = {name!r} cannot be used here: {reason}") from None
    return device


def resolve_machine(recipe: Recipe, *, decodes: bool = False) -> Recipe:
    """Fill in ``device``, ``threads``, ``loader_threads`` and ``data.backend`` where they are ``auto``.

    With ``decodes``, images are decoded as they are used, which takes more time than most networks.
    """
    threads = processors()
    chosen: dict[str, object] = {}
    if recipe.device == "auto":
        chosen["device"] = str(find_device("auto"))
    if recipe.threads == "auto":
        chosen["threads"] = threads
    if recipe.loader_threads == "auto":
        chosen["loader_threads"] = threads if decodes else max(1, threads // 4)
    if recipe.data.backend == "auto":
        on_processor = chosen.get("device", recipe.device) == "cpu"
        backend = "numba" if on_processor and find_spec("numba") else "torch"
        chosen["data"] = recipe.data.model_copy(update={"backend": backend})
    return recipe.model_copy(update=chosen)


@contextmanager
def autocast(device: torch.device, precision: str, *, kernels: bool = False) -> Iterator[None]:
    """The context in which a network computes in ``precision``.

    With ``kernels``, convolutions and max-poolings on a processor are computed by foveal's own where these
    should be quicker (:mod:`foveal.kernels.mode`); without Numba, and elsewhere, it changes nothing.
    """
    with ExitStack() as contexts:
        if precision != "float32":
            contexts.enter_context(torch.autocast(device.type, torch.bfloat16))
        if kernels and device.type == "cpu" and find_spec("numba"):
            from foveal.kernels.mode import ProcessorKernels

            contexts.enter_context(ProcessorKernels())
        yield


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a processor has, when a function returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step instead of returning it to the system.

    A training step frees and asks for the same tens of megabytes again and again; returning them means a
    page fault for every 4 KiB, which is up to a third of the time of a step on a processor. It lasts for the
    life of the process. Only glibc has the call; elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_TOP_PAD, 256 << 20)


def return_freed_memory() -> None:
    """Have the C library return to the system what is freed now, in spite of :func:`keep_freed_memory`."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def configured(recipe: Recipe) -> Iterator[None]:
    """Set threads and determinism as a resolved recipe says; put back what was set before."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    cuda = recipe.device.startswith("cuda")
    if cuda and recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.set_num_threads(int(recipe.threads))
    torch.use_deterministic_algorithms(deterministic or (cuda and recipe.deterministic))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
