"""The ledger of damaged records: distinct ones count, and too many are an error."""

from __future__ import annotations

import pytest

from foveal.data.corrupt import CorruptLedger, CorruptRecord
from foveal.errors import DataError


def records(*numbers):
    return [
        CorruptRecord(f"a.bin record {number}", f"a.bin record {number}: is damaged") for number in numbers
    ]


def test_a_record_counts_once():
    ledger = CorruptLedger(2, 1000)
    assert ledger.add(records(1, 2)) == records(1, 2)
    assert ledger.add(records(2, 1, 1)) == []


def test_what_was_known_before_counts_too():
    ledger = CorruptLedger(1, 1000)
    ledger.restore(["a.bin record 1"])
    assert ledger.add(records(1)) == []
    with pytest.raises(DataError, match=r"a\.bin record 2: is damaged"):
        ledger.add(records(2))


@pytest.mark.parametrize(
    ("budget", "size", "allowed"), [(0, 500, 0), (3, 500, 3), (0.01, 500, 5), (0.01, 20, 1)]
)
def test_the_budget_is_a_number_or_a_share(budget, size, allowed):
    ledger = CorruptLedger(budget, size)
    assert len(ledger.add(records(*range(allowed)))) == allowed
    with pytest.raises(DataError, match=f"record number {allowed + 1}, more than .* allows \\({allowed}\\)"):
        ledger.add(records(allowed))
