"""Gymnasium environments whose observations can be shown as text (Farama, MIT; API of version 1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs.adapters import required, text_of
from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition

gymnasium = required("gymnasium", "gymnasium")

RENDER = "render"
_HIGHLIGHT = re.compile(r"\x1b\[[1-9][\d;]*m(.*?)\x1b\[0?m", re.DOTALL)


class GymnasiumEnvironment:
    """`gymnasium.make(id, **arguments)`; `module:EnvId-v0` imports the module that registers it.

    The agent sees the observation, its entry `show` if it is a dictionary, or with `show: render` the ansi
    rendering, with highlighted parts in brackets. Actions of a Discrete space are named by `actions`, or by
    their numbers; `info["action_mask"]` is respected. In a Text space the answer is the action. Anything else
    is invalid and changes nothing. Success is `info["success"]` or `info["is_success"]`; without either, an
    episode succeeds if it terminates with a reward of `success_at` or more.
    """

    def __init__(
        self,
        id: str,
        arguments: Mapping[str, Any] | None = None,
        actions: Sequence[str] = (),
        show: str = "",
        instruction: str = "",
        success_at: float = 1.0,
    ) -> None:
        self._show, self._instruction, self._success_at = show, instruction, success_at
        mode = {"render_mode": "ansi"} if show == RENDER else {}
        try:
            self._env = gymnasium.make(id, **mode, **(arguments or {}))
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise EnvError(f"environment.options.id {id}: {error}") from None
        space = self._env.observation_space
        if show and show != RENDER and show not in getattr(space, "spaces", ()):
            raise EnvError(f"environment.options.show {show}: {id} has no such entry; its space is {space}")
        if not show and isinstance(space, gymnasium.spaces.Box):
            raise EnvError(
                f"environment.options.id {id}: {space} is not text; wrap it, or set options.show to render"
            )
        self._actions = self._name_actions(actions)
        self._seen = Observation("")
        self._done, self._closed = True, False

    def reset(self, task: Task) -> Observation:
        """Resets with the seed `task.source`."""
        observation, info = self._env.reset(seed=int(task.source))
        self._done = False
        return self._observe(observation, info)

    def step(self, action: str) -> Transition:
        """Takes the action of that name; raises EnvError if the episode is over."""
        if self._done:
            raise EnvError("Gymnasium: the episode is over; call reset")
        if self._actions:
            name = action.strip()
            chosen = self._actions[name] if name in self._seen.admissible else None
        else:
            chosen = action if self._env.action_space.contains(action) else None
        if chosen is None:
            return Transition(self._seen, 0.0, False, False, valid=False)
        observation, reward, terminated, truncated, info = self._env.step(chosen)
        self._done = bool(terminated or truncated)
        won = terminated and reward >= self._success_at
        success = bool(info.get("success", info.get("is_success", won)))
        return Transition(self._observe(observation, info), float(reward), self._done, success, valid=True)

    def close(self) -> None:
        """Closes Gymnasium's environment, once."""
        if not self._closed:
            self._done = self._closed = True
            self._env.close()

    def _observe(self, observation: Any, info: Mapping[str, Any]) -> Observation:
        state = text_of(observation)
        if self._show == RENDER:
            text = _HIGHLIGHT.sub(r"[\1]", self._env.render()).strip("\n")
        else:
            text = text_of(observation[self._show]) if self._show else state
        mask = info.get("action_mask")
        names = (name for i, name in enumerate(self._actions) if mask is None or mask[i])
        self._seen = Observation(text, tuple(names), self._instruction, state)
        return self._seen

    def _name_actions(self, names: Sequence[str]) -> dict[str, Any]:
        space = self._env.action_space
        if isinstance(space, gymnasium.spaces.Text) and not names:
            return {}
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise EnvError(f"environment.options.id: actions must be Discrete or Text, not {space}; wrap it")
        names = names or [str(i) for i in range(int(space.start), int(space.start + space.n))]
        if len(set(names)) != space.n:
            raise EnvError(
                f"environment.options.actions: {len(set(names))} names for {space.n} actions; "
                "give each action a name of its own"
            )
        return {name: int(space.start) + i for i, name in enumerate(names)}


KIND = EnvironmentKind(GymnasiumEnvironment)
