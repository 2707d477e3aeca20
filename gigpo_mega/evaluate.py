"""Play the held-out panel: `python -m gigpo_mega.evaluate CONFIG --model.path POLICY --output FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.registry import lookup
from gigpo_mega import hub
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import holds_weights
from gigpo_mega.preflight import check_engine, check_folder, check_tokenizer
from gigpo_mega.program import run_main
from gigpo_mega.run.output import lock
from gigpo_mega.shape import ModelShape
from gigpo_mega.stack import enter
from gigpo_mega.storage.files import replace_text
from gigpo_mega.tasks import Tasks, load_tasks

if TYPE_CHECKING:
    from gigpo_mega.rollout.session import RolloutSession

ABOUT = (
    "Play the held-out panel with the policy at model.path, print success by kind of task, and write the "
    "record into evaluation.json in output."
)


def evaluate(cfg: Config) -> dict[str, Any]:
    """Play the held-out panel with the policy at `model.path`; returns the panel's record."""
    from gigpo_mega.rollout.quota import Quota
    from gigpo_mega.rollout.summary import evaluation_record

    check_folder("output", cfg.output)
    # The output may be that of a run, whose sglang.log stays.
    with lock(cfg.output), playing(cfg, logs=cfg.output / "evaluation") as (session, tasks):
        groups = session.collect(Quota.of(tasks.held_out), 1, cfg.evaluation.temperature, name="evaluate")
    return evaluation_record(groups.values(), 0, cfg.evaluation.temperature, cfg.evaluation.split)


@contextmanager
def playing(cfg: Config, logs: Path) -> Iterator[tuple[RolloutSession, Tasks]]:
    """A session with the policy at `model.path`, and the tasks; the engine writes its log into `logs`.

    Raises UserError if they cannot be played.
    """
    # aiohttp takes half a second to import: --help must not wait for it.
    from gigpo_mega.rollout.engines.command import Launch
    from gigpo_mega.rollout.engines.servers import Servers
    from gigpo_mega.rollout.local import try_environment
    from gigpo_mega.rollout.session import RolloutSession

    if cfg.model.path is None:
        raise UserError("model.path is not set; give the Hugging Face directory of the policy")
    if not cfg.engine.urls:
        check_engine()
    stack = enter(cfg.stack, engine=not cfg.engine.urls)
    model = hub.directory(cfg.model.path)
    shape = ModelShape.from_hf(model)
    if not holds_weights(model):
        raise UserError(f"model.path: {model} has no *.safetensors; see gigpo-mega convert export")
    check_tokenizer(cfg, model, shape)
    tasks = load_tasks(cfg)
    logs.mkdir(parents=True, exist_ok=True)
    try_environment(cfg, tasks.held_out[0])
    launch = Launch(stack, cfg.model.dtype, cfg.seed, cfg.rollout.concurrency)
    with (
        Servers(model, cfg.engine, logs, launch) as servers,
        RolloutSession(cfg, model, servers.urls) as session,
    ):
        yield session, tasks


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
    cfg = load_config(sys.argv[1:] if argv is None else argv, "gigpo-mega evaluate", about=ABOUT)
    record = evaluate(cfg)
    file = cfg.output / "evaluation.json"
    replace_text(file, json.dumps(record, indent=1))
    print(f"success in %, {record['episodes']} episodes of {cfg.evaluation.split}:")
    print(table(record, lookup(cfg.environment.name).columns))
    print(f"record: {file}")


if __name__ == "__main__":
    run_main(main)
