"""What two runs differ in, bit for bit, but for what is named as time.

Tensors, ``state.json`` and the logs are compared; each difference is a line for people. Times are the
``time`` of a log's record, ``wall_time`` and the tags under ``time/`` of TensorBoard's events, and in
``state.json`` ``train_seconds`` and ``logs`` (lengths in bytes of files that have times in them).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from foveal.checkpoints.layout import read_manifest, read_part, read_state
from foveal.checkpoints.tensor_difference import measure_difference
from foveal.checkpoints.tensor_file import TensorFileSummary
from foveal.checkpoints.untrusted import strict_json
from foveal.run_folder import RunFolder
from foveal.tensorflow.records import RecordError, read_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

LogName = Literal["metrics.jsonl", "evaluations.jsonl", "corrupt.jsonl", "events.out.tfevents"]
LOGS: Final[tuple[LogName, ...]] = get_args(LogName)
Key = tuple[int | None, str]

_EVENTS: Final = "events.out.tfevents"  # the file's name goes on
_IDENTITY = ("split", "part", "key")  # what tells records of one step, or of none, from each other
_TIME = "time"
_STATE_TIMES = frozenset({"train_seconds", "logs"})
_NOTHING = object()


class LogEntry(NamedTuple):
    """What a log says once.

    Attributes:
        step: from 1, 0 for what comes before; None for what belongs to no step.
        what: what of that step: the part that was evaluated, a tag of TensorBoard, a damaged record; or "".
        values: by name, without times.
    """

    step: int | None
    what: str
    values: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """What no other entry of the log may have."""
        return self.step, self.what


@dataclass(frozen=True)
class Log:
    """A log of a run, read back.

    Attributes:
        run: the name of the run's folder.
        name: which log.
        entries: in their order, up to what cannot be read.
        flaw: why that cannot be read; None if all could. A process that is killed may leave half a record.
    """

    run: str
    name: LogName
    entries: tuple[LogEntry, ...]
    flaw: str | None = None

    def until(self, step: int) -> Log:
        """What was logged for steps up to ``step``."""
        kept = (entry for entry in self.entries if entry.step is not None and entry.step <= step)
        return Log(self.run, self.name, tuple(kept))


@dataclass(frozen=True)
class RunComparison:
    """Two runs, compared.

    Attributes:
        differences: a line each; none where the runs are identical.
        compared: how much there was to compare, by what it is: tensors, records of each log.
    """

    differences: tuple[str, ...]
    compared: Mapping[str, int]


def compare_runs(a: Path, b: Path) -> RunComparison:
    """Compare what two finished runs leave: logs, the last checkpoint, and each other one that ``b`` keeps.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    logs = [(read_log(a, name), read_log(b, name)) for name in LOGS]
    differences = [each for pair in logs for each in _compare_logs(*pair)]
    ours, theirs = RunFolder(a).checkpoints, RunFolder(b).checkpoints
    saved, wanted = ours.steps(), theirs.steps()
    if saved[-1:] != wanted[-1:]:
        differences.append(f"the last checkpoint: {_last(saved)} in {a.name}, {_last(wanted)} in {b.name}")
    for step in wanted:
        missing = [f"missing in {a.name}"]
        found = compare_checkpoints(ours.located(step), theirs.located(step)) if step in saved else missing
        differences += [f"checkpoint of step {step}: {each}" for each in found]
    compared = {"tensors": sum(_tensors(theirs.located(step)) for step in wanted)}
    compared |= {f"records of {log.name}": len(log.entries) for _, log in logs if log.entries}
    return RunComparison(tuple(differences), compared)


def compare_checkpoints(a: Path, b: Path) -> list[str]:
    """Compare every tensor and the state of two checkpoint folders; both are verified, a part at a time.

    Raises:
        CheckpointError: one of them cannot be read, or is damaged.
    """
    first, second = read_manifest(a), read_manifest(b)
    found = []
    for part in sorted({*first.parts, *second.parts}):
        if part in first.parts and part in second.parts:
            tensors = read_part(a, part, manifest=first), read_part(b, part, manifest=second)
            found += [f"{part} {each}" for each in compare_tensors(*tensors)]
        else:
            found.append(f"{part}: only in {a if part in first.parts else b}")
    states = read_state(a, first), read_state(b, second)
    return found + [f"state: {each}" for each in compare_states(*states)]


def compare_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Compare tensors by name: dtypes, shapes, and every bit (NaNs of the same bits are equal)."""
    found = []
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            found.append(f"{name}: only in the {'first' if name in a else 'second'}")
        elif difference := _compare_tensor(a[name], b[name]):
            found.append(f"{name}: {difference}")
    return found


def compare_states(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Compare what ``state.json`` of two checkpoints holds, but for times."""
    first, second = ({k: v for k, v in state.items() if k not in _STATE_TIMES} for state in (a, b))
    return list(_compare_values(first, second))


