"""The folder of a run: one run at a time, started or resumed, with the configuration that holds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config, save_config
from gigpo_mega.errors import UserError
from gigpo_mega.stack import Stack
from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import drop_from
from gigpo_mega.telemetry.provenance import PROVENANCE, provenance

CONFIG = "config.yaml"
# What a resumed run may not change, and why; every other field takes effect from the next iteration on.
FIXED = {
    "seed": "tasks and shuffling of the iterations that are done depend on it",
    "model.path": "checkpoints and the reference policy are of this model",
    "model.dtype": "checkpoints hold parameters of this type",
    "lora": "checkpoints hold these adapters",
    "environment.name": "the groups on disk are of this environment",
    "environment.split": "the order of tasks is that of this split",
    "environment.tasks": "the order of tasks is that of this source",
    "evaluation.split": "evaluations of one run are of one panel",
    "evaluation.episodes": "evaluations of one run are of one panel",
    "evaluation.rest": "evaluations of one run are of one panel",
    "parallel.distributed_optimizer": "it decides how checkpoints hold the optimizer's state",
}
_OF_THE_LAUNCH = ("output", "resume", "stack")  # where and how, not what
# What says where a run computes, what it keeps and how it meets failures. Any other change leads to other
# weights after the checkpoint: groups and evaluations that come later are of weights that will not exist.
_KEEP_SAMPLES = ("parallel.", "engine.", "weights.", "kernels.", "checkpoint.", "evaluation.",
                 "telemetry.", "environment.step_timeout", "environment.workers", "rollout.pool",
                 "rollout.retries")  # fmt: skip
Change = tuple[str, Any, Any]  # field, old value, new value


def open_output(cfg: Config, changed: Sequence[Change], start: int) -> None:
    """Make `cfg.output` this run's, which starts from iteration `start` and has `changed` (`check_resume`).

    A configuration that differs from that of the run which is resumed is printed as a difference; the old one
    is kept as `config.until_NNNNNN.yaml`, and what it sampled after the checkpoint is set aside. A run that
    has done more iterations than `cfg` asks for is left as it is.
    """
    if start > cfg.iterations:  # the configuration stays that of what was done
        sys.stderr.write(f"nothing to do: {start} iterations are done\n")
        return
    cfg.output.mkdir(parents=True, exist_ok=True)
    before = cfg.output / CONFIG
    if changed:
        until = cfg.output / f"config.until_{start:06d}.yaml"
        if not until.exists():  # that of the iterations before `start`, however often they are resumed
            shutil.copyfile(before, until)
        for path, old, new in changed:
            sys.stderr.write(f"resumed with {path} {new} (was {old})\n")
        if lead_elsewhere(changed):
            _set_aside(cfg.output, start)
    save_config(cfg, before)


def record_start(output: Path, iteration: int, stack: Stack, processes: int) -> None:
    """Write down which commit and machine make the iterations from `iteration` on; needs torch on a GPU."""
    file = output / PROVENANCE
    drop_from(file, iteration)
    made = provenance("torch", "megatron-core", "sglang", device=stack.name)
    row = {"iteration": iteration, "processes": processes, "stack": stack.name, **made}
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps(row) + "\n")


def check_resume(cfg: Config) -> tuple[bool, list[Change]]:
    """Whether `cfg.output` holds a run, which `cfg` then continues, and what `cfg` changes of it.

    Reads only. Raises UserError if the folder holds a run that was not to be resumed, holds none that could
    be, if a field of `FIXED` has changed, or if groups that it keeps would be deleted.
    """
    held = holds_run(cfg.output)
    if held and not cfg.resume:
        raise UserError(f"output: {cfg.output} holds a run already; choose another output or --resume")
    if cfg.resume is True and not held:
        raise UserError(
            f"output: {cfg.output} holds no run to resume; check the path, or leave out --resume to start one"
        )
    before = cfg.output / CONFIG
    if not (held and before.exists()):
        return held, []
    changed = list(differences(load_config([str(before)], "gigpo-mega train"), cfg))
    _refuse(changed)
    return held, changed


def holds_run(output: Path) -> bool:
    """Whether there is anything in `output` that a run has done; a start that failed leaves nothing."""
    return trained(output) or any(output.glob("groups/[0-9]*"))


def trained(output: Path) -> bool:
    """Whether a run in `output` has done more than play."""
    metrics = output / "metrics.jsonl"
    if any(found for name in ("evaluation_*.json", "checkpoints/iteration_*") for found in output.glob(name)):
        return True
    return metrics.exists() and metrics.stat().st_size > 0


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[Change]:
    """(field, old value, new value) of every field in which two configurations differ, launch apart."""
    for item in fields(old):
        path, a, b = prefix + item.name, getattr(old, item.name), getattr(new, item.name)
        if is_dataclass(a):
            yield from differences(a, b, path + ".")
        elif a != b and path not in _OF_THE_LAUNCH:
            yield path, a, b


def lock(output: Path) -> IO[str]:
    """Hold `output` while the file is open, at most as long as the process lives.

    Raises UserError if another process holds it, or if its file system has no locks.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = (output / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"output: {output} is in use by another run (process {holder}); wait for it or choose another "
            "output"
        ) from None
    except OSError as error:
        file.close()
        raise UserError(
            f"output: {output} cannot be locked ({error.strerror}); choose an output on a file system with "
            "locks"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def claim(output: Path) -> IO[str]:
    """`lock` an output for what cannot be resumed; raises UserError if it holds a run already, too."""
    held = lock(output)
    if holds_run(output):
        held.close()
        raise UserError(
            f"output: {output} holds a run already, which a cold start cannot continue; choose another output"
        )
    return held


def lead_elsewhere(changed: Sequence[Change]) -> bool:
    """Whether a run with `changed` has other weights after them than one without."""
    return not all(path.startswith(_KEEP_SAMPLES) for path, _, _ in changed)


def _set_aside(output: Path, start: int) -> None:
    """Keep groups from `start` on, and evaluations after it, from being taken for those of other weights."""
    if kept := Journal(output / "groups").set_aside_from(start):
        sys.stderr.write(f"groups of iterations {kept} were sampled before the change; they are set aside\n")
    for path in output.glob("evaluation_*.json"):
        if int(path.stem.removeprefix("evaluation_")) > start:
            path.unlink()


def _refuse(changed: list[Change]) -> None:
    for path, old, new in changed:
        if path == "checkpoint.groups_gib" and new is not None and (old is None or new < old):
            kept = "null" if old is None else old
            raise UserError(
                f"{path} {new} would delete groups of the run, which keeps {kept} (GiB; null is all); give "
                f"--{path} {kept}, or choose another output"
            )
        for fixed, reason in FIXED.items():
            if path == fixed or path.startswith(fixed + "."):
                raise UserError(
                    f"{path} {new} cannot be resumed with: the run has {old}, and {reason}; "
                    "set it back or choose another output"
                )
