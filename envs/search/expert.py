"""An expert for the questions whose hops are known: looks each up, reads on, answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from envs.base import Demonstration, EnvironmentError, Observation, Task
from envs.search.environment import SearchEnvironment
from envs.search.questions import Hop, Question
from envs.search.scoring import normalize


def demonstrate(
    task: Task,
    seed: int,
    detour: float = 0.0,
    max_steps: int = 4,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Demonstration:
    """One expert episode in an environment made with `options`, but for its `max_steps`.

    A hop is looked up by its query. With probability `detour` a worse query comes before it, and again,
    while there are turns to spare. It gives the accepted answer that the last passages hold. Raises
    EnvironmentError for a question without hops.
    """
    question = Question.from_json(task.source)
    if not question.hops:
        raise EnvironmentError(f"expert: nothing says how to find out {question.text!r}: it has no hops")
    environment = SearchEnvironment(**{**options, "max_steps": max_steps})
    observation = environment.reset(task)
    rng = Random(f"{seed}/{task.id}")
    spare = max_steps - len(question.hops) - 1
    turns: list[tuple[Observation, str]] = []
    for query in _queries(question, rng, detour, spare):
        turns.append((observation, f"<search>{query}</search>"))
        observation = environment.step(turns[-1][1]).observation
    turns.append((observation, f"<answer>{_answer(question, observation)}</answer>"))
    return Demonstration(tuple(turns), environment.step(turns[-1][1]).success)


def _queries(question: Question, rng: Random, detour: float, spare: int) -> Iterator[str]:
    for hop in question.hops:
        while spare > 0 and rng.random() < detour:
            spare -= 1
            yield rng.choice(_worse(question, hop))
        yield hop.query


def _worse(question: Question, hop: Hop) -> tuple[str, ...]:
    """What someone would try who does not know what the corpus is like."""
    entity, _, field = hop.title.partition(": ")
    return tuple(query for query in (question.text, entity, field) if query not in ("", hop.query))


def _answer(question: Question, observation: Observation) -> str:
    """The first accepted answer that the last passages hold, else the first."""
    shown = normalize(observation.text)
    return next((golden for golden in question.golden if normalize(golden) in shown), question.golden[0])