def compare_logs(a: Path, b: Path, *, until: int | None = None) -> list[str]:
    """Compare the logs of two runs: the same entries in the same order, equal but for times, each once.

    Differences come in the order of the logs (``LOGS``), within one in that of the steps.

    Args:
        a: a run folder.
        b: another.
        until: compare what was logged for steps up to this one (from 1), as of a run that was killed later.
            What belongs to no step (``corrupt.jsonl``), and what cannot be read, is left out then.

    Raises:
        DataError: a log cannot be opened.
    """
    found: list[str] = []
    for name in LOGS:
        first, second = read_log(a, name), read_log(b, name)
        if until is not None:
            first, second = first.until(until), second.until(until)
        found += _compare_logs(first, second)
    return found


def read_log(run: Path, name: LogName) -> Log:
    """Read a log of a run folder; one that is not there is empty.

    Raises:
        DataError: it cannot be opened.
    """
    paths = sorted(run.glob(f"{name}.*" if name == _EVENTS else name))
    read = _read_events if name == _EVENTS else _read_lines
    entries: list[LogEntry] = []
    flaw = None
    try:
        for path in paths:
            for entry in read(path):
                entries.append(entry)  # noqa: PERF402 - what stands before a flaw is kept
    except (ValueError, RecordError) as error:
        flaw = str(error)
    return Log(run.name, name, tuple(entries), flaw)


def _read_lines(path: Path) -> Iterator[LogEntry]:
    """The entries of a JSON Lines file; ValueError for what is none."""
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        record = strict_json(line)
        if not isinstance(record, dict) or type(record.get("step", 0)) is not int:
            raise ValueError(f"line {number} is not a record of a step")
        values = {key: value for key, value in record.items() if key != _TIME}
        what = "/".join(str(values[key]) for key in _IDENTITY if key in values)
        yield LogEntry(values.get("step"), what, values)
    if rest:
        raise ValueError(f"line {len(lines) + 1} is cut off")


def _read_events(path: Path) -> Iterator[LogEntry]:
    """The entries of a TensorBoard event file: one per tag; ValueError and RecordError for what is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs
    from tensorboardX.proto.event_pb2 import Event

    for record in read_records(path, compression=None):
        try:
            event = Event.FromString(record.data)
        except DecodeError as error:
            raise ValueError(f"record {record.number} is not an event: {error}") from None
        if (kind := event.WhichOneof("what")) != "summary":
            event.ClearField("wall_time")
            yield LogEntry(event.step, kind or "", {"event": str(event).strip()})
        for value in event.summary.value:
            if _TIME not in value.tag.split("/")[:-1]:
                scalar = value.WhichOneof("value") == "simple_value"
                content = value.simple_value if scalar else value.SerializeToString().hex()
                yield LogEntry(event.step, value.tag, {"value": content})


def _compare_logs(a: Log, b: Log) -> Iterator[str]:
    for log in (a, b):
        if log.flaw:
            yield f"{log.name} of {log.run}: {log.flaw}"
        for key, count in Counter(entry.key for entry in log.entries).items():
            if count > 1:
                yield f"{log.name} of {log.run}: {_place(key)} stands in it {count} times"
    ours, theirs = ({entry.key: entry.values for entry in log.entries} for log in (a, b))
    for key in sorted({**theirs, **ours}, key=lambda key: key[0] or 0):
        if key in ours and key in theirs:
            found = list(_compare_values(ours[key], theirs[key]))
            if found:
                yield f"{a.name}: {_place(key)}: {', '.join(found)}"
        else:
            yield f"{a.name}: {_place(key)} is missing in {a.run if key in theirs else b.run}"
    if set(ours) == set(theirs) and list(ours) != list(theirs):
        yield f"{a.name}: its records stand in another order"


def _compare_values(a: Mapping[str, Any], b: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """What differs, by dotted key; numbers are equal if they are written alike, as bits are."""
    for key in dict.fromkeys([*a, *b]):
        ours, theirs = a.get(key, _NOTHING), b.get(key, _NOTHING)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from _compare_values(ours, theirs, f"{table}{key}.")
        elif (left := _written(ours)) != (right := _written(theirs)):
            yield f"{table}{key} {left:.80} != {right:.80}"


def _compare_tensor(a: Tensor, b: Tensor) -> str | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        kinds = (f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for each in (a, b))
        return " != ".join(kinds)
    count, largest, _ = measure_difference(*(each.detach().cpu() for each in (a, b)))
    if not count:
        return None
    amount = "some not finite" if largest is None else f"by at most {largest:.3g}"
    return f"{count:,} of {a.numel():,} values differ, {amount}"


def _tensors(checkpoint: Path) -> int:
    """How many tensors it holds."""
    files = read_manifest(checkpoint).files.values()
    return sum(len(summary.tensors) for summary in files if isinstance(summary, TensorFileSummary))


def _place(key: Key) -> str:
    step, what = key
    return what if step is None else f"step {step} {what}".rstrip()


def _written(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value)


def _last(steps: list[int]) -> str:
    return f"step {steps[-1]}" if steps else "none"
