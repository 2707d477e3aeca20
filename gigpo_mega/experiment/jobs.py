"""The processes of an experiment in their order: all of a seed before the next seed begins."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gigpo_mega.errors import UserError
from gigpo_mega.experiment.spec import COLDSTART, Spec

PROGRAM = (sys.executable, "-m", "gigpo_mega")
Kind = Literal["coldstart", "panel", "run"]
KINDS: tuple[Kind, ...] = ("coldstart", "panel", "run")


@dataclass(frozen=True, slots=True)
class Job:
    """A process that leaves `result` when it ends well."""

    kind: Kind
    variant: str  # COLDSTART for cold starts and their panels
    seed: int
    folder: Path
    result: Path
    words: tuple[str, ...]  # of `gigpo-mega`
    after: Path | None = None  # the result of another job

    @property
    def name(self) -> str:
        """What people call it."""
        what = {"coldstart": "cold start", "panel": "panel before", "run": self.variant}[self.kind]
        return f"{what}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        return self.result.exists()

    @property
    def ready(self) -> bool:
        """Whether what it builds on is there."""
        return self.after is None or self.after.exists()

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [*PROGRAM, *self.words]

    def prepare(self) -> None:
        """Clear away what an earlier try has left, unless it can be continued."""
        if self.kind != "run":
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)


def jobs(spec: Spec, folder: Path, seeds: Sequence[int] = ()) -> list[Job]:
    """The jobs of `seeds`, or of all: of each the cold start that it begins with, its panel, the variants.

    Their folders are in `folder`. Raises UserError for a seed that the experiment does not have.
    """
    if unknown := set(seeds) - set(spec.seeds):
        raise UserError(f"--seeds {sorted(unknown)}: the experiment has {spec.seeds}")
    wanted = set(seeds or spec.seeds)
    starts = {spec.coldstart_seed(seed) for seed in wanted}
    made: list[Job] = []
    for seed in spec.seeds:
        if spec.coldstart is not None and seed in starts:
            made += _coldstart(spec, seed, folder)
        if seed in wanted:
            made += [_run(spec, variant, seed, folder) for variant in spec.variants]
    return made


def policy_of(spec: Spec, seed: int, folder: Path) -> Path:
    """The cold start's policy that the runs of `seed` begin with."""
    return _folder(folder, COLDSTART, spec.coldstart_seed(seed)) / "policy"


def _coldstart(spec: Spec, seed: int, folder: Path) -> Sequence[Job]:
    clone, panel = _folder(folder, COLDSTART, seed), _folder(folder, "panel", seed)
    policy = clone / "policy"
    cloned = ("coldstart", *spec.coldstart_words(), *_own(seed, clone))
    played = ("evaluate", *spec.words(), *_own(seed, panel), f"--model.path={policy}")
    first = Job("coldstart", COLDSTART, seed, clone, policy / "config.json", cloned)
    return first, Job("panel", COLDSTART, seed, panel, panel / "evaluation.json", played, first.result)


def _run(spec: Spec, variant: str, seed: int, folder: Path) -> Job:
    output, cfg = _folder(folder, variant, seed), spec.config(variant)
    words = ["train", *spec.words(variant), *_own(seed, output), "--resume=auto"]
    after = None
    if spec.coldstart is not None:
        policy = policy_of(spec, seed, folder)
        words.append(f"--model.path={policy}")
        after = policy / "config.json"
    result = output / f"evaluation_{cfg.iterations:06d}.json"
    return Job("run", variant, seed, output, result, tuple(words), after)


def _own(seed: int, output: Path) -> tuple[str, str]:
    return f"--seed={seed}", f"--output={output}"


def _folder(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}_{seed}"
