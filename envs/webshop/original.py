"""An adapter of an installed original WebShop: `environment.name: envs.webshop.original:KIND`.

The package `web_agent_site` (MIT license, not part of this project) must be importable with its dependencies,
including Lucene and its index; its text mode is used unchanged. Give the same keyword arguments of its
`WebAgentTextEnv` as environment.options and environment.tasks, e.g. {num_products: 1000}.
"""

from __future__ import annotations

import importlib
import json
import random
from functools import lru_cache
from itertools import count
from typing import Any, Literal

from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition
from envs.webshop.dialogue import DIALOGUES
from envs.webshop.environment import QUERY, SUCCESS_REWARD, shown
from envs.webshop.goals import split_indices
from envs.webshop.pages import SEARCH, SEPARATOR
from envs.webshop.session import parse

_MODULE = "web_agent_site.envs.web_agent_text_env"
_instances = count()


class OriginalWebShop:
    """The original's text mode; all instances of a process share its products, goals and index.

    The original draws prices and their limits from Python's global random generator, which is seeded with
    `seed` first. `score` is the original's reward of the last purchase.
    """

    def __init__(
        self,
        max_steps: int = 15,
        reward: Literal["success", "score"] = "success",
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.max_steps, self.reward = max_steps, reward
        self.server: Any = _server(seed, json.dumps(options, sort_keys=True))
        # the server stores sessions by name, so each instance needs a prefix of its own
        self._environment: Any = _text_environment(
            server=self.server, session_prefix=f"{next(_instances)}-", **options
        )
        self._instruction, self._steps, self.score = "", 0, 0.0
        self._over = True

    def reset(self, task: Task) -> Observation:
        """Starts an episode with the goal whose index is `task.source`."""
        text, _ = self._environment.reset(session=int(task.source))
        self._instruction = text.split(SEPARATOR)[2]
        self._steps, self.score, self._over = 0, 0.0, False
        return self._observation(text)

    def step(self, action: str) -> Transition:
        """Plays one action; one that is neither a search nor a possible click is not `valid`."""
        if self._over:
            raise EnvError("WebShop: the episode is over; call reset")
        verb, argument = parse(action)
        clickable = self._environment.get_available_actions()["clickables"]
        target = argument.lower()
        valid = bool(argument) and (verb == "search" or (verb == "click" and target in clickable))
        text, score, done, _ = self._environment.step(action)
        self._steps, self.score = self._steps + 1, float(score)
        success = bool(done) and self.score == 1.0
        paid = SUCCESS_REWARD * (self.score if self.reward == "score" else success)
        self._over = bool(done) or self._steps >= self.max_steps
        return Transition(self._observation(text), paid, self._over, success, valid and target != SEARCH)

    def _observation(self, text: str) -> Observation:
        available = self._environment.get_available_actions()
        clicks = tuple(f"click[{text}]" for text in available["clickables"])
        admissible = (QUERY, *clicks) if available["has_search_bar"] else clicks
        return Observation(text, admissible, self._instruction, shown(text, self._instruction))


class OriginalTasks:
    """The original's goals: the first 500 are `test`, the others `train`."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self._goals = _server(seed, json.dumps(options, sort_keys=True)).goals

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`."""
        indices = split_indices(self._goals, split, _MODULE)
        return [Task(f"goal_{index}", "original", str(index)) for index in indices]


@lru_cache(maxsize=2)
def _server(seed: int, options: str) -> Any:
    random.seed(seed)
    return _text_environment(**json.loads(options)).server


def _text_environment(**options: Any) -> Any:
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        raise EnvError(
            f"environment.name: the original WebShop cannot be imported ({error}); install "
            "it with its dependencies, or use webshop"
        ) from None
    return module.WebAgentTextEnv(observation_mode="text", **options)


KIND = EnvironmentKind(OriginalWebShop, OriginalTasks, dialogues=DIALOGUES)
