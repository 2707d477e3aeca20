"""FakeTrainer: takes the command line of a run, a cold start or a panel, and leaves their files.

A run takes an iteration every 0.1 s, appends its metrics, and goes on with the next one when it is started
again. Success rises by the variant's `advantage.gamma` and falls with the seed; seed 13 fails.
"""

from __future__ import annotations

import json
import os
import sys
import time

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config, save_config
from gigpo_mega.telemetry.metrics import read_rows


class FakeTrainer:
    """Acts for `gigpo-mega` with the words of one of its commands."""

    def __init__(self, command: str, cfg: Config) -> None:
        self._command, self._cfg, self._output = command, cfg, cfg.output

    def run(self) -> None:
        """Do what the command would."""
        self._output.mkdir(parents=True, exist_ok=True)
        (self._output / "pid").write_text(str(os.getpid()))
        if self._cfg.seed == 13:
            raise SystemExit("seed 13 fails")
        save_config(self._cfg, self._output / "config.yaml")
        {"coldstart": self._clone, "evaluate": self._play, "train": self._train}[self._command]()

    def _clone(self) -> None:
        (self._output / "policy").mkdir()
        (self._output / "policy" / "config.json").write_text(json.dumps({"seed": self._cfg.seed}))

    def _play(self, name: str = "evaluation.json", success: float = 0.25) -> None:
        panel = {"success": success, "kinds": {"look": {"episodes": 4, "success": success}}}
        (self._output / name).write_text(json.dumps(panel))

    def _train(self) -> None:
        cfg = self._cfg
        done = len(read_rows(self._output / "metrics.jsonl"))
        gain = cfg.advantage.gamma / 2 - cfg.seed / 1000
        for iteration in range(done, cfg.iterations):
            time.sleep(0.1)
            row = {"iteration": iteration, "rollout/success": 0.25 + gain * iteration / cfg.iterations}
            row |= {"loss/entropy": 0.5, "time/total": 0.1, "process": os.getpid()}
            with (self._output / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._play(f"evaluation_{cfg.iterations:06d}.json", 0.25 + gain)


if __name__ == "__main__":
    FakeTrainer(sys.argv[1], load_config(sys.argv[2:], "FakeTrainer")).run()
