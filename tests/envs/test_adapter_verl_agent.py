"""The adapter to verl-agent's environment managers: their interface, with a manager of that shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.adapters.verl_agent import KIND, ManagedEnvironment
from envs.base import EnvError, Task
from envs.dialogue import Situation, choose


class FakeManager:
    """Guess a letter, with verl-agent's batches, keys and array types; two environments where asked for."""

    def __init__(self, seed: int, copies: int = 1, images: bool = False) -> None:
        self.letters = np.random.default_rng(seed).choice(list("abcdefgh"), copies)
        self.images = images

    def reset(self, kwargs: Sequence[dict[str, Any]] | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if kwargs is not None:
            self.letters = np.array([row["letter"] for row in kwargs])
        self.said = ["nothing" for _ in self.letters]
        return self._observed(), [{} for _ in self.letters]

    def step(self, text_actions: list[str]) -> tuple[Any, ...]:
        self.said = text_actions
        wons = np.array(text_actions) == self.letters
        infos = [{"won": bool(w), "is_action_valid": np.array(len(a) == 1)}
                 for w, a in zip(wons, text_actions, strict=True)]  # fmt: skip
        return self._observed(), 10.0 * wons, wons, infos

    def close(self) -> None: ...

    def _observed(self) -> dict[str, Any]:
        texts = [f"You said {said}. The letter is after {chr(ord(letter) - 1)}."
                 for said, letter in zip(self.said, self.letters, strict=True)]  # fmt: skip
        return {"text": None if self.images else texts, "image": None, "anchor": self.letters.tolist()}


NAME = f"{__name__}:FakeManager"


def seed(number: int) -> Task:
    return Task(f"train/{number}", "seed", str(number))


def letter(environment: ManagedEnvironment, task: Task) -> str:
    return chr(ord(environment.reset(task).text[-2]) + 1)


def test_an_episode_maps_reward_validity_and_success() -> None:
    environment = ManagedEnvironment(NAME)
    wanted = letter(environment, seed(3))
    wrong = environment.step("several letters")
    assert (wrong.reward, wrong.done, wrong.success, wrong.valid) == (0.0, False, False, False)
    assert wrong.observation.state == wanted
    won = environment.step(wanted)
    assert (won.reward, won.done, won.success, won.valid) == (10.0, True, True, True)


def test_the_seed_decides_the_first_state() -> None:
    tasks = KIND.tasks(train=20, test=2).tasks("train")
    one, other = ManagedEnvironment(NAME), ManagedEnvironment(NAME)
    firsts = [one.reset(task) for task in tasks]
    assert firsts == [other.reset(task) for task in reversed(tasks)][::-1]
    assert len(set(firsts)) > 3


def test_rows_are_the_environments_kwargs(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"letter": "q"}\n{"letter": "z"}\n')
    environment = ManagedEnvironment(NAME)
    wanted = [letter(environment, task) for task in KIND.tasks(data=str(tmp_path)).tasks("train")]
    assert wanted == ["q", "z"]


def test_each_manager_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(FakeManager, "close", lambda env: closed.append(env))
    environment = ManagedEnvironment(NAME)
    environment.close()
    assert closed == []
    for number in range(3):
        environment.reset(seed(number))
    for _ in range(2):
        environment.close()
        assert len(set(map(id, closed))) == len(closed) == 3
    with pytest.raises(EnvError, match="no episode is running"):
        environment.step("a")


def test_the_managers_text_is_the_prompt() -> None:
    dialogue = choose(KIND, "chat")
    seen = ManagedEnvironment(NAME).reset(seed(0))
    assert dialogue.prompt(Situation("", seen)) == seen.text
    assert dialogue.read("<think>b</think> b", True).action == "<think>b</think> b"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (NAME, {"copies": 2}, "2 environments in it; use env_num 1 and group_n 1"),
        (NAME, {"images": True}, "it shows images only"),
        ("nowhere:make", {}, "environment.options.manager nowhere:make: No module"),
        ("json", {}, "environment.options.manager json: it is no address; give module:attribute"),
        ("json:load_all", {}, "no attribute 'load_all'; functions there: .*loads"),
    ],
)
def test_an_unplayable_manager_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        ManagedEnvironment(name, arguments).reset(seed(0))
