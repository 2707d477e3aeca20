"""A vocabulary split over 2 and 4 ranks: one gather, the same bits everywhere, the values of one rank."""

from __future__ import annotations

from typing import Any

import pytest

from tests.programs import results

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return results(4, "tests/kernels/logprob_ranks.py")


def test_every_case_ran(found: list[dict[str, Any]]) -> None:
    assert len({(f["backend"], f["ranks"], f["case"]) for f in found}) == len(found) == 3 * 2 * 3


def test_every_rank_has_the_same_bits(found: list[dict[str, Any]]) -> None:
    assert all(f["same_bits"] for f in found)


def test_values_and_gradients_are_those_of_one_rank(found: list[dict[str, Any]]) -> None:
    for f in found:
        assert f["value_error"] < 3e-6, f
        assert f["one_rank_error"] < 2e-6, f
        assert f["gradient_error"] < 5e-6, f


def test_one_gather(found: list[dict[str, Any]]) -> None:
    fused = [f for f in found if f["backend"] != "reference"]
    assert {f["gathers"] for f in fused} == {1}
