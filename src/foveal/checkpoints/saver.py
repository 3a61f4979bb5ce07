"""Saving while training goes on: the state is copied, and a thread writes the copy."""

from __future__ import annotations

import copy
import ctypes
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from foveal.checkpoints.layout import cannot_write
from foveal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from foveal.checkpoints.manager import CheckpointManager
    from foveal.checkpoints.retention import Policy

    _Piece = tuple[int, int, int]  # the address to copy to, the address to copy from, and how many bytes
    State = Mapping[str, object]
    Tensors = Mapping[str, Mapping[str, torch.Tensor]]

_DESCRIPTION = 256  # bytes that the header and the manifest take for a tensor, generously
_PIECE = 4 << 20  # bytes that a thread copies at a time


class CheckpointSaver:
    """Saves and prunes, one checkpoint at a time.

    A save holds training up for as long as the state takes to be copied into memory that is kept for it; the
    rest is done by a thread. The interpreter waits for that thread when it ends, for whatever reason: only a
    kill cuts a save short, and what that leaves is removed at the next start.
    """

    def __init__(self, manager: CheckpointManager, policies: Sequence[Policy], *, asynchronous: bool) -> None:
        """Begin with nothing in flight.

        Args:
            manager: where to save.
            policies: what to keep when a checkpoint has been saved.
            asynchronous: if not, saving is done by the calling thread, and nothing is copied.
        """
        self._manager, self._policies, self._asynchronous = manager, policies, asynchronous
        self._copies: dict[str, dict[str, torch.Tensor]] = {}
        self._written: threading.Event | None = None  # of the save in flight
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raise, once, what the save in flight has failed with, if it has; waits for nothing.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._written is not None and self._written.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            CheckpointError: it could not be written; raised once.
        """
        if self._written is not None:
            self._written.wait()  # Thread.join forgets a thread when it is interrupted (Python 3.11)
        self._written = None
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it refers to this frame: such a cycle would hold on to memory

    def save(self, step: int, tensors: Tensors, state: State, sync_logs: Callable[[], None]) -> None:
        """Save a checkpoint; asynchronously, what is passed may change as soon as this returns.

        Waits for the save in flight. Then the logs are forced to the disk, the checkpoint is written, and
        those that no policy keeps are deleted, in this order.

        Args:
            step: how many steps are done.
            tensors: by part and name, on any device.
            state: what ``write_checkpoint`` accepts.
            sync_logs: forces to the disk what the state says of the logs.

        Raises:
            CheckpointError: the save before this one failed, there is no room for this one, or (if
                synchronous) this one failed. Those saved earlier are as they were.
        """
        self.wait()
        check_space(self._manager.folder, stored_size(tensors))
        if not self._asynchronous:
            self._write(step, tensors, state, sync_logs)
            return
        written = threading.Event()
        arguments = (written, step, self._copied(tensors), copy.deepcopy(dict(state)), sync_logs)
        # No daemon: so the interpreter waits for it.
        threading.Thread(target=self._run, args=arguments, name="foveal-saver").start()
        self._written = written

    def close(self) -> None:
        """Wait until nothing is in flight, and free the copies.

        Raises:
            CheckpointError: it could not be written. Not where an exception is under way already: that one
                gets a note instead.
        """
        under_way = sys.exception()
        try:
            self.wait()
        except Exception as failure:
            if under_way is None:
                raise
            under_way.add_note(f"besides, a checkpoint could not be saved: {failure}")
        self._copies.clear()

    def _run(
        self,
        written: threading.Event,
        step: int,
        tensors: Tensors,
        state: State,
        sync_logs: Callable[[], None],
    ) -> None:
        try:
            self._write(step, tensors, state, sync_logs)
        except BaseException as error:  # noqa: BLE001 - raised by wait
            self._failure = error
        finally:
            written.set()

    def _write(self, step: int, tensors: Tensors, state: State, sync_logs: Callable[[], None]) -> None:
        try:
            sync_logs()
            self._manager.save(step, tensors, state)
            self._manager.prune(self._policies)
        except OSError as error:
            raise cannot_write(error.filename or self._manager.path(step), error) from error

    @torch.no_grad()
    def _copied(self, tensors: Tensors) -> Tensors:
        """Copy into the memory used before, where it fits."""
        copies: dict[str, dict[str, torch.Tensor]] = {}
        pieces: list[_Piece] = []
        for part, content in tensors.items():
            memory = self._copies.get(part, {})
            copies[part] = {name: _copy(tensor, memory.get(name), pieces) for name, tensor in content.items()}
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as crew:
            for _ in range(threads):
                crew.submit(_move, pieces)
        every = (tensor for content in tensors.values() for tensor in content.values())
        for device in {tensor.device for tensor in every if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._copies = copies
        return copies


def check_space(folder: Path, nbytes: int) -> None:
    """Check that the disk has room for ``nbytes`` in ``folder``, which need not exist yet.

    Raises:
        CheckpointError: it has not, or cannot be asked.
    """
    try:
        place = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise cannot_write(folder, error) from error
    if free < nbytes:
        raise CheckpointError(
            f"cannot write {folder}: a checkpoint takes {nbytes / 1e6:,.1f} MB and the disk has "
            f"{free / 1e6:,.1f} MB left: free some space there and run the same command again"
        )


def stored_size(tensors: Tensors) -> int:
    """The bytes that a checkpoint of ``tensors`` takes on the disk, to a percent or so."""
    every = (tensor for content in tensors.values() for tensor in content.values())
    return sum(tensor.numel() * tensor.itemsize + _DESCRIPTION for tensor in every)


def _copy(tensor: torch.Tensor, memory: torch.Tensor | None, pieces: list[_Piece]) -> torch.Tensor:
    """The copy in host memory; it is there when the ``pieces`` are moved and the device's stream is done."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return tensor  # the writer refuses it by name
    if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
        try:
            memory = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        except RuntimeError as error:
            raise CheckpointError(
                f"no memory for a copy of the state ({error}): free some, or set checkpoint.save = 'sync'"
            ) from error
    # New memory has no holes, so neither has a tensor of the same strides.
    plain = tensor.device.type == "cpu" and not tensor.is_conj() and not tensor.is_neg()
    if not plain or memory.stride() != tensor.stride():
        return memory.copy_(tensor, non_blocking=tensor.is_cuda)
    target, source, nbytes = memory.data_ptr(), tensor.data_ptr(), tensor.nbytes
    starts = range(0, nbytes, _PIECE)
    pieces += [(target + start, source + start, min(nbytes - start, _PIECE)) for start in starts]
    return memory


def _move(pieces: list[_Piece]) -> None:
    """Copy until none is left, in one of several threads.

    PyTorch's own threads meet after every tensor: on a busy machine, a thousand tensors take a second.
    """
    with suppress(IndexError):
        while True:
            ctypes.memmove(*pieces.pop())  # lets other threads run meanwhile
