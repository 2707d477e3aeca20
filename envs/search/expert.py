"""An expert for questions whose hops are known: it looks up each hop, then answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from envs.base import Demonstration, EnvError, Observation, Task
from envs.search.environment import SearchEnvironment
from envs.search.questions import Question
from envs.search.scoring import normalize


def demonstrate(
    task: Task,
    seed: int,
    detour: float = 0.0,
    max_steps: int = 4,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Demonstration:
    """One expert episode in an environment made with `options`, with `max_steps` replaced.

    A hop is looked up by its query. With probability `detour` a worse query precedes it, repeatedly while
    there are spare steps. It gives the accepted answer that the last passages contain, else the first one.
    Raises EnvError for a question without hops.
    """
    question = Question.from_json(task.source)
    if not question.hops:
        raise EnvError(f"expert: question {question.text!r} has no hops to look up; add them to its record")
    environment = SearchEnvironment(**{**options, "max_steps": max_steps})
    observation = environment.reset(task)
    rng = Random(f"{seed}/{task.id}")
    spare = max_steps - len(question.hops) - 1
    turns: list[tuple[Observation, str]] = []
    for query in _queries(question, rng, detour, spare):
        turns.append((observation, f"<search>{query}</search>"))
        observation = environment.step(turns[-1][1]).observation
    shown = normalize(observation.text)
    answer = next((golden for golden in question.golden if normalize(golden) in shown), question.golden[0])
    turns.append((observation, f"<answer>{answer}</answer>"))
    return Demonstration(tuple(turns), environment.step(turns[-1][1]).success)


def _queries(question: Question, rng: Random, detour: float, spare: int) -> Iterator[str]:
    for hop in question.hops:
        entity, _, field = hop.title.partition(": ")
        worse = [query for query in (question.text, entity, field) if query not in ("", hop.query)]
        while spare > 0 and rng.random() < detour:
            spare -= 1
            yield rng.choice(worse)
        yield hop.query
