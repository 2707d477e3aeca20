"""verl-agent environment managers (Apache-2.0), each with a batch of one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from envs.adapters import text_of
from envs.adapters._verbatim import AS_SHOWN
from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition
from envs.imports import imported
from envs.records import records_or_seeds


class ManagedEnvironment:
    """The manager that `manager`, a function `module:name`, returns for (seed=.., **arguments).

    It must hold one environment (env_num 1, group_n 1) whose first state depends on the seed. If tasks are
    seeds, a manager is made for each episode, so that all episodes of a group start alike; if they are
    records, one manager with seed 0 is reset with the record as its environment's kwargs. The manager's text
    is the whole prompt, history included; its projection parses the answer, its `anchor` is the state, `won`
    the success.
    """

    def __init__(self, manager: str, arguments: Mapping[str, Any] | None = None) -> None:
        field = "environment.options.manager"
        self._make: Callable[..., Any] = imported(manager, field, "functions", inspect.isfunction)
        self._arguments = dict(arguments or {})
        self._manager: Any = None

    def reset(self, task: Task) -> Observation:
        """Starts on a seed, or on a record of environment kwargs."""
        given = json.loads(task.source)
        seeded = isinstance(given, int)
        if seeded:
            self.close()
        if seeded or self._manager is None:
            self._manager = self._make(seed=given if seeded else 0, **self._arguments)
        takes = inspect.signature(self._manager.reset).parameters
        observations, _ = self._manager.reset(*([None if seeded else [given]] if takes else []))
        return _first(observations)

    def close(self) -> None:
        """Closes the manager with its environment, if there is one."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def step(self, action: str) -> Transition:
        """Passes the answer `action` to the manager."""
        if self._manager is None:
            raise EnvError("verl-agent: no episode is running; call reset first")
        observations, rewards, dones, infos = self._manager.step([action])
        info = infos[0]
        return Transition(
            _first(observations),
            reward=float(rewards[0]),
            done=bool(dones[0]),
            success=bool(info.get("won", False)),
            valid=bool(info.get("is_action_valid", True)),
        )


def _first(observations: Mapping[str, Any]) -> Observation:
    texts, anchors = observations["text"], observations.get("anchor")
    if texts is None:
        raise EnvError("environment.options.manager: it shows images only; use one that shows text")
    if len(texts) != 1:
        raise EnvError(
            f"environment.options.manager: {len(texts)} environments in it; use env_num 1 and group_n 1"
        )
    return Observation(texts[0], state=None if anchors is None else text_of(anchors[0]))


KIND = EnvironmentKind(ManagedEnvironment, records_or_seeds, dialogues=AS_SHOWN)
