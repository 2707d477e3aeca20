"""Print what a run sampled: the groups of an iteration, the episodes of a group, or an episode whole, with
advantages, log-probabilities and the steps that other episodes took from the same states.

Without --group or --task, the groups of an iteration are listed. docs/traces.md says which groups are kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gigpo_mega.arguments import number
from gigpo_mega.errors import UserError

if TYPE_CHECKING:
    from gigpo_mega.trace.recorded import RecordedRun
    from gigpo_mega.types import Group

_INDEX = number(int, 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write what was asked for; raises UserError for what the run does not have."""
    options = _parser().parse_args(argv)
    from gigpo_mega.storage.files import replace_text
    from gigpo_mega.trace import page, text
    from gigpo_mega.trace.recorded import RecordedRun

    run = RecordedRun(options.run)
    if options.follow:
        for iteration, at, group in follow(run, options.interval):
            print(f"iteration {iteration}{text.summary(at, group)}", flush=True)
        return
    iteration = run.newest() if options.iteration is None else options.iteration
    groups = run.groups(iteration)
    at = _chosen(iteration, groups, options.group, options.task)
    if at is None:
        if options.html or options.episode is not None or options.prompts:
            raise UserError("--html, --episode and --prompts are of one group; name it by --group or --task")
        print(text.overview(iteration, groups, run.journal.has(iteration)))
        return
    if options.prompts and options.episode is None:
        raise UserError("--prompts shows those of one episode; name it by --episode")
    traced = run.traced(iteration, at)
    if options.html:
        try:
            replace_text(options.html, page.render(traced))
        except OSError as error:
            raise UserError(f"--html {options.html} cannot be written: {error.strerror}") from None
        print(options.html)
    elif options.episode is None:
        print(text.group_text(traced))
    elif options.episode < (count := len(traced.episodes)):
        print(text.episode_text(traced, options.episode, options.prompts))
    else:
        raise UserError(f"--episode {options.episode}: the group has {count}, from 0 to {count - 1}")


def follow(run: RecordedRun, interval: float) -> Iterator[tuple[int, int, Group]]:
    """(iteration, number, group) of every group of a run, as it is finished; ends with the run's last."""
    seen = set[tuple[int, int]]()
    while True:
        complete = run.finished()  # asked first: a group finished since is seen below
        for iteration in run.journal.iterations():
            for at in run.journal.numbers(iteration):
                if (iteration, at) not in seen:
                    seen.add((iteration, at))
                    with suppress(FileNotFoundError):  # dropped since, as no resume needs it
                        yield iteration, at, run.journal.group(iteration, at)
        if complete:
            return
        time.sleep(interval)


def _chosen(iteration: int, groups: Mapping[int, Group], at: int | None, task: str | None) -> int | None:
    if task is None:
        return at
    found = [key for key, group in groups.items() if group.task.id == task]
    if len(found) != 1:
        there = f"groups {found} are" if found else "no group is"
        raise UserError(
            f"--task {task}: in iteration {iteration} {there} of it; --group names one by its number"
        )
    return found[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gigpo-mega trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, which may be under way")
    parser.add_argument("--iteration", type=_INDEX, help="the newest complete one by default")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--group", type=_INDEX, help="number of a group in the iteration")
    one.add_argument("--task", metavar="ID", help="the group of this task")
    parser.add_argument("--episode", type=_INDEX, help="number of an episode in the group")
    parser.add_argument(
        "--prompts", action="store_true", help="the whole prompt of every step of the episode"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the group as a page")
    parser.add_argument("--follow", action="store_true", help="print groups as a live run finishes them")
    parser.add_argument("--interval", type=number(float, 0.01, 3600), default=1.0,
                        help="seconds between two looks of --follow (1)")  # fmt: skip
    return parser
