"""What the advantages of an iteration take: an upper bound on memory that a change may not pass unseen."""

from __future__ import annotations

import pytest

from gigpo_mega.algorithms.advantage import BUILT_IN
from tools.bench.advantage import make_table, measure_memory, peak_bytes

ROWS = 6400


def test_memory_of_every_estimator_is_that_of_some_columns() -> None:
    record = measure_memory(make_table(ROWS))

    assert record["rows"] == ROWS
    assert list(record["peak_bytes"]) == list(BUILT_IN)
    for name, peak in record["peak_bytes"].items():
        assert 8 < peak / ROWS < 32 * 8, f"{name}: {peak / ROWS:.0f} bytes per step"


@pytest.mark.parametrize("rows", [1600, ROWS])
def test_gigpo_takes_less_than_four_columns_more_than_grpo(rows: int) -> None:
    table = make_table(rows)

    more = peak_bytes(table, "gigpo") - peak_bytes(table, "grpo")

    assert 0 < more / rows < 4 * 8
