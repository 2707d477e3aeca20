"""Runs the jobs of an experiment, several at once if asked, and keeps what each of them took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import IO, Any, TextIO

from gigpo_mega.errors import UserError
from gigpo_mega.experiment.jobs import KINDS, Job, Kind
from gigpo_mega.telemetry.metrics import duration, read_rows
from gigpo_mega.telemetry.provenance import provenance

_SUPERVISOR = [sys.executable, "-m", "gigpo_mega.rollout.engines.supervisor"]
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Started:
    """A job under way, which dies with us: its supervisor reads a pipe that closes then."""

    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, job: Job) -> _Started:
        job.prepare()
        made = provenance("torch", "megatron-core", "sglang")
        _note(job.folder, {name: value for name, value in made.items() if name != "command"})
        log = _beside(job.folder, "log").open("ab")
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        # In a process group of its own: Ctrl-C reaches us alone, and we end it.
        process = subprocess.Popen(
            [*_SUPERVISOR, *job.command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
            env=environment,
        )
        return cls(job, process, log)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ended(self) -> bool:
        """Whether it has ended; keeps the seconds that it took and its status."""
        if (status := self.process.poll()) is None:
            return False
        self.close()
        _note(self.job.folder, {"seconds": round(self.seconds, 1), "status": status})
        return True

    def close(self) -> None:
        """Kill it unless it has ended; what it has done so far is on disk."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The provenance of every start of the job in `folder`; of those that ended, seconds and status too."""
    found: list[dict[str, Any]] = []
    for row in read_rows(_beside(folder, "attempts.jsonl")):
        if "commit" in row:
            found.append(row)
        else:
            found[-1] |= row
    return found


class Progress:
    """Lines of text for the jobs `todo`, `done` more being done: one for each job that starts or ends.

    They say the time left once jobs of every kind have shown what they take.
    """

    def __init__(self, todo: Sequence[Job], done: int, parallel: int, stream: TextIO) -> None:
        self._left: dict[Kind, int] = {kind: sum(job.kind == kind for job in todo) for kind in KINDS}
        self._count, self._parallel, self._stream = done + len(todo), parallel, stream
        self._took: dict[Kind, list[float]] = {}

    def started(self, job: Job) -> None:
        """Report a job that starts, and where its log is."""
        self._write(f"{job.name}: started, log in {_beside(job.folder, 'log')}")

    def ended(self, job: Job, seconds: float, said: str) -> None:
        """Report a job that has ended well."""
        self._left[job.kind] -= 1
        self._took.setdefault(job.kind, []).append(seconds)
        done = self._count - sum(self._left.values())
        line = f"[{done}/{self._count}] {job.name}: {said}, {seconds:.0f} s"
        if all(kind in self._took for kind, left in self._left.items() if left):
            work = sum(self._left[kind] * fmean(took) for kind, took in self._took.items())
            line += f"; {duration(work / self._parallel)} left"
        self._write(line)

    def failed(self, job: Job) -> None:
        """Report a job that has failed."""
        self._left[job.kind] -= 1
        self._write(f"{job.name}: failed, see {_beside(job.folder, 'log')}")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def run_jobs(
    jobs: Sequence[Job], parallel: int, finish: Callable[[Job], str], progress: Progress
) -> list[Job]:
    """Run `jobs`, at most `parallel` at once; returns those that failed or could not start.

    They start in their order, a job as soon as the one that it builds on is there. `finish` is told of each
    that ended well, and says what came out. A job that fails does not keep others from running. However we
    end, so do the jobs; what they had done is used when they run again.
    """
    waiting, started, failed = list(jobs), list[_Started](), list[Job]()
    try:
        while True:
            ready = [job for job in waiting if job.ready]
            for job in ready[: parallel - len(started)]:
                waiting.remove(job)
                started.append(_Started.start(job))
                progress.started(job)
            if not started:
                return failed + waiting
            for one in [one for one in started if one.ended()]:
                started.remove(one)
                if one.job.done:
                    progress.ended(one.job, one.seconds, finish(one.job))
                else:
                    failed.append(one.job)
                    progress.failed(one.job)
            time.sleep(_POLL_SECONDS)
    finally:
        for one in started:
            one.close()


def complain(failed: Sequence[Job]) -> None:
    """Raise UserError if any job has failed."""
    if failed:
        names = "; ".join(job.name for job in failed[:5])
        raise UserError(
            f"{len(failed)} jobs failed or wait for one that did ({names}); see the logs, run again"
        )


def _note(folder: Path, row: Mapping[str, Any]) -> None:
    with _beside(folder, "attempts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _beside(folder: Path, name: str) -> Path:
    """A file of a job next to its folder, which another try may clear."""
    return folder.parent / f"{folder.name}.{name}"
