"""Compares what the learner is about to train on with what engines said, to the bit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.samples import outline
from gigpo_mega.learner.targets import Targets, plan_updates
from gigpo_mega.types import Advantages, Float32, Group, Int32, RowTable, Step
from tools.bench.fuzz.policy import Call
from tools.bench.fuzz.world import MARK

Heard = Sequence[tuple[int, Call]]
"""The calls of the engine, with the session of each."""


History = Literal["append", "agent", None]
"""Which prompts must begin with the ids of an earlier one and its answer: those of every step but the
first of an episode, those that an agent marks, or none."""


def audit(
    learner: Learner,
    cfg: Config,
    groups: Sequence[Group],
    heard: Heard,
    retries: int,
    iteration: int,
    history: History,
) -> dict[str, int]:
    """Counts of what was sampled and trained, and of what is wrong; `cfg` computes each row in one update.

    `retries` episodes were begun again: theirs are the only sessions of which nothing may be trained.
    """
    rows = RowTable.from_groups(groups)
    number = np.arange(len(rows), dtype=np.float32)
    advantages = Advantages(number, number, number, np.zeros(len(rows), np.int64))
    plan = plan_updates(learner, outline(learner.layout, rows), rows, advantages, cfg, iteration)
    trained = [row for update in plan for made in update for row in _rows(*made, iteration)]
    known, found = Counter(call for _, call in heard), Counter(call for _, call in trained)
    sessions = defaultdict[int, list[bool]](list)
    for session, call in heard:
        sessions[session].append(call in found)
    dropped = sum(not any(kept) for kept in sessions.values())
    turns = [pair for group in groups for t in group.trajectories for pair in _turns(t.steps, history)]
    return {
        "episodes": sum(len(group.trajectories) for group in groups),
        "calls": len(heard),
        "tokens_sampled": sum(call.tokens for _, call in heard),
        "rows_trained": len(trained),
        "tokens_trained": sum(call.tokens for _, call in trained),
        "episodes_begun_again": retries,
        "histories": len(turns),
        "rows_not_as_sampled": sum(count for call, count in found.items() if call not in known),
        "rows_trained_twice": sum(
            max(0, count - known[call]) for call, count in found.items() if call in known
        ),
        "sessions_trained_in_part": sum(any(kept) and not all(kept) for kept in sessions.values()),
        "sessions_lost": max(0, dropped - retries),
        "rows_of_another_advantage": sum(Call.of(*_columns(rows.steps[at])) != call for at, call in trained),
        "histories_not_as_said": sum(not _continues(*pair) for pair in turns),
    }


WRONG = ("rows_not_as_sampled", "rows_trained_twice", "sessions_trained_in_part", "sessions_lost",
         "rows_of_another_advantage", "histories_not_as_said")  # fmt: skip


def _rows(batch: MicroBatch, targets: Targets, iteration: int) -> Iterator[tuple[int, Call]]:
    """Each row of a micro-batch as the loss reads it: the row that its advantage is of, and the call."""
    if not batch.weight:
        return
    ends = np.cumsum(batch.lengths)[:-1]
    columns = (batch.labels[batch.mask], targets.engine, targets.staleness, targets.advantage)
    responses = zip(*(np.split(column, ends) for column in columns), strict=True)
    for prompt, (ids, logprobs, stale, advantage) in zip(_prompts(batch), responses, strict=True):
        (row,) = np.unique(advantage) if len(np.unique(advantage)) == 1 else (-1,)
        versions = (iteration - stale).astype(np.int32)
        yield int(row), Call.of(prompt, ids.astype(np.int32), logprobs, versions)


def _prompts(batch: MicroBatch) -> Iterator[Int32]:
    """What each row's first response token follows."""
    for line in range(len(batch.tokens)):
        for start, end in pairwise(batch.starts.tolist()):
            first = start + int(np.argmax(batch.mask[line, start:end]))
            yield batch.tokens[line, start : first + 1].astype(np.int32)


def _columns(step: Step) -> tuple[Int32, Int32, Float32, Int32]:
    return step.prompt_ids, step.response_ids, step.logprobs, step.versions


def _turns(steps: Sequence[Step], history: History) -> Iterator[tuple[Step, Step]]:
    """Steps of an episode and those whose prompts must continue them."""
    if history == "append":
        yield from pairwise(steps)
    elif history == "agent":
        marked = [(match, step) for step in steps if (match := MARK.match(step.observation))]
        turns = {(match[1], int(match[2])): step for match, step in marked}
        for match, step in marked:
            before = turns.get((match[1], int(match[2]) - 1))
            if match[3] == "+" and before is not None:  # one that is lost is counted elsewhere
                yield before, step


def _continues(before: Step, step: Step) -> bool:
    said = np.concatenate([before.prompt_ids, before.response_ids])
    return len(step.prompt_ids) > len(said) and bool((step.prompt_ids[: len(said)] == said).all())
