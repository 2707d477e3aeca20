"""Train an agent: `gigpo-mega train CONFIG.yaml --section.field value`, or under torchrun
`torchrun ... -m gigpo_mega.train CONFIG.yaml ...`; `--dry-run` checks everything and prints what would run.

An iteration plays a group of episodes of each drawn task, estimates advantages, updates the policy and gives
its weights to the engine. The groups are on disk before they are learned from, the full state every
`checkpoint.every` iterations: `--resume` samples nothing twice and ends, on a CPU, bit-equal to a run that
was never stopped. (Kernels of a GPU need not repeat their last bits.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.launch import rank_and_world
from gigpo_mega.program import run_main
from gigpo_mega.stack import enter
from gigpo_mega.storage.journal import Journal


def train(cfg: Config, recorded: Journal | None = None) -> None:
    """Run `cfg.iterations` iterations of GiGPO (arXiv 2505.10978); every rank of the launch calls this.

    Groups that were `recorded` take the place of engine and environments. Ctrl-C and SIGTERM save and stop.
    Raises UserError for what the run could not start with.
    """
    stack = enter(cfg.stack, engine=recorded is None and not cfg.engine.urls)
    # torch and megatron take many seconds to import: a mistyped flag must not wait for them.
    from gigpo_mega.algorithms.advantage import estimate
    from gigpo_mega.learner.update import update_policy
    from gigpo_mega.run.run import Run
    from gigpo_mega.types import RowTable

    with Run(cfg, stack, recorded) as run:
        for iteration in run.iterations():
            with run.stage("push"):
                run.push_weights()
            with run.stage("rollout"):
                groups = run.collect(iteration)  # N episodes of each task; the leader alone has them
            with run.stage("advantage"):
                rows = RowTable.from_groups(groups)  # one row per model call
                advantages = run.once(estimate, rows, cfg.advantage)  # Eq. 3-8
            with run.stage("update"):
                learned = update_policy(run.learner, rows, advantages, cfg, iteration)  # Eq. 9
            run.record(iteration, groups, rows, advantages, learned)


def outcome(cfg: Config) -> str:
    """The panel before and after a run that has ended, and where report and policy are if there are any."""
    said: list[str] = []
    games = 0
    for when, iteration in (("before", 0), ("after", cfg.iterations)):
        file = cfg.output / f"evaluation_{iteration:06d}.json"
        if file.exists():
            record = json.loads(file.read_text())
            games = record["episodes"]
            said.append(f"{100 * record['success']:.1f}% (+- {100 * record['standard_error']:.1f}) {when}")
    lines = [f"held-out panel, {games} games: success {', '.join(said)}"] if said else []
    for name, path in (("report", cfg.output / "report.html"), ("policy", cfg.output / "policy")):
        if path.exists():
            lines.append(f"{name}: {path}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and train, or only say what would be done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    dry_run = "--dry-run" in arguments
    others = {"--dry-run": "check everything, make generated tasks, print what would run, and start nothing"}
    cfg = load_config([word for word in arguments if word != "--dry-run"], "gigpo-mega train", others)
    if dry_run:
        from gigpo_mega.dry_run import describe_run

        print(describe_run(cfg))
        return
    train(cfg)
    rank, _ = rank_and_world()
    if rank == 0:
        print(outcome(cfg))


if __name__ == "__main__":
    run_main(main)
