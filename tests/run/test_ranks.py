"""Signals take effect between updates; ranks wait for a busy leader, not for one that is gone."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gigpo_mega.errors import UserError
from gigpo_mega.run.ranks import Signals, agree
from gigpo_mega.stack import Stack
from tests import preloaded
from tests.programs import variables
from tests.tiny import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def signals() -> Iterator[Signals]:
    found = Signals(cast(Any, SimpleNamespace(leader=True)))
    yield found
    found.restore()


def test_a_signal_waits_for_the_next_check(signals: Signals) -> None:
    signals.check()
    signal.raise_signal(signal.SIGTERM)  # outside of `interruptible`: an update goes on
    with pytest.raises(KeyboardInterrupt):
        signals.check()


def test_a_signal_ends_an_interruptible_block_at_once(signals: Signals) -> None:
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_came_earlier_ends_a_block_before_it_begins(signals: Signals) -> None:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        pytest.fail("the block began")


def launch(fault: str) -> list[subprocess.Popen[str]]:
    """Two ranks that wait 2 s in a collective and hear of a busy leader every second."""
    world = variables(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return [
        subprocess.Popen(
            [preloaded.python(), str(ROOT / "tests/run/waiting.py"), fault],
            env=world | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def test_ranks_wait_for_a_busy_leader_longer_than_a_collective_may_take() -> None:
    ranks = launch("busy")
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    found = [re.fullmatch(r"rank (\d) goes on: (\d+)\n", out) for out, _ in said]
    ((first, leader), (second, same)) = [match.groups() for match in found if match]
    assert (first, second, same) == ("0", "1", leader)


def test_nobody_leaves_a_meeting_before_the_last_has_come() -> None:
    ranks = launch("late")
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    came, left = zip(*(map(float, out.split()) for out, _ in said), strict=True)
    assert came[1] - came[0] > 0.2
    assert min(left) >= max(came)


@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_leader_that_is_gone_ends_the_others_with_one_line(fault: str) -> None:
    leader, other = launch(fault)
    try:
        out, said = other.communicate(timeout=60)
    finally:
        leader.kill()
        leader.communicate()
    assert (out, other.returncode) == ("", 2)
    assert re.fullmatch(r"\[rank 1\] error: another rank of this run is gone \(.*\n", said)


CPU, CUDA = Stack("cpu", "no driver"), Stack("cuda", "8 GPU(s)", 8)


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ([(CPU, False)], None),
        ([(CUDA, True)], None),
        ([(CPU, False)] * 3, None),
        ([(CUDA, True)] * 3, None),
        ([(CPU, True)], r"rank 0 has the stack cpu \(no driver\), but its torch has found GPUs"),
        ([(CUDA, True), (CUDA, False)], r"rank 1 has the stack cuda .*, but its torch cannot use GPUs"),
        (
            [(CUDA, True), (CUDA, True), (CPU, False)],
            r"rank 0 has the stack cuda \(8 GPU\(s\)\), rank 2 cpu \(no driver\); set up all nodes alike",
        ),
    ],
)
def test_ranks_that_took_different_stacks_are_refused(
    taken: list[tuple[Stack, bool]], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_as([(*of, "policy") for of in taken], said, monkeypatch)


def test_ranks_that_have_different_revisions_of_a_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = [(CPU, False, name) for name in ("c0ffee", "c0ffee", "decaf")]
    refused_as(revisions[:2], None, monkeypatch)
    refused_as(revisions, "rank 0 has c0ffee of it and rank 2 decaf; share HF_HOME", monkeypatch)


def refused_as(
    taken: list[tuple[Stack, bool, str]], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let ranks take stack, GPUs and the model's folder so, and compare what rank 0 then says."""

    def gather(found: list[Any], own: tuple[Stack, bool, str]) -> None:
        assert own == taken[0]
        found[:] = taken

    monkeypatch.setattr("gigpo_mega.run.ranks.dist.all_gather_object", gather)
    monkeypatch.setattr("gigpo_mega.run.ranks.torch.cuda.is_available", lambda: taken[0][1])
    layout: Any = SimpleNamespace(world=len(taken))
    model = Path("cache", taken[0][2])
    if said is None:
        agree(layout, taken[0][0], model)
    else:
        with pytest.raises(UserError, match=said):
            agree(layout, taken[0][0], model)
