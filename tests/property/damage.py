"""How files come to differ from what was written, by accident or on purpose, and limits for readers."""

from __future__ import annotations

import random
import signal
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SECONDS = 5  # of the processor's time that a case may take
# Bytes that a case may take: 16 MiB for Python's table of interned names, at times made anew, 16 MiB
# that are asked for at once where a length is only a claim; and 64 for each byte of its files
MEMORY = 1 << 25, 64
MEASURED = 8  # one case in so many is measured: that makes it five times slower

# What lengths, offsets and numbers of dtypes may claim
ODD = [-1, 0, 1, 2, 3, 7, 14, 20, 1000, -(1 << 31), -(1 << 63), (1 << 63) - 1]
ODD += [(1 << bits) + more for bits in (6, 7, 8, 16, 31, 32, 40, 58, 62) for more in (-1, 0, 1)]
NAMES = ["", "..", "../../x", "/x", "a\nb", "\r\x1b[2J", "\0", "a\0b", "\x7f", "é" * 300, "x" * 3000]
VARINTS = [b"\x80", b"\xff" * 4 + b"\x0f", b"\xff" * 8 + b"\x7f", b"\xff" * 9 + b"\x01", b"\xff" * 12]


@contextmanager
def case(number: int, size: int) -> Iterator[random.Random]:
    """One case, held to its limits; gives what it draws from. ``size`` is that of its files in bytes."""
    previous = signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail(f"took over {SECONDS} s"))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    if measured := number % MEASURED == 0:
        tracemalloc.start()
    try:
        yield random.Random(number)
        if measured:
            assert tracemalloc.get_traced_memory()[1] < MEMORY[0] + MEMORY[1] * size
    except BaseException as error:
        error.add_note(f"case {number}")
        raise
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def damaged(draw: random.Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file after one to three accidents; ``others`` may come to stand in its place."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = _once(draw, content, others)
    return content


def _once(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start = draw.randrange(len(content) or 1)
    size = draw.choice([1, 2, 4, draw.randint(1, 16), draw.randint(1, 200)])
    before, piece, after = content[:start], content[start : start + size], content[start + size :]
    to = draw.randrange(len(after) + 1)
    return draw.choice(
        [
            before + _flipped(draw, piece, 1) + after,
            before + _flipped(draw, piece, 8) + after,
            before + draw.randbytes(len(piece)) + after,
            before + bytes(len(piece)) + after,
            before + b"\xff" * len(piece) + after,
            before + draw.choice(VARINTS) + after,
            before,
            before + after,
            before + piece + piece + after,
            before + after[:to] + piece + after[to:],
            content + draw.randbytes(size),
            draw.choice([content, *others]),
        ]
    )


def _flipped(draw: random.Random, content: bytes, bits: int) -> bytes:
    changed = bytearray(content)
    for _ in range(bits if content else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(path: Path, content: bytes) -> None:
    """Like ``write_bytes``, without the flush to the disk that some file systems add to a truncation to 0."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def lie(draw: random.Random, message: Any) -> None:
    """Change something somewhere in a message."""
    field = draw.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if not hasattr(value, "extend"):
        _change(draw, field, value, lambda changed: setattr(message, field.name, changed))
        return
    at = draw.randrange(len(value)) if value else None
    action = draw.choice(["add", "change", "change", "delete", "double"])
    if at is None or action == "add":
        if field.message_type is not None:
            lie(draw, value.add())
        else:
            value.append(_odd(draw, field))
    elif action == "change":
        _change(draw, field, value[at], lambda changed: value.__setitem__(at, changed))
    elif action == "delete":
        del value[at]
    else:
        value.extend([value[at]] * draw.choice([1, 1, 100]))


def _change(draw: random.Random, field: Any, value: Any, put: Callable[[Any], None]) -> None:
    if field.message_type is not None:
        lie(draw, value)
    else:
        put(_odd(draw, field, value))


def _odd(draw: random.Random, field: Any, value: Any = None) -> Any:
    """A value of the field's type that nobody means."""
    if field.type == field.TYPE_BYTES:
        return damaged(draw, value or b"")
    if field.type == field.TYPE_STRING:
        return draw.choice(NAMES)
    if field.type == field.TYPE_BOOL:
        return not value
    number = draw.choice([*ODD, int(value or 0) + 1, int(value or 0) - 1])
    if field.type == field.TYPE_FIXED32:
        return number % (1 << 32)
    bits = 32 if field.type == field.TYPE_INT32 else 64
    return (number + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
