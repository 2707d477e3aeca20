"""Collect the groups of `iterations` iterations with the policy at `model.path`, without a learner.

They are in `output`/groups as those of a run, for `gigpo-mega trace`; `--resume` continues a collection.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.evaluate import playing
from gigpo_mega.preflight import check_folder
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.run.output import check_resume, lock, open_output, trained
from gigpo_mega.storage.journal import Journal
from gigpo_mega.tasks import TaskStream
from gigpo_mega.trace.text import overview

ABOUT = (
    "Collect the groups of `iterations` iterations with the policy at model.path, without a learner, and "
    "write them into groups in output, as a run does, for gigpo-mega trace."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and collect."""
    collect(load_config(sys.argv[1:] if argv is None else argv, "gigpo-mega rollout", about=ABOUT))


def collect(cfg: Config) -> None:
    """Play what `cfg.output` lacks of `cfg.iterations` iterations, and print a line for each.

    Raises UserError if the folder holds a collection that is not to be resumed, or a run that trains.
    """
    journal, rollout = Journal(cfg.output / "groups"), cfg.rollout
    check_folder("output", cfg.output)
    if trained(cfg.output):
        raise UserError(
            f"output: {cfg.output} is the folder of a run that trains, whose groups and evaluations would no "
            "longer fit; choose another output"
        )
    with lock(cfg.output):
        _, changed = check_resume(cfg)
        # More iterations are of the same policy; in a run they would change the learning rate.
        open_output(cfg, [change for change in changed if change[0] != "iterations"], 0)
        with playing(cfg, logs=cfg.output) as (session, tasks):
            stream = TaskStream(tasks.training, cfg.seed)
            for iteration in range(cfg.iterations):
                if journal.has(iteration):
                    continue
                drawn = stream.sequence(iteration, rollout.groups)
                quota = Quota.rest(rollout, drawn, journal.begun(iteration), partial(journal.keep, iteration))
                if quota.needed:
                    session.collect(quota, rollout.group_size, rollout.temperature, rollout.top_p)
                journal.finish(iteration)
                groups = {at: journal.group(iteration, at) for at in journal.numbers(iteration)}
                print(overview(iteration, groups, finished=True).splitlines()[0], flush=True)
