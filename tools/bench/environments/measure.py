"""CPU seconds and bytes of environments; CPU time, so that other programs on the machine do not count."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from envs.base import Environment, Task

HELD = 200  # environments whose memory is measured


@dataclass(frozen=True, slots=True)
class Played:
    """CPU time and number of actions of some episodes."""

    resets: list[float] = field(default_factory=list)  # seconds
    actions: list[float] = field(default_factory=list)  # seconds of all actions of an episode
    counts: list[int] = field(default_factory=list)  # actions

    @property
    def resets_per_second(self) -> float:
        """The rate over all episodes."""
        return len(self.resets) / sum(self.resets)

    @property
    def steps_per_second(self) -> float:
        """The rate over all episodes."""
        return sum(self.counts) / sum(self.actions)


def play(environment: Environment, episodes: Iterable[tuple[Task, Sequence[str]]]) -> Played:
    """Play recorded actions; those after the end of an episode are skipped."""
    played = Played()
    for task, actions in episodes:
        count = 0
        start = time.process_time()
        environment.reset(task)
        middle = time.process_time()
        for action in actions:
            count += 1
            if environment.step(action).done:
                break
        played.actions.append(time.process_time() - middle)
        played.resets.append(middle - start)
        played.counts.append(count)
    return played


def seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def milliseconds(taken: Sequence[float]) -> dict[str, float]:
    """Median and 90% quantile of some times in seconds."""
    tenths = quantiles(taken, n=10) if len(taken) > 1 else [taken[0]] * 9
    return {"median": round(1e3 * median(taken), 3), "p90": round(1e3 * tenths[-1], 3)}


def memory_per_environment(start: Callable[[int], object]) -> float:
    """KiB that an environment in the middle of an episode holds, without what its process shares."""
    start(0)  # loads what is shared
    gc.collect()
    tracemalloc.start()
    held = [start(place) for place in range(HELD)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(taken / len(held) / 1024, 1)
