"""tools/train_seeds.py on a run that is complete."""

from __future__ import annotations

import json
from pathlib import Path

from tools.train_seeds import run

ROOT = Path(__file__).resolve().parent.parent.parent


def test_an_iteration_without_an_update_has_no_gap(tmp_path: Path) -> None:
    output = tmp_path / "0"
    output.mkdir()
    for step, success in (("000000", 0.5), ("000002", 1.0)):
        (output / f"evaluation_{step}.json").write_text(json.dumps({"success": success}))
    (output / "run.json").write_text(json.dumps({"seconds": 3.0, "commit": "c"}))
    rows = [
        {"step": 0, "rollout/success": 0.75, "engine/logprob_gap_mean": 2e-7},
        {"step": 1, "rollout/success": 1.0},
    ]
    (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = run(ROOT / "configs" / "search" / "small.yaml", 0, tmp_path, ["--steps", "2"])
    assert (record["logprob_gap_mean"], record["training"]) == (2e-7, [0.75, 1.0])
    assert (record["before"]["success"], record["after"]["success"]) == (0.5, 1.0)
