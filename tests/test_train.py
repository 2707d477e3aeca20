"""The whole loop with the real engine: killed and resumed, stopped by signal, on two processes, misled.

Runs that are compared are fed the groups of one uninterrupted run, whatever the engine samples.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.trace.recorded import RecordedRun
from tests.programs import TORCHRUN, run_python

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
FAULTY = str(ROOT / "tests/faulty_train.py")
ITERATIONS, KILLED = 3, 1
LEARNERS = shutil.ignore_patterns("learner.npy")  # what runs write beside the groups that they are fed
NOTHING: Mapping[str, str] = MappingProxyType({})


def run(point: str, output: Path, arguments: Sequence[str], *more: str) -> int:
    """Exit status of a run into `output` that is killed at `point` of iteration KILLED."""
    done = run_python(
        FAULTY, point, str(KILLED), *arguments, "--output", str(output), "--resume", "auto", *more
    )
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


def launch_two(fault: str, output: Path, arguments: Sequence[str], more: Mapping[str, str] = NOTHING) -> str:
    """What two processes that end with status 0 say on stderr; they meet `fault` in iteration KILLED."""
    done = run_python(
        *TORCHRUN, "2", FAULTY, fault, str(KILLED), *arguments,
        "--output", str(output), "--checkpoint.every", "100", "--resume", "auto", more=more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert run("never", output, arguments) == 0
    return output


def same_policy(one: Path, other: Path) -> bool:
    left, right = (load_file(run / "policy" / "model.safetensors") for run in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_tells_how_much_the_prefix_cache_saved(uninterrupted: Path) -> None:
    rows = read_rows(uninterrupted / "metrics.jsonl")
    assert all(0 < row["rollout/cached_share"] < 1 for row in rows)


def test_a_replay_without_engine_and_environment_ends_with_the_weights_of_the_run(
    uninterrupted: Path, tmp_path: Path
) -> None:
    output, before = tmp_path / "again", group_files(uninterrupted)
    done = run_python(
        "-m", "gigpo_mega", "replay", str(uninterrupted), "--output", str(output),
        "--engine.url", "http://127.0.0.1:1", "--environment.tasks.data", str(tmp_path / "nowhere"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_policy(output, uninterrupted)
    ours, theirs = (read_rows(folder / "metrics.jsonl") for folder in (output, uninterrupted))
    assert [row["loss/total"] for row in ours] == [row["loss/total"] for row in theirs]
    assert group_files(uninterrupted) == before
    assert learners(output)[-1] == learners(uninterrupted)[-1] != b""  # a replay keeps no other groups
    assert not list(output.glob("evaluation_*"))


def test_a_trace_has_the_advantages_that_the_run_recorded(uninterrupted: Path) -> None:
    recorded = RecordedRun(uninterrupted)
    rows = read_rows(uninterrupted / "episodes.jsonl")
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))  # one of each iteration's groups
    for row in rows:
        groups = recorded.groups(row["iteration"])
        (number,) = [number for number, group in groups.items() if group.task.id == row["task"]]
        steps = [s for steps in recorded.traced(row["iteration"], number).episodes for s in steps]
        ours = {(s.step.observation, s.step.action, *(round(v, 4) for v in (s.advantages or ())[:2]))
                for s in steps}  # fmt: skip
        theirs = {(s["observation"], s["action"], s["episode"], s["step"])
                  for episode in row["episodes"] for s in episode["steps"]}  # fmt: skip
        assert ours == theirs
        assert all((s.step.versions == row["iteration"]).all() for s in steps)


def learners(output: Path) -> list[bytes]:
    """The learner's log-probs of every iteration."""
    kept = (Journal(output / "groups").learner(iteration) for iteration in range(ITERATIONS))
    return [b"" if logprobs is None else logprobs.tobytes() for logprobs in kept]


def test_a_trace_has_the_learners_logprobs_of_every_token_as_a_replay_finds_them(
    uninterrupted: Path, twos: Twos, tmp_path: Path
) -> None:
    recorded = RecordedRun(uninterrupted)
    rows = read_rows(uninterrupted / "metrics.jsonl")
    for iteration, row in enumerate(rows):
        groups = [recorded.traced(iteration, number) for number in recorded.groups(iteration)]
        steps = [step for group in groups for steps in group.episodes for step in steps]
        gaps = np.concatenate([abs(step.apart) for step in steps if step.apart is not None])
        assert len(gaps) == sum(len(step.tokens) for step in steps)
        assert 0 < gaps.max() < 1e-5
        assert gaps.max() >= row["engine/logprob_gap_max"] * (1 - 1e-6)  # of the first update's tokens
    runs = (learners(uninterrupted), learners(twos(1)))
    gaps = [
        abs(np.frombuffer(one, np.float32) - np.frombuffer(two, np.float32))
        for one, two in zip(*runs, strict=True)
    ]
    assert gaps[0].max() < 2e-6  # the same weights; Adam then magnifies how each layout rounds a gradient
    assert max(gap.mean() for gap in gaps) < 1e-5


