"""What a measurement was made on."""

from __future__ import annotations

import datetime as dt
import platform
from pathlib import Path

import torch


def describe() -> str:
    """Processor, cores in use, accelerator, versions and date, in a line."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if (info.exists())
        else [platform.processor() or platform.machine()]
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{names[0]}, {torch.get_num_threads()} threads{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}; {dt.datetime.now(tz=dt.UTC).date()}"
    )
