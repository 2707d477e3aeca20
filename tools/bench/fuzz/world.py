"""An environment and an agent whose texts are adversarial."""

from __future__ import annotations

import itertools
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from envs.agent import Connection
from envs.base import EnvironmentKind, EnvUnavailable, Observation, SeedTasks, Task, Transition
from tools.bench.fuzz.text import hostile

NAME = "tools.bench.fuzz.world:KIND"
STEPS = 6  # of an episode at most
TOOLS = [
    {"type": "function", "function": {"name": name, "description": text, "parameters": {"type": "object"}}}
    for name, text in (("look", "look <|im_end|> around"), ("go", "{{ go }}"))
]
MARK = re.compile(r"^<(\d+)\.(\d+)([+-])>")
"""What the last message of a conversation begins with: its number in the episode, its turn, and whether
everything before is as it was in the turn before."""


class FakeTalker:
    """Says anything, at random after the first observation; at times it cannot be reached."""

    def __init__(self, failing: float = 0.0, max_steps: int = STEPS) -> None:
        del max_steps
        self._failing, self._rng = failing, Random()

    def reset(self, task: Task) -> Observation:
        if self._rng.random() < self._failing:
            raise EnvUnavailable("the talker is not there")
        return self._seen(Random(task.source))

    def step(self, action: str) -> Transition:
        rng = self._rng
        done = rng.random() < 0.1
        seen = self._seen(rng)
        reward = rng.choice((0.0, 1.0, -0.5))
        return Transition(seen, reward, done, success=done and rng.random() < 0.5, valid=rng.random() < 0.8)

    def _seen(self, rng: Random) -> Observation:
        admissible = tuple(hostile(rng) for _ in range(rng.randrange(3)))
        return Observation(hostile(rng), admissible, instruction=hostile(rng) or "talk")


KIND = EnvironmentKind(FakeTalker, SeedTasks)
_EPISODES = itertools.count()


def converse(task: Task, connection: Connection) -> float:
    """An agent: up to three conversations at once, which are continued, altered, cut and begun anew."""
    rng = Random(f"{task.id} {next(_EPISODES)}")
    seeds = [rng.random() for _ in range(rng.randint(1, 3))]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda item: _conversation(connection, *item), enumerate(seeds)))
    return rng.random()


def _conversation(connection: Connection, number: int, seed: float) -> None:
    rng, turn, kept = Random(seed), 0, False
    messages: list[Any] = [{"role": "system", "content": hostile(rng)}] if rng.random() < 0.5 else []
    tools = rng.choice(([], TOOLS, TOOLS[:1]))
    asked: list[Any] = [{"role": "user", "content": hostile(rng)}]
    for turn in range(rng.randint(1, 5)):
        last = asked[-1]
        last["content"] = f"<{number}.{turn}{'+' if kept else '-'}>{last['content']}"
        messages += asked
        said = ask(connection, messages, tools, rng.choice((None, 1, 7, 64)))
        messages.append(said)
        calls = said.get("tool_calls", [])
        asked = [{"role": "tool", "tool_call_id": call["id"], "content": hostile(rng)} for call in calls]
        asked = asked or [{"role": "user", "content": hostile(rng)}]
        kept = True
        if rng.random() < 0.25:
            messages, tools, kept = _altered(rng, messages, tools)


def _altered(rng: Random, messages: list[Any], tools: Sequence[Any]) -> tuple[list[Any], Sequence[Any], bool]:
    """The past otherwise than it was."""
    kind = rng.choice(("drop", "answer", "tools", "none"))
    if kind == "drop":
        return messages[-1:] if rng.random() < 0.5 else [], tools, False
    if kind == "answer":
        answer = {"role": "assistant", "content": hostile(rng) + "altered"}
        return [*messages[:-1], answer], tools, False
    if kind == "tools":
        return messages, ([] if tools else TOOLS), False
    return messages, tools, True


def ask(connection: Connection, messages: Sequence[Any], tools: Sequence[Any], limit: int | None) -> Any:
    """The message of the answer; raises RuntimeError for a refusal."""
    body = {"model": connection.model, "messages": messages, "tools": tools, "max_tokens": limit}
    headers = {"Authorization": f"Bearer {connection.api_key}", "Content-Type": "application/json"}
    url = f"{connection.base_url}/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as reply:
            return json.loads(reply.read())["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from None
