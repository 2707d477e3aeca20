"""The adapter to ScienceWorld; skipped if the package or Java is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import psutil
import pytest

pytest.importorskip("scienceworld")
if shutil.which("java") is None:
    pytest.skip("ScienceWorld needs Java", allow_module_level=True)

from envs.adapters.scienceworld import KIND, ScienceWorldEnvironment
from envs.base import EnvError, Task

TASK = Task("find-non-living-thing/0", "find-non-living-thing", "find-non-living-thing 0")


@pytest.fixture(scope="module")
def environment() -> Iterator[ScienceWorldEnvironment]:
    environment = ScienceWorldEnvironment(max_steps=40)
    yield environment
    environment.close()


def test_splits_are_the_benchmarks() -> None:
    source = KIND.tasks(names=["find-non-living-thing"])
    sizes = {split: len(source.tasks(split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 150, "dev": 75, "test": 75}
    with pytest.raises(EnvError, match=r"no task 'fly'; known: .*boil"):
        KIND.tasks(names=["fly"]).tasks("train")


def test_gold_actions_win(environment: ScienceWorldEnvironment) -> None:
    first = environment.reset(TASK)
    assert "find a(n) non-living thing" in first.instruction
    environment._simulator.load("find-non-living-thing", 0, "easy", generateGoldPath=True)
    gold = environment._simulator.get_gold_action_sequence()
    assert environment.reset(TASK) == first
    played = []
    for command in gold:
        played.append(environment.step(command))
        if played[-1].done:
            break
    assert played[-1].success
    assert sum(t.reward for t in played) == pytest.approx(0.92)  # 0.08 are for being there
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("look around")


def test_fuzzed_commands_neither_raise_nor_leak(environment: ScienceWorldEnvironment) -> None:
    first = environment.reset(TASK)
    for said in ("", "a" * 100_000, "\ud800", "\n\n", "<action>" * 9999, "\0\x1b[2J", "看", "%s{0}"):
        assert not environment.step(said).valid
    assert environment.step("look around").valid
    assert environment.reset(TASK) == first


def test_close_ends_the_process_of_java() -> None:
    def started() -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True)) - before

    before = set(psutil.Process().children(recursive=True))
    environment = ScienceWorldEnvironment()
    (java,) = started()
    environment.close()
    psutil.wait_procs([java], timeout=10)
    assert started() == set()
    environment.close()
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("look around")


def test_a_task_that_is_not_there_is_one_line(environment: ScienceWorldEnvironment) -> None:
    with pytest.raises(EnvError, match="ScienceWorld: 'fly 0': Unknown taskName"):
        environment.reset(Task("fly/0", "fly", "fly 0"))
