"""Damaged records: what is known of them, and how many are borne."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class CorruptRecord:
    """A record that cannot be used.

    Attributes:
        key: its file and number.
        reason: what is wrong with it.
    """

    key: str
    reason: str


class CorruptLedger:
    """The distinct records of a run that were found damaged.

    Args:
        budget: how many may be: a number, or a share of ``size`` (then at least one).
        size: number of training examples.
    """

    def __init__(self, budget: float, size: int) -> None:
        self._limit = budget if isinstance(budget, int) else max(1, int(budget * size))
        self._keys: set[str] = set()

    def restore(self, keys: Iterable[str]) -> None:
        """Begin with what is known already."""
        self._keys = set(keys)

    def add(self, records: Iterable[CorruptRecord]) -> list[CorruptRecord]:
        """Count some records; those of them that are new.

        Raises:
            DataError: there are more than the budget allows.
        """
        new = []
        for record in records:
            if record.key in self._keys:
                continue
            self._keys.add(record.key)
            new.append(record)
            if len(self._keys) > self._limit:
                raise DataError(
                    f"{record.reason}; that is damaged record number {len(self._keys)}, more than "
                    f"data.corrupt_budget allows ({self._limit}): foveal data verify lists all of them"
                )
        return new
