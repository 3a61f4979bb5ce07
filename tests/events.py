"""Reading TensorBoard event files back, record by record, checksums verified."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tensorboardX.proto.event_pb2 import Event as EventProto

from foveal.tensorflow.records import masked_crc

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Event:
    """The scalars of one event, without those that are times."""

    step: int
    scalars: tuple[tuple[str, float], ...]


def read_events(run: Path) -> list[Event]:
    """All events with scalars, of the one event file of a run."""
    (path,) = run.glob("events.out.tfevents.*")
    data, place, events = path.read_bytes(), 0, []
    while place < len(data):
        header = data[place : place + 8]
        (length,) = struct.unpack("<Q", header)
        content = data[place + 12 : place + 12 + length]
        sums = struct.unpack(
            "<II", data[place + 8 : place + 12] + data[place + 12 + length : place + 16 + length]
        )
        assert sums == (masked_crc(header), masked_crc(content))
        place += 16 + length
        event = EventProto.FromString(content)
        scalars = tuple((value.tag, value.simple_value) for value in event.summary.value)
        if scalars:
            events.append(Event(event.step, tuple(s for s in scalars if "time/" not in s[0])))
    return events
