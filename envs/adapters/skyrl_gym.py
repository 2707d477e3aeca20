"""skyrl-gym's environments (SkyRL, Apache-2.0): conversations in, the policy's whole answers out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.adapters import required
from envs.adapters._verbatim import TRANSCRIPT
from envs.base import EnvironmentError, EnvironmentKind, Observation, Task, Transition
from envs.rows import RowTasks

skyrl_gym = required("skyrl_gym", "skyrl-gym")
omegaconf = required("omegaconf", "skyrl-gym")


class SkyRLGymEnvironment:
    """`skyrl_gym.make(id)`, made anew for each task, or `module:Class` of a `BaseTextEnv`.

    A task is a row of SkyRL's data sets: `prompt` is the conversation that opens the episode, all else, and
    `extras` over it, goes to the environment as its extras; without `id` the row's `env_class` says which.
    `config` is its env_config. Success is an episode that ends with a reward of `success_at` or more.
    """

    def __init__(
        self,
        id: str = "",
        config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        success_at: float = 1.0,
    ) -> None:
        self._id, self._extras, self._success_at = id, dict(extras or {}), success_at
        self._config = omegaconf.OmegaConf.create(dict(config or {}))
        self._env: Any = None
        self._instruction = ""

    def reset(self, task: Task) -> Observation:
        """Opens the conversation of the row `task.source`."""
        if self._env is not None:
            self._env.close()
        row = json.loads(task.source)
        prompt = row.pop("prompt", [])
        self._env = self._made(self._id or row.get("env_class", ""), {**row, **self._extras})
        opening, _ = self._env.init(prompt)
        self._instruction = _text(opening)
        return Observation(self._instruction, instruction=self._instruction)

    def step(self, action: str) -> Transition:
        """Gives the environment the answer `action`; what it understands in it is its own to say."""
        if self._env is None:
            raise EnvironmentError("skyrl-gym: the episode is over; call reset")
        answered = self._env.step(action)
        reward, done = float(answered["reward"]), bool(answered["done"])
        if done:
            self._env.close()
            self._env = None
        seen = Observation(_text(answered["observations"]), instruction=self._instruction)
        return Transition(seen, reward, done, done and reward >= self._success_at, valid=True)

    def _made(self, id: str, extras: Mapping[str, Any]) -> Any:
        if ":" in id and id not in skyrl_gym.registry:
            skyrl_gym.register(id, entry_point=id)
        try:
            return skyrl_gym.make(id, env_config=self._config, extras=extras)
        except (skyrl_gym.error.Error, ImportError, AttributeError, AssertionError) as error:
            raise EnvironmentError(f"environment.options.id {id}: {error}") from None


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(message["content"] for message in messages)


KIND = EnvironmentKind(SkyRLGymEnvironment, RowTasks, dialogues=TRANSCRIPT)
