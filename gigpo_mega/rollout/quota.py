"""What a collection is to bring in: how many groups, of which tasks, and which of them count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from envs.base import Task
from gigpo_mega.config import RolloutConfig
from gigpo_mega.types import Group


@dataclass(frozen=True, slots=True)
class Quota:
    """`needed` groups that count, of numbered `tasks`, which are started in this order.

    `ahead` groups more are played at the same time (below 0: fewer); what is under way when the last one
    counts is given up.
    A group that does not count makes room for the next task, up to `spares` of them; so does one that fails,
    if there is a next task, up to `dropped` of them (None: `needed`). Every complete group is given to
    `keep`, from one thread at a time, before it counts.
    """

    needed: int
    tasks: Iterator[tuple[int, Task]]
    ahead: int = 0
    spares: int = 0
    dropped: int | None = None
    counts: Callable[[Group], bool] = lambda group: True
    keep: Callable[[int, Group], None] = lambda number, group: None

    @property
    def places(self) -> int:
        """Groups that are played at the same time."""
        return self.needed + self.ahead

    def numbered_from(self, first: int) -> Self:
        """The same, with `first` added to the numbers of its groups for all but `keep`."""
        tasks, keep = self.tasks, self.keep
        return replace(
            self,
            tasks=((first + number, task) for number, task in tasks),
            keep=lambda number, group: keep(number - first, group),
        )

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Self:
        """A group of each of `tasks`, and nothing in place of one that fails."""
        return cls(len(tasks), enumerate(tasks))

    @classmethod
    def rest(
        cls,
        rollout: RolloutConfig,
        tasks: Iterable[Task],
        begun: Mapping[int, Group],
        keep: Callable[[int, Group], None],
    ) -> Self:
        """What an iteration of `tasks` lacks of which there are groups `begun`, by number."""
        counts = partial(learned_from, rollout=rollout)
        counted = sum(map(counts, begun.values()))
        spares = rollout.spare_groups - (len(begun) - counted)
        return cls(
            needed=max(rollout.groups - counted, 0),
            tasks=missing(tasks, begun),
            ahead=rollout.oversample + min(spares, 0),  # past the spares each such group has closed its place
            spares=max(spares, 0),
            dropped=rollout.groups,
            counts=counts,
            keep=keep,
        )


def returns_differ(group: Group) -> bool:
    """Whether the episodes differ in return, before penalties: if not, A_E is 0 (DAPO's dynamic sampling)."""
    return len({trajectory.score for trajectory in group.trajectories}) > 1


def learned_from(group: Group, rollout: RolloutConfig) -> bool:
    """Whether `rollout` wants the learner to see `group`."""
    return rollout.equal_returns == "keep" or returns_differ(group)


def missing(tasks: Iterable[Task], finished: Iterable[int]) -> Iterator[tuple[int, Task]]:
    """`tasks` with their numbers, but those that are `finished`."""
    done = set(finished)
    return ((number, task) for number, task in enumerate(tasks) if number not in done)
