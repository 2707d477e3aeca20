"""The learner's head: an update without a [T, V] tensor, and the right gradient in megatron's buffers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.programs import results

CASES = [(True, True), (False, False), (False, True)]
Updates = dict[tuple[str, bool, bool], dict[str, Any]]


@pytest.fixture(scope="module")
def updates() -> Updates:
    rows = results(1, "tests/learner/head_updates.py")
    return {(row["backend"], row["tied"], row["overlap"]): row for row in rows}


@pytest.mark.parametrize(("tied", "overlap"), CASES)
def test_an_update_never_holds_the_logits(updates: Updates, tied: bool, overlap: bool) -> None:
    """256 tokens x 8,192 columns are 8 MiB: the reference holds several, blocks a part of one."""
    logits, fused = updates["reference", tied, False], updates["chunked", tied, overlap]
    assert logits["logits"] == 256 * 8192 * 4
    assert logits["peak"] > 4 * logits["logits"]
    assert fused["peak"] < 0.75 * fused["logits"]


@pytest.mark.parametrize(("tied", "overlap"), CASES)
def test_main_grad_gets_the_gradient_that_autograd_would(updates: Updates, tied: bool, overlap: bool) -> None:
    """Tied embeddings add their own; a hook that overlaps the reduction is satisfied."""
    logits, fused = updates["reference", tied, False], updates["chunked", tied, overlap]
    assert logits["grad_norm"] > 0.01
    assert fused["grad_norm"] == pytest.approx(logits["grad_norm"], rel=1e-5)
    assert fused["weights"] == pytest.approx(logits["weights"], rel=1e-7)
