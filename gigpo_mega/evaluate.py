"""Play the held-out panel: `python -m gigpo_mega.evaluate CONFIG --model.path POLICY --output FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from envs.base import lookup
from gigpo_mega import options
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.rollout.server import holds_weights
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.rollout.summary import evaluation_record
from gigpo_mega.tasks import load_tasks


def evaluate(cfg: Config) -> dict[str, Any]:
    """Play `evaluation.episodes` games with the policy at `model.path`; returns the panel's record."""
    if cfg.model.path is None:
        raise UserError("model.path is not set; give the Hugging Face directory of the policy to evaluate")
    if not holds_weights(cfg.model.path):
        raise UserError(f"model.path: {cfg.model.path} has no *.safetensors; see tools/convert.py export")
    _, held_out = load_tasks(cfg)
    with RolloutSession(cfg, cfg.model.path, cfg.output) as session:
        groups = session.collect(held_out, 1, cfg.evaluation.temperature, name="evaluate")
    return evaluation_record(groups, 0, cfg.evaluation.temperature, cfg.evaluation.split)


def table(record: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The paper's columns: success in percent per task kind, then ALL with its standard error."""
    kinds: Mapping[str, Mapping[str, float]] = record["kinds"]
    ordered = [kind for kind in columns if kind in kinds] + sorted(set(kinds) - set(columns))
    head = [*(columns.get(kind, kind) for kind in ordered), "ALL"]
    row = [f"{100 * kinds[kind]['success']:.1f}" for kind in ordered]
    row.append(f"{100 * record['success']:.1f} +- {100 * record['standard_error']:.1f}")
    widths = [max(len(a), len(b)) for a, b in zip(head, row, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in (head, row)
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, play the panel, print the table and keep the record in `output`/evaluation.json."""
    cfg = options.load(sys.argv[1:] if argv is None else argv, "gigpo_mega.evaluate")
    record = evaluate(cfg)
    (cfg.output / "evaluation.json").write_text(json.dumps(record, indent=1))
    print(table(record, lookup(cfg.environment.name).columns))


if __name__ == "__main__":
    run_main(main)
