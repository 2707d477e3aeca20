"""A run under constant faults, continued whenever it ends, and an audit of what it has collected."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
import psutil

from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.types import Group

ROOT = Path(__file__).resolve().parents[2]
GROUPS, SIZE, WORKERS = 4, 4, 2
SUPERVISOR = "gigpo_mega.rollout.engines.supervisor"  # it ends a server whose run is gone
PATIENCE = 60.0  # seconds in which what a killed run has started must be gone
_EPISODE = re.compile(r"\[([0-9a-f]{12})\]$")


@dataclass(slots=True)
class Count:
    """What happened, besides faults of environments."""

    faults: Counter[str] = field(default_factory=Counter[str])
    starts: int = 0
    stops: list[str] = field(default_factory=list[str])  # last lines of runs that gave up by themselves
    orphans: int = 0
    growth: list[int] = field(default_factory=list[int])  # bytes that a process gained in its later half


class Training:
    """One run in `output`, started and continued by the same command."""

    def __init__(self, output: Path, arguments: Sequence[str], count: Count) -> None:
        self.command = [sys.executable, "-W", "ignore", "-m", "gigpo_mega", "train", *arguments,
                        "--output", str(output), "--resume", "auto"]  # fmt: skip
        self._log, self._groups = output.with_suffix(".log"), output / "groups"
        self._started = 0.0
        self._count = count
        self._memory: list[int] = []
        self.process: psutil.Popen | None = None

    def start(self) -> Self:
        """Start or continue the run."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self._log.open("a") as log:
            self.process = psutil.Popen(self.command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        self._started = time.time()
        self._count.starts += 1
        self._memory = []
        return self

    def watch(self) -> bool:
        """Whether the run is alive; notes its memory, or its last words if it gave up."""
        if self.process is None:
            return False
        if (status := self.process.poll()) is None:
            self._memory.append(self.process.memory_info().rss)
            return True
        if status:
            self._count.stops.append(self._log.read_text().splitlines()[-1])
        return False

    def samples(self) -> bool:
        """Whether a group was complete since it was started: an engine that dies before ends the run."""
        newest = max((path.stat().st_mtime for path in self._groups.glob("*.partial")), default=0.0)
        return newest > self._started

    def children(self, mark: str) -> list[psutil.Process]:
        """Processes that the run has started with `mark` among their arguments, the oldest first."""
        assert self.process is not None
        found = [child for child in self.process.children(recursive=True) if mark in _words(child)]
        return sorted(found, key=lambda child: child.pid)

    def end(self, number: int) -> None:
        """Send it a signal, and count what it leaves behind."""
        assert self.process is not None
        started = self.process.children(recursive=True)
        self.process.send_signal(number)
        self.process.wait(600)
        _, alive = psutil.wait_procs(started, timeout=PATIENCE)
        self._count.orphans += len(alive)
        for child in alive:
            child.kill()
        self.process = None
        later = self._memory[len(self._memory) // 2 :]
        if len(later) >= 20:
            self._count.growth.append(later[-1] - later[0])


def kill_engine(run: Training, random: Random) -> bool:
    """One server and its processes are gone."""
    for process in (engine := _engine(run, random)):
        process.kill()
    return bool(engine)


def stall_engine(run: Training, random: Random) -> bool:
    """One server stops in the middle of its work, and keeps its connections."""
    for process in (engine := _engine(run, random)):
        process.suspend()
    return bool(engine)


def kill_worker(run: Training, random: Random) -> bool:
    """A process with environments is gone."""
    workers = run.children("gigpo_mega.rollout.pools.worker")
    if workers:
        random.choice(workers).kill()
    return bool(workers)


def kill_run(run: Training, random: Random) -> bool:
    """The learner is gone, as in a power cut."""
    run.end(signal.SIGKILL)
    return True


def kill_everything(run: Training, random: Random) -> bool:
    """The machine is gone: the run, its engines and its workers at one moment."""
    assert run.process is not None
    for process in [run.process, *run.process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.end(signal.SIGKILL)
    return True


def stop_run(run: Training, random: Random) -> bool:
    """A scheduler takes the node away."""
    run.end(signal.SIGTERM)
    return True


FAULTS: dict[str, Callable[[Training, Random], bool]] = {
    "an engine is killed": kill_engine,
    "an engine stalls": stall_engine,
    "a worker is killed": kill_worker,
    "the run is killed": kill_run,
    "everything is killed": kill_everything,
    "the run is stopped": stop_run,
}
ENDINGS = {
    "the run is killed",
    "everything is killed",
    "the run is stopped",
}  # at any moment, start-up included


def soak(
    folder: Path,
    minutes: float,
    pause: float,
    hazard: float,
    seed: int,
    faults: Sequence[str] = tuple(FAULTS),
    rounds: int | None = None,
) -> dict[str, Any]:
    """Train for `minutes` with a fault every `pause` seconds on average, and audit the journal.

    Environments fail with probability `hazard` a call. Every fault of `faults` happens in turn, at random
    moments that `seed` decides; with `rounds` it ends two iterations after all have happened so often.
    """
    (folder / "ledger").mkdir(parents=True)
    count, random, output = Count(), Random(seed), folder / "run"
    run = Training(output, _arguments(folder, hazard), count).start()
    end, number, last = time.monotonic() + 60 * minutes, 0, 0
    due = time.monotonic() + random.expovariate(1 / pause)
    while time.monotonic() < end:
        time.sleep(1.0)
        done = len([*(output / "groups").glob("[0-9]*[0-9]")])
        if rounds is not None and number == rounds * len(faults):
            if done >= last + 2:
                break
            due = end
        if not run.watch():
            run.start()
        elif time.monotonic() > due and ((name := faults[number % len(faults)]) in ENDINGS or run.samples()):
            if FAULTS[name](run, random):
                count.faults[name] += 1
                number, last = number + 1, done
            due = time.monotonic() + random.expovariate(1 / pause)
    if run.watch():
        run.end(signal.SIGTERM)
    return _audit(output, folder / "ledger", count)


def _arguments(folder: Path, hazard: float) -> list[str]:
    settings = {
        "iterations": 100_000,
        "environment.name": "tools.bench.chaos:KIND",
        "environment.options": f"{{ledger: {folder / 'ledger'}, hazard: {hazard}}}",
        "environment.tasks.data": folder / "games",
        "environment.tasks.generate.games": "{train: 200, valid_unseen: 8}",
        "environment.max_steps": 8,
        "environment.workers": WORKERS,
        "environment.step_timeout": 5,
        "engine.replicas": 2,
        "engine.restarts": 100_000,
        "engine.stall_timeout": 15,
        "rollout.groups": GROUPS,
        "rollout.group_size": SIZE,
        "rollout.retries": 3,
        "batch.rows_per_update": 64,
        "checkpoint.every": 3,
        "checkpoint.keep": 100_000,  # so that few groups are forgotten before the audit
        "evaluation.episodes": 8,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [str(ROOT / "configs" / "quickstart.yaml"), *flags]


def _audit(output: Path, ledger: Path, count: Count) -> dict[str, Any]:
    """What the journal holds, against what the environments say; every entry of `wrong` should be 0."""
    journal, rows = Journal(output / "groups"), read_rows(output / "metrics.jsonl")
    notes = [line.split() for file in ledger.iterdir() for line in file.read_text().splitlines()]
    done = {episode for episode, event in notes if event == "done"}
    wrong, seen, groups = Counter[str](), Counter[str](), 0
    kept = sorted(int(path.name) for path in (output / "groups").glob("[0-9]*[0-9]"))
    for iteration in kept:
        found = journal.read(iteration)
        groups += len(found)
        wrong["iterations with too few or too many groups"] += len(found) != GROUPS
        for group in found:
            seen.update(_check(group, iteration, done, wrong))
    # Those before the first checkpoint are forgotten when it is saved.
    wrong["iterations missing between others"] = len(set(range(kept[0], kept[-1])) - set(kept)) if kept else 0
    wrong["episodes counted twice"] = sum(times - 1 for times in seen.values())
    wrong["iterations not recorded once"] = sum(row["iteration"] != i for i, row in enumerate(rows))
    wrong["processes left behind"] = count.orphans
    wrong["runs that gave up"] = len(count.stops)
    return {
        "iterations": len(rows),
        "groups": groups,
        "episodes": len(seen),
        "starts": count.starts,
        "faults": dict(count.faults),
        "environment_faults": dict(Counter(event for _, event in notes if event not in ("reset", "done"))),
        "episodes_begun": sum(event == "reset" for _, event in notes),
        "episode_retries": sum(row.get("rollout/episode_retries", 0.0) for row in rows),
        "groups_dropped": sum(row.get("rollout/groups_dropped", 0.0) for row in rows),
        "engine_moves": sum(row.get("engine/moves", 0.0) for row in rows),
        "largest_growth_mib": round(max(count.growth, default=0) / 2**20, 1),
        "stops": count.stops,
        "wrong": dict(wrong),
    }


def _check(group: Group, iteration: int, done: set[str], wrong: Counter[str]) -> list[str]:
    """The names of a group's episodes; counts in `wrong` what a group must not be."""
    wrong["groups that are not whole"] += len(group.trajectories) != SIZE
    names: list[str] = []
    for trajectory in group.trajectories:
        marks = [_EPISODE.search(step.observation) for step in trajectory.steps]
        found = {mark[1] if mark else "" for mark in marks}
        wrong["episodes of several tries"] += len(found) != 1
        versions = np.concatenate([step.versions for step in trajectory.steps])
        wrong["steps of other weights"] += bool((versions != iteration).any())
        wrong["episodes that no environment ended"] += trajectory.ended_by != "limit" and not found <= done
        names += found
    return names


def _engine(run: Training, random: Random) -> list[psutil.Process]:
    """The processes of one server, children first; none if there is no server yet."""
    servers = [child for child in run.children("--served-model-name") if SUPERVISOR not in _words(child)]
    servers = [server for server in servers if server.status() != psutil.STATUS_STOPPED]
    if not servers:
        return []
    chosen = random.choice(servers)
    return [*chosen.children(recursive=True), chosen]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
