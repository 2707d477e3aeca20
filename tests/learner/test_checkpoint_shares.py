"""Checkpoints at four data-parallel ranks: what each allocates, reads, writes and hashes is its share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core import dist_checkpointing

from gigpo_mega.config import ParallelConfig
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.optimizer_state import boxes
from gigpo_mega.storage.manifest import LEARNER, STATE
from tests.programs import results
from tests.tiny import write_policy

OTHERS = ["copy:tensor=2:pipeline=2", "copy:tensor=2:overlap_grad_reduce=true"]
VOCAB, HIDDEN = 4096, 128
LARGEST = 4 * VOCAB * HIDDEN  # bytes of the embedding, the largest tensor
SLACK = 2**18  # descriptions of tensors
Ranks = list[dict[str, Any]]
distributed = pytest.mark.distributed


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_boxes_are_the_elements_of_a_range_in_their_order(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    start = data.draw(st.integers(0, count))
    end = data.draw(st.integers(start, count))
    numbered, found = torch.arange(count).view(shape), []
    pieces = list(boxes(tuple(shape), start, end))
    for offset, size in pieces:
        piece = numbered[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
        assert piece.shape == size
        found += piece.flatten().tolist()
    assert found == list(range(start, end))
    assert len(pieces) <= 2 * len(shape) - 1


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def four(output: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    policy = write_policy(
        tmp_path_factory.mktemp("policy"), hidden_size=HIDDEN, vocab_size=VOCAB, intermediate_size=512,
        num_hidden_layers=4,
    )  # fmt: skip
    words = (str(policy), str(output), "write", "copy", *OTHERS)
    rows = results(4, "tests/learner/checkpoint_ranks.py", *words)
    return {row["case"]: row["ranks"] for row in rows}


def share(rank: dict[str, Any]) -> int:
    """Bytes of a rank's part of the optimizer's state: an fp32 copy and two moments."""
    return 12 * rank["parameters"] // rank["ranks"]


@distributed
@pytest.mark.parametrize("case", ["write", "copy"])
def test_a_rank_saves_its_share_and_gathers_nothing(case: str, four: dict[str, Ranks]) -> None:
    """Every rank used to gather all of it, seven times as much, and one rank to write it."""
    for rank in four[case]:
        mine = share(rank) + 4 * rank["parameters"] // rank["ranks"]  # weights, too, are written once
        assert rank["peak"]["save"] < mine + LARGEST + SLACK
        assert mine - LARGEST < rank["written"] < mine + LARGEST + SLACK


@distributed
def test_a_rank_loads_its_share_and_its_weights(four: dict[str, Ranks]) -> None:
    for rank in four["copy"]:
        assert rank["peak"]["load"] < share(rank) + LARGEST + SLACK
        assert rank["read"] < share(rank) + 4 * rank["parameters"] + LARGEST + SLACK


@distributed
def test_a_rank_hashes_its_share_of_the_files(four: dict[str, Ranks], output: Path) -> None:
    files = json.loads((output / "written" / "iteration_000001" / STATE).read_text())["files"]
    sizes = [file["size"] for file in files.values()]
    hashed = [rank["hashed"] for rank in four["copy"]]
    assert sum(hashed) == sum(sizes)
    assert max(hashed) <= sum(sizes) / 4 + max(sizes)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    everything = dist_checkpointing.load_plain_tensors(str(folder))
    return {name: value for name, value in everything.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def alone() -> Iterator[None]:
    parallel.initialize(ParallelConfig(), seed=0)
    yield
    parallel.shutdown()


@distributed
@pytest.mark.parametrize("case", ["copy", *OTHERS])
def test_another_layout_loads_the_same_bits(
    case: str, four: dict[str, Ranks], output: Path, alone: None
) -> None:
    """What it saves in turn has every weight, fp32 copy and moment as they were written."""
    written, copied = (tensors(output / name / "iteration_000001" / LEARNER) for name in ("written", case))
    assert written.keys() == copied.keys()
    assert len(written) == 4 * len([name for name in written if not name.startswith("optimizer.")])
    for name, tensor in written.items():
        assert torch.equal(tensor, copied[name]), name
