"""Tasks sharded over 1, 2 and 4 ranks: the same groups, the same bits."""

from __future__ import annotations

import pytest

from tests.programs import results


@pytest.mark.distributed
def test_sharding_tasks_over_ranks_changes_no_bit() -> None:
    found = results(4, "tests/kernels/advantage_ranks.py")
    assert len({(f["backend"], f["rules"], f["ranks"]) for f in found}) == len(found) == 3 * 3
    for f in found:
        assert f["different"] == 0, f
        assert f["not_zero"] > 30, f
