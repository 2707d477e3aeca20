"""`make quickstart`: an agent learns small ALFWorld rooms on two CPU cores, with the real engine and learner.

Generates the games, takes the cold-start policy beside the configuration (`--coldstart` makes it again),
trains it by GiGPO and says how the held-out panel went before and after. Options as for gigpo_mega.train.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gigpo_mega import options
from gigpo_mega.coldstart import coldstart
from gigpo_mega.config import Config
from gigpo_mega.errors import run_main
from gigpo_mega.train import train

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONFIG = _CONFIGS / "quickstart.yaml"
COLDSTART = _CONFIGS / "quickstart_coldstart.yaml"
POLICY = _CONFIGS / "quickstart_policy"


def run(overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train as CONFIG and `overrides` say; returns the panel's records before and after."""
    cfg = options.load([str(CONFIG), *overrides], "gigpo_mega.quickstart")
    if (cfg.output / "config.yaml").exists():
        print(f"going on in {cfg.output}; delete it to start anew")
        cfg = dataclasses.replace(cfg, resume=True)
    train(cfg)
    before, after = (_record(cfg, step) for step in (0, cfg.steps))
    games = f"held-out panel, {before['episodes']} games"
    print(f"{games}: success {_percent(before)} before, {_percent(after)} after")
    print(f"report: {cfg.output / 'report.html'}")
    return before, after


def make_policy(overrides: Sequence[str] = ()) -> None:
    """Clone the expert as COLDSTART says and put the policy beside the configuration."""
    cfg = options.load([str(CONFIG), str(COLDSTART), *overrides], "gigpo_mega.quickstart")
    made = coldstart(cfg)
    shutil.rmtree(POLICY, ignore_errors=True)
    shutil.copytree(made, POLICY)
    print(f"policy: {POLICY}")


def _record(cfg: Config, step: int) -> dict[str, Any]:
    return json.loads((cfg.output / f"evaluation_{step:06d}.json").read_text())


def _percent(record: dict[str, Any]) -> str:
    return f"{100 * record['success']:.1f}% (+- {100 * record['standard_error']:.1f})"


def main() -> None:
    """The command line: `--coldstart` first makes the policy instead of training it."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--coldstart"]:
        make_policy(arguments[1:])
    else:
        run(arguments)


if __name__ == "__main__":
    run_main(main)
