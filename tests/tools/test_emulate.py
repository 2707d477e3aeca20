"""Ranks of 8 to 512 processes at true size: the plan against the learner's own code on fake tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from gigpo_mega.errors import UserError
from tests.programs import results
from tests.tools.emulated_ranks import SHALLOW
from tools.bench.fake_tensors import without_data
from tools.emulate import RANKS, RECORD, emulated

ROOT = Path(__file__).parents[2]
RECIPE = "configs/alfworld/qwen2.5-7b.yaml"
LAST_READ = "finalize_model_grads.finalize_model_grads"  # the denominator, after the last micro-batch
Ranks = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    """By name, what was emulated; in a process of its own, which has no process groups yet."""
    rows = results(1, "tests/tools/emulated_ranks.py")
    return {row.pop("name"): row for row in rows}


@pytest.mark.distributed
@pytest.mark.parametrize("name", [*RANKS, *SHALLOW])
def test_plan_agrees_with_an_emulated_rank(name: str, ranks: Ranks) -> None:
    found = ranks[name]
    assert found["held"] == found["planned_held"]
    assert 0 <= found["unplanned"] < 4096  # frequencies of rotation, Adam's counts of steps
    assert found["peak"] == pytest.approx(found["planned_peak"], rel=0.05)
    assert found["kept"] < found["peak"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", [*RANKS, *SHALLOW])
def test_forward_and_backward_passes_wait_for_no_number_of_the_device(name: str, ranks: Ranks) -> None:
    # To recompute attention alone, megatron keeps the type of its mask in a tensor, which is the host's.
    allowed = {LAST_READ, "attention.custom_forward"} if name == "attention recomputed" else {LAST_READ}
    assert set(ranks[name]["reads"]) == allowed


@pytest.mark.distributed
@pytest.mark.parametrize("name", RANKS)
def test_the_record_is_of_this_code(name: str, ranks: Ranks) -> None:
    recorded = json.loads(RECORD.read_text())["ranks"][name]
    assert recorded["arguments"] == RANKS[name]
    assert recorded["held"] == ranks[name]["held"]
    for what in ("kept", "peak", "planned_peak"):
        assert recorded[what] == pytest.approx(ranks[name][what], rel=0.01), what


def test_a_storage_counts_once_and_until_its_last_view_is_gone() -> None:
    with without_data(gpu=True) as meter:
        tensor = torch.zeros(1000)
        part = tensor.view(10, 100)[2]
        assert meter.now == 4000
        other = part + 1
        assert meter.now == 4400
        del tensor
        assert meter.now == 4400
        del part
        assert (meter.now, meter.peak) == (400, 4400)
    assert other.shape == (100,)


def test_a_number_that_the_host_reads_is_noted_with_its_reader() -> None:
    def reader(tensor: torch.Tensor) -> float:
        return float(tensor.sum())

    with without_data(gpu=True) as meter:
        assert reader(torch.zeros(3)) == 1.0
        assert torch.ones(2, dtype=torch.int64).tolist() == [1, 1]
    assert meter.reads["test_emulate.reader"] == 1
    assert sum(meter.reads.values()) == 3


def test_a_selection_whose_size_only_the_device_knows_is_refused() -> None:
    with without_data(gpu=True), pytest.raises(DynamicOutputShapeException):
        torch.zeros(3)[torch.zeros(3, dtype=torch.bool)]


def test_what_begins_a_backward_pass_is_what_forward_passes_kept() -> None:
    with without_data(gpu=True) as meter:
        weight = torch.zeros(100, requires_grad=True)
        loss = (weight * 2).exp().sum()  # keeps its result
        assert meter.now == 400 + 400 + 4
        loss.backward()
    assert meter.kept == 400 + 400 + 4 + 4  # and the gradient of the loss itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([RECIPE, "--rank", "8"], "--rank 8 is not below --world 8"),
     ([RECIPE, "--model.dtype", "float32"], r"model\.layers auto with model\.dtype float32 is not emulated"),
     ([RECIPE, "--model.layers", "te"], r"model\.layers te with model\.dtype bfloat16 is not emulated")],
)  # fmt: skip
def test_what_cannot_be_emulated_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    with pytest.raises(UserError, match=message):
        emulated(arguments)