def test_groups_are_collected_without_a_learner_and_a_collection_goes_on(
    arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "collected"
    command = ["-m", "gigpo_mega", "rollout"]
    done = run_python(*command, *arguments, "--output", str(output), "--iterations", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    first = group_files(output)
    assert sorted(first) == ["000000/000000.npz", "000000/000001.npz"]
    done = run_python(*command, *arguments, "--output", str(output), "--iterations", "2", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"iteration 1: 2 groups, \d of 8 episodes succeeded\n", done.stdout)
    both = group_files(output)
    assert len(both) == 4
    assert {name: both[name] for name in first} == first


@pytest.mark.parametrize(("point", "every"), [("update", 2), ("checkpoint", 1), ("push", 1)])
def test_killed_run_resumes_bit_equal(
    point: str, every: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted / "groups", output / "groups", ignore=LEARNERS)
    options = ["--checkpoint.every", str(every)]
    assert run(point, output, arguments, *options) == -9
    assert run("never", output, arguments, *options, "--resume") == 0
    assert same_policy(output, uninterrupted)
    assert learners(output) == learners(uninterrupted)
    assert [row["iteration"] for row in read_rows(output / "metrics.jsonl")] == list(range(ITERATIONS))


def test_two_rollout_workers_play_for_a_run(arguments: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    more = ["--rollout.workers", "2", "--environment.workers", "2", "--telemetry.timeline", "true"]
    assert run("never", output, arguments, *more) == 0
    rows = read_rows(output / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    assert max(row["engine/logprob_gap_mean"] for row in rows) < 1e-5
    groups = [Journal(output / "groups").read(iteration) for iteration in range(ITERATIONS)]
    assert [[len(group.trajectories) for group in played] for played in groups] == [[4, 4]] * ITERATIONS
    steps = [sum(len(t.steps) for g in played for t in g.trajectories) for played in groups]
    assert [row["rollout/steps"] for row in rows] == steps
    assert [row["engine/requests_max"] for row in rows] == steps
    names = [path.name for path in sorted((output / "timeline").iterdir())]
    assert names == [f"{iteration:06d}.json.gz" for iteration in range(ITERATIONS)]
    with gzip.open(output / "timeline" / names[1]) as file:
        events = json.load(file)["traceEvents"]
    tracks = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    environments = {f"worker {number}: environments 0" for number in (0, 1)}
    assert set(tracks.values()) == {"learner", "engine 0"} | environments
    spans = [event for event in events if event["ph"] == "X"]
    assert sum(tracks[span["pid"]] == "engine 0" for span in spans) == steps[1]
    stages = {span["name"]: span for span in spans if tracks[span["pid"]] == "learner"}
    assert stages.keys() == {"evaluate", "push", "rollout", "advantage", "update"}
    assert stages["update"]["dur"] == pytest.approx(1e6 * rows[1]["time/update"], abs=1)
    during = [span["ts"] for span in spans if tracks[span["pid"]] != "learner"]
    assert stages["rollout"]["ts"] < min(during) < max(during) < stages["advantage"]["ts"]


def test_states_after_steps_cispo_and_importance_weights_work_in_a_whole_run(
    uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    """The states come from groups on disk; the engine has the learner's weights, so the ratio is about 1."""
    output = tmp_path / "run"
    shutil.copytree(uninterrupted / "groups", output / "groups")
    options = ["--advantage.estimator", "graphgpo", "--objective.surrogate", "cispo",
               "--objective.rollout_is", "sequence", "--iterations", "1",
               "--evaluation.before", "false"]  # fmt: skip
    assert run("never", output, arguments, *options) == 0
    assert [file.name for file in output.glob("evaluation_*.json")] == ["evaluation_000001.json"]
    [row] = read_rows(output / "metrics.jsonl")
    assert row["anchor/mean_size"] > 1
    assert row["loss/rollout_is"] == pytest.approx(1.0, abs=1e-4)
    assert row["loss/rollout_is_truncated"] == 0


def group_files(output: Path) -> dict[str, bytes]:
    """All groups in the journal of a run, by their place in complete iterations."""
    files = (output / "groups").rglob("*.npz")
    return {f"{path.parent.name.removesuffix('.partial')}/{path.name}": path.read_bytes() for path in files}


@pytest.mark.parametrize(("point", "groups"), [("journal", 0), ("group", 1)])
def test_kill_while_sampling_loses_only_unfinished_groups(
    point: str, groups: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted / "groups" / "000000", output / "groups" / "000000")
    assert run(point, output, arguments) == -9
    kept = group_files(output)
    assert len(kept) == 2 + groups
    assert not (output / "groups" / "000001").exists()
    assert run("never", output, arguments, "--resume") == 0
    whole = group_files(output)
    assert len(whole) == 2 * ITERATIONS
    assert {name: whole[name] for name in kept} == kept
    first, second, third = read_rows(output / "metrics.jsonl")
    assert first["loss/total"] == read_rows(uninterrupted / "metrics.jsonl")[0]["loss/total"]
    assert max(row["engine/logprob_gap_mean"] for row in (first, second, third)) < 1e-5


@dataclass(frozen=True)
class Twos:
    """Runs of two processes on the groups of `uninterrupted`, each made once."""

    uninterrupted: Path
    arguments: Sequence[str]
    folder: Path

    def __call__(self, tensor: int) -> Path:
        """The run with this tensor parallelism; beside it is "counted", by rank what was estimated."""
        output = self.folder / str(tensor) / "run"
        if not output.exists():
            shutil.copytree(self.uninterrupted / "groups", output / "groups", ignore=LEARNERS)
            estimator = ("--advantage.estimator", "tests.counted_estimator:gigpo")
            options = (*self.arguments, "--parallel.tensor", str(tensor), *estimator)
            launch_two("never", output, options, more={"COUNTED": str(output.with_name("counted"))})
        return output


@pytest.fixture(scope="module")
def twos(uninterrupted: Path, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Twos:
    return Twos(uninterrupted, arguments, tmp_path_factory.mktemp("twos"))


@pytest.mark.parametrize("tensor", [1, 2])
def test_two_processes_train_as_one_and_estimate_once(tensor: int, uninterrupted: Path, twos: Twos) -> None:
    output = twos(tensor)
    ours, theirs = (read_rows(folder / "metrics.jsonl") for folder in (output, uninterrupted))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], abs=1e-6)
        assert one["optimizer/grad_norm"] == pytest.approx(other["optimizer/grad_norm"], abs=1e-5)
        assert one["engine/logprob_gap_mean"] < 1e-5
    counted = output.with_name("counted").read_text()
    assert counted.split() == ["0"] * ITERATIONS  # the rank that estimated


def test_two_processes_stopped_during_an_update_save_and_resume_bit_equal(
    uninterrupted: Path, twos: Twos, arguments: list[str], tmp_path: Path
) -> None:
    """Every rank gets SIGTERM between two optimizer updates, as schedulers send it."""
    stopped = tmp_path / "stopped"
    shutil.copytree(uninterrupted / "groups", stopped / "groups")
    said = launch_two("stop in update", stopped, arguments)
    assert "stopped by SIGTERM; the same command with --resume continues" in said
    assert [path.name for path in (stopped / "checkpoints").glob("*")] == [f"iteration_{KILLED + 1:06d}"]
    assert len(read_rows(stopped / "metrics.jsonl")) == KILLED + 1
    launch_two("never", stopped, arguments)
    assert same_policy(stopped, twos(1))


@pytest.mark.parametrize(
    ("fault", "status", "stopped_at"), [("stop", 0, 0), ("stop", 0, 2), ("interrupt", 130, 2)]
)
def test_a_stopped_run_saves_and_resumes(
    fault: str, status: int, stopped_at: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    (output / "groups").mkdir(parents=True)
    for iteration in range(stopped_at):  # it is stopped while it samples the iteration after these
        shutil.copytree(uninterrupted / "groups" / f"{iteration:06d}", output / "groups" / f"{iteration:06d}")
    lines = ["--checkpoint.every", "100", "--output", str(output), "--resume", "auto"]
    stopped = run_python(FAULTY, fault, str(stopped_at), *arguments, *lines)
    assert stopped.returncode == status, stopped.stderr[-3000:]
    saved = [path.name for path in (output / "checkpoints").glob("*")]
    assert saved == ([f"iteration_{stopped_at:06d}"] if stopped_at else [])
    shutil.copytree(uninterrupted / "groups", output / "groups", dirs_exist_ok=True)
    assert run("never", output, arguments, "--checkpoint.every", "100", "--resume") == 0
    assert same_policy(output, uninterrupted)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("skipped push", "a push was lost"), ("corrupted weights", r"weights\.max_logprob_gap")],
)
def test_wrong_weights_in_the_engine_are_caught(
    fault: str, message: str, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    done = run_python(FAULTY, fault, "1", *arguments, "--output", str(output))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (output / "groups" / "000001").exists()
    assert run("never", output, arguments, "--resume") == 0
    assert len(read_rows(output / "metrics.jsonl")) == ITERATIONS
