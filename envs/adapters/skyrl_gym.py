"""skyrl-gym environments (SkyRL, Apache-2.0): conversations in, the policy's whole answers out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.adapters import required
from envs.adapters._verbatim import TRANSCRIPT
from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition
from envs.records import Record, RecordTasks

skyrl_gym = required("skyrl_gym", "skyrl-gym")
omegaconf = required("omegaconf", "skyrl-gym")


class SkyRLGymEnvironment:
    """`skyrl_gym.make(id)`, called for each task, or `module:Class` of a `BaseTextEnv`.

    A task is a record of SkyRL's data sets: `prompt` is the conversation that opens the episode; the other
    fields, updated by `extras`, are the environment's extras. Without `id` the record's `env_class` selects
    the environment. `config` is its env_config. An episode succeeds if it ends with a reward of `success_at`
    or more.
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
        """Opens the conversation of the record `task.source`."""
        self.close()
        row = json.loads(task.source)
        prompt = row.pop("prompt", [])
        id = self._id or row.get("env_class", "")
        if ":" in id and id not in skyrl_gym.registry:
            skyrl_gym.register(id, entry_point=id)
        try:
            self._env = skyrl_gym.make(id, env_config=self._config, extras={**row, **self._extras})
        except (skyrl_gym.error.Error, ImportError, AttributeError, AssertionError) as error:
            raise EnvError(f"environment.options.id {id}: {error}") from None
        opening, _ = self._env.init(prompt)
        self._instruction = _text(opening)
        return Observation(self._instruction, instruction=self._instruction)

    def step(self, action: str) -> Transition:
        """Passes the answer `action` to the environment, which parses it."""
        if self._env is None:
            raise EnvError("skyrl-gym: the episode is over; call reset")
        answered = self._env.step(action)
        reward, done = float(answered["reward"]), bool(answered["done"])
        if done:
            self.close()
        seen = Observation(_text(answered["observations"]), instruction=self._instruction)
        return Transition(seen, reward, done, done and reward >= self._success_at, valid=True)

    def close(self) -> None:
        """Closes the environment of the conversation, if one is open."""
        env, self._env = self._env, None
        if env is not None:
            env.close()


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(message["content"] for message in messages)


def conversations(data: str) -> RecordTasks:
    """The records of the folder `data`; refuses one whose `prompt` is no conversation, with file and row."""
    return RecordTasks(data, _check_prompt)


def _check_prompt(record: Record) -> None:
    prompt = record.fields.get("prompt", [])
    for message in prompt if isinstance(prompt, list) else [prompt]:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise EnvError(
                f"{record.place}: prompt has {message!r:.80}; it must be a list of messages "
                "{role, content: text}"
            )


KIND = EnvironmentKind(SkyRLGymEnvironment, conversations, dialogues=TRANSCRIPT)
