"""Plausible wrong lines, one file of them for each part of an iteration, and whether the tests notice."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("envs", "gigpo_mega", "kernels", "tools", "tests")
_LIMIT = 600.0  # seconds of one run of pytest; a wrong line may loop for ever
_SHOW_IMPORTS = "import envs, gigpo_mega, kernels; print(*(m.__file__ for m in (envs, gigpo_mega, kernels)))"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One wrong line that somebody could write."""

    part: str  # of an iteration: the name of the file that lists it
    name: str  # what is wrong
    file: str  # where, relative to the checkout
    old: str  # occurs exactly once in `file`
    new: str
    why: str  # it is plausible, or hard to see
    tests: tuple[str, ...]  # what must notice: arguments of pytest


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pytest said about a tree."""

    killed_by: str | None  # the first test that failed; None: all passed
    seconds: float  # CPU time, which other work on the machine changes little


def load_mutations(folder: Path = Path(__file__).parent) -> list[Mutation]:
    """The mutations of every YAML file in `folder`; a file's `tests` hold if a mutation names none."""
    found: list[Mutation] = []
    for path in sorted(folder.glob("*.yaml")):
        section: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        for entry in section["mutations"]:
            tests = tuple(entry.pop("tests", section["tests"]))
            found.append(Mutation(part=path.stem, tests=tests, **entry))
    return found


class Tree:
    """A copy of the checkout's Python packages and tests in `folder`; the checkout itself is never edited.

    Raises RuntimeError if Python would not import the packages from there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in _COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        # PYTHONPATH comes before the editable installation. No bytecode: it is told apart by the second of
        # the source's last change, and a mutation may come and go in one.
        self._environment = os.environ | {
            "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        shown = self._run("-c", _SHOW_IMPORTS).stdout.split()
        if not shown or not all(Path(path).is_relative_to(folder.resolve()) for path in shown):
            raise RuntimeError(f"the packages are not imported from the copy in {folder}: {shown}")

    def test(self, tests: Sequence[str]) -> Outcome:
        """Run `tests` until one fails; RuntimeError if pytest could not."""
        start = _cpu_seconds()
        options = ("-o", "addopts=", "-p", "no:cacheprovider", "-m", "not engine and not gpu", "-qxrfE")
        try:
            done = self._run("-m", "pytest", *options, *tests)
        except subprocess.TimeoutExpired:
            return Outcome(f"the limit of {_LIMIT:.0f} s", _cpu_seconds() - start)
        if done.returncode not in (0, 1):
            command = f"pytest {' '.join(tests)}"
            raise RuntimeError(f"{command} ended with status {done.returncode}:\n{done.stdout}")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        assert done.returncode == 0 or failed, done.stdout
        return Outcome(failed[1] if done.returncode and failed else None, _cpu_seconds() - start)

    def mutate(self, mutation: Mutation) -> Outcome:
        """Run a mutation's tests with its line in place of the right one."""
        path = self._folder / mutation.file
        right = path.read_text(encoding="utf-8")
        path.write_text(mutated(right, mutation), encoding="utf-8")
        try:
            return self.test(mutation.tests)
        finally:
            path.write_text(right, encoding="utf-8")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=self._folder, env=self._environment, capture_output=True,
            text=True, timeout=_LIMIT, check=False,
        )  # fmt: skip


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def mutated(source: str, mutation: Mutation) -> str:
    """`source` with the wrong line; ValueError unless the right one occurs exactly once."""
    if (count := source.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.name!r}: {mutation.old!r} occurs {count} times in {mutation.file}")
    return source.replace(mutation.old, mutation.new)


def page(record: dict[str, Any]) -> str:
    """docs/mutations.md of a record."""
    rows: list[dict[str, Any]] = record["mutations"]
    killed = sum(row["killed_by"] is not None for row in rows)
    lines = [
        "# Mutations",
        "",
        "Each row is one wrong line that somebody could write, put into a copy of the code, and the first",
        "test that fails because of it. `python tools/mutate.py` runs all of them and writes this page; the",
        "lists are in `tools/mutations/`.",
        "",
        f"{killed} of {len(rows)} are noticed. Recorded at commit `{record['commit'][:7]}` on",
        f"{record['device']}.",
    ]
    for later in record.get("again", []):  # oldest first
        lines += ["", f"{later['mutations']} of them, new or with changed lines or tests, at commit",
                  f"`{later['commit'][:7]}` on {later['device']}."]  # fmt: skip
    for part in dict.fromkeys(row["part"] for row in rows):
        lines += ["", f"## {part.capitalize()}", ""]
        lines += ["| wrong | line | noticed by | CPU s |", "|---|---|---|---|"]
        lines += [_line(row) for row in rows if row["part"] == part]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    def code(text: str) -> str:
        return f"`{' '.join(text.split())}`".replace("|", "\\|")

    name = f"{row['name']} ({row['why']})"
    where = f"`{row['file']}`: {code(row['old'])} → {code(row['new'])}"
    by = code(row["killed_by"].removeprefix("tests/")) if row["killed_by"] else "**nothing**"
    return f"| {name} | {where} | {by} | {row['seconds']:.0f} |"
