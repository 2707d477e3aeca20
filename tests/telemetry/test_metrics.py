"""What a run writes down, and what a resumed run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.base import Task
from gigpo_mega.telemetry.loggers import TensorBoard
from gigpo_mega.telemetry.metrics import (
    MetricsWriter,
    drop_from,
    duration,
    peak_memory,
    print_summary,
    read_rows,
    record_episodes,
    summary,
)
from gigpo_mega.types import Advantages, Group, Step, Trajectory


def write(folder: Path, iterations: range, resume_at: int = 0) -> None:
    writer = MetricsWriter(folder, [TensorBoard(folder, resume_at)], resume_at)
    for iteration in iterations:
        writer.write(iteration, {"rollout/success": iteration / 10, "loss/kl": 1e-9})
    writer.close()


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path: Path):
    writer = MetricsWriter(tmp_path)
    writer.write(0, {"rollout/success": 0.25, "loss/kl": 1e-9})
    expected = {"iteration": 0, "rollout/success": 0.25, "loss/kl": 1e-9}
    assert read_rows(tmp_path / "metrics.jsonl") == [expected]
    writer.close()


def test_resume_drops_the_rows_it_will_write_again(tmp_path: Path):
    write(tmp_path, range(4))
    write(tmp_path, range(2, 5), resume_at=2)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["rollout/success"] for row in rows] == [0, 0.1, 0.2, 0.3, 0.4]


def test_tensorboard_has_every_iteration_once_after_a_resume(tmp_path: Path):
    write(tmp_path, range(4))
    write(tmp_path, range(2, 5), resume_at=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("rollout/success")
    assert [event.step for event in scalars] == [0, 1, 2, 3, 4]
    assert [event.value for event in scalars] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0, "a": 1}\n{"iteration": 1, "a"')
    assert read_rows(path) == [{"iteration": 0, "a": 1}]
    drop_from(path, 5)
    assert path.read_text() == '{"iteration": 0, "a": 1}\n'


def test_half_a_character_of_a_killed_process_is_dropped(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes('{"iteration": 0}\n{"iteration": 1, "task": "é'.encode()[:-1])
    assert read_rows(path) == [{"iteration": 0}]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_marks_that_python_takes_for_line_ends_are_read_back(mark: str, tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    record_episodes(path, 0, [group(f"a{mark}b", [True, False])], advantages([0] * 4))
    (record,) = read_rows(path)
    assert record["task"] == f"a{mark}b"
    drop_from(path, 1)
    assert read_rows(path) == [record]


def test_summary_line_names_what_is_there():
    line = summary("7/9", {
        "rollout/success": 0.4218, "rollout/score": 4.2, "rollout/length": 18.25,
        "advantage/episode_abs": 0.81, "advantage/step_abs": 0.44, "loss/kl": 0.00123,
        "engine/logprob_gap_mean": 3.2e-7, "rollout/tokens_per_second": 1500,
        "time/rollout": 6.0, "time/update": 4.5, "time/total": 11.0,
    }, left=22.0)
    assert line == ("[7/9] success 42.2%  reward 4.20  length 18.2  |A_E| 0.81  |A_S| 0.44  kl 0.0012  "
                    "gap 3.2e-07  1500 tok/s  rollout 6.0s update 4.5s total 11.0s  22 s left")


def test_a_summary_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]):
    print_summary("1", {"rollout/success": 0.1, "loss/kl": 1e-9})
    assert capsys.readouterr().out == "[1] success 10.0%  kl 0.0000\n"


def step(action: str, valid: bool = True) -> Step:
    none = np.zeros(1, dtype=np.int32)
    return Step(none, none, none.astype(np.float32), 0.5, valid, bytes(16), none, "a room", action)


def group(name: str, outcomes: list[bool]) -> Group:
    task = Task(name, "pick", "")
    return Group(task, tuple(
        Trajectory(task, (step(f"{name}{i}a"), step(f"{name}{i}b", valid=False)), float(won), won,
                   "success" if won else "limit")
        for i, won in enumerate(outcomes)
    ))


def advantages(step_group: list[int]) -> Advantages:
    rows = np.arange(len(step_group), dtype=np.float32)
    return Advantages(rows, rows, -rows, np.array(step_group, dtype=np.int64))


def test_recorded_group_is_the_one_with_mixed_outcomes(tmp_path: Path):
    groups = [group("x", [True, True]), group("y", [False, True])]
    path = tmp_path / "episodes.jsonl"
    record_episodes(path, 3, groups, advantages([0, 1, 0, 1, 2, 3, 2, 4]))
    (record,) = read_rows(path)
    assert (record["iteration"], record["task"], record["kind"]) == (3, "y", "pick")
    won, lost = record["episodes"]
    assert (won["success"], lost["success"], lost["ended_by"]) == (True, False, "limit")
    assert lost["steps"][0] == {"observation": "a room", "action": "y0a", "reward": 0.5, "valid": True,
                                "episode": 4.0, "step": -4.0, "group": 2, "shared": 1}
    assert [(s["episode"], s["group"], s["shared"]) for s in won["steps"]] == [(6.0, 2, 1), (7.0, 4, 0)]
    assert not won["steps"][1]["valid"]


def test_between_equal_outcomes_the_group_that_shares_most_is_recorded(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    record_episodes(path, 0, [group("x", [True, False]), group("y", [True, False])],
                    advantages([0, 1, 2, 3, 4, 4, 4, 5]))
    assert read_rows(path)[0]["task"] == "y"


def test_estimators_without_step_level_are_recorded_too(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    record_episodes(path, 0, [group("x", [True, False])], advantages([-1, -1, -1, -1]))
    steps = read_rows(path)[0]["episodes"][0]["steps"]
    assert [(s["group"], s["shared"]) for s in steps] == [(-1, 0), (-1, 0)]


def test_no_groups_record_nothing(tmp_path: Path):
    record_episodes(tmp_path / "episodes.jsonl", 0, [], advantages([]))
    assert not (tmp_path / "episodes.jsonl").exists()


def test_big_group_is_shortened_to_successes_and_failures(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    record_episodes(path, 0, [group("x", [True] * 5 + [False] * 3)], advantages([0] * 16))
    assert [e["success"] for e in read_rows(path)[0]["episodes"]] == [True, False, True, False]


def test_resume_drops_recorded_episodes_too(tmp_path: Path):
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps({"iteration": i}) + "\n" for i in range(4)))
    MetricsWriter(tmp_path, resume_at=2).close()
    assert [row["iteration"] for row in read_rows(tmp_path / "episodes.jsonl")] == [0, 1]


@pytest.mark.parametrize(("seconds", "said"), [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (240, "4 min"), (3599, "1 h 0 min"), (4800, "1 h 20 min"),
])  # fmt: skip
def test_a_duration_in_words(seconds: float, said: str):
    assert duration(seconds) == said


def test_the_peak_of_main_memory_is_the_kernels():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = int(lines["VmHWM"].split()[0])
    assert peak_memory(cuda=False) == pytest.approx(kib / 2**20, rel=0.02)
