"""The most memory that was in use at a time since some moment."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import torch

from foveal.device import return_freed_memory

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """From the making of this object on: a GPU's tensors, or the resident memory of the process.

    Where the system cannot begin anew (all but Linux, see proc_pid_clear_refs(5)), it is the peak of the
    process since its start.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        return_freed_memory()
        try:
            _RESET.write_text("5")
        except OSError:
            self._resets = False
        else:
            self._resets = True

    def bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._resets and (found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
            return int(found[1]) * 1024
        if sys.platform == "win32":
            return None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
