"""verl-agent's environment managers (Apache-2.0), with a batch of one."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from envs.adapters import text_of
from envs.adapters._verbatim import AS_SHOWN
from envs.base import EnvironmentError, EnvironmentKind, Observation, Task, Transition
from envs.rows import rows_or_seeds


class ManagedEnvironment:
    """The manager that `manager`, a function `module:name`, returns for (seed=.., **arguments).

    It must hold one environment (env_num 1, group_n 1) whose first state the seed decides. Where tasks are
    seeds a manager is made for each episode, so that the group's episodes start alike; where they are rows,
    one with seed 0 is kept and reset with the row as its environment's kwargs. The manager's text is the
    whole prompt, history and all; its projection reads the answer, its `anchor` is the state, `won` the
    success.
    """

    def __init__(self, manager: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._make, self._arguments = _function(manager), dict(arguments or {})
        self._manager: Any = None

    def reset(self, task: Task) -> Observation:
        """Starts on a seed, or on a row of environment kwargs."""
        given = json.loads(task.source)
        seeded = isinstance(given, int)
        if seeded and self._manager is not None:
            self._manager.close()
        if seeded or self._manager is None:
            self._manager = self._make(seed=given if seeded else 0, **self._arguments)
        takes = inspect.signature(self._manager.reset).parameters
        observations, _ = self._manager.reset(*([None if seeded else [given]] if takes else []))
        return _first(observations)

    def step(self, action: str) -> Transition:
        """Gives the manager the answer `action`."""
        if self._manager is None:
            raise EnvironmentError("verl-agent: no episode is running; call reset first")
        observations, rewards, dones, infos = self._manager.step([action])
        info = infos[0]
        return Transition(
            _first(observations),
            reward=float(rewards[0]),
            done=bool(dones[0]),
            success=bool(info.get("won", False)),
            valid=bool(info.get("is_action_valid", True)),
        )


def _function(where: str) -> Callable[..., Any]:
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise EnvironmentError(
            f"environment.options.manager {where}: {error}; give module:function"
        ) from None


def _first(observations: Mapping[str, Any]) -> Observation:
    texts, anchors = observations["text"], observations.get("anchor")
    if texts is None:
        raise EnvironmentError("environment.options.manager: it shows images only, and the policy reads text")
    if len(texts) != 1:
        raise EnvironmentError(
            f"environment.options.manager: {len(texts)} environments in it; use env_num 1 and group_n 1"
        )
    return Observation(texts[0], state=None if anchors is None else text_of(anchors[0]))


KIND = EnvironmentKind(ManagedEnvironment, rows_or_seeds, dialogues=AS_SHOWN)
