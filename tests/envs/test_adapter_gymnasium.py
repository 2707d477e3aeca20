"""The adapter to Gymnasium, against Gymnasium's own environments and one with text."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from envs.adapters.gymnasium import KIND, GymnasiumEnvironment
from envs.base import EnvError, Task

LAKE: dict[str, Any] = {"id": "FrozenLake-v1", "show": "render", "actions": ["left", "down", "right", "up"]}
SAFE_WAY = ["down", "down", "right", "right", "down", "right"]
TEXT_ENVIRONMENT = """
import gymnasium
from gymnasium import spaces

class Echo(gymnasium.Env):
    observation_space = spaces.Dict({"said": spaces.Text(20), "count": spaces.Discrete(9)})
    action_space = spaces.Text(8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abc"), 4))
        return {"said": self.word, "count": 0}, {}

    def step(self, action):
        won = action == self.word
        return {"said": action, "count": 1}, 0.5 * won, won, False, {"success": won}

gymnasium.register("Echo-v0", entry_point=Echo)
"""


def seed(number: int) -> Task:
    return Task(f"train/{number}", "seed", str(number))


def lake(**options: Any) -> GymnasiumEnvironment:
    settings: dict[str, Any] = {"arguments": {"is_slippery": False}}
    return GymnasiumEnvironment(**LAKE | settings | options)


def test_a_discrete_environment_is_played_by_name() -> None:
    environment = lake(instruction="reach G")
    first = environment.reset(seed(0))
    assert first.text == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert (first.admissible, first.instruction, first.state) == (tuple(LAKE["actions"]), "reach G", "0")
    played = [environment.step(action) for action in SAFE_WAY]
    assert [t.reward for t in played] == [0, 0, 0, 0, 0, 1]
    assert [t.done for t in played] == [False] * 5 + [True]
    assert [t.success for t in played] == [False] * 5 + [True]
    assert played[0].observation.state == "4"
    assert "[F]HFH" in played[0].observation.text
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("left")


def test_falling_into_a_hole_ends_without_success() -> None:
    environment = lake()
    environment.reset(seed(0))
    environment.step("right")
    drowned = environment.step("down")
    assert (drowned.reward, drowned.done, drowned.success, drowned.valid) == (0, True, False, True)


def test_a_task_always_starts_and_goes_the_same_way() -> None:
    def played(task: Task) -> list[str]:
        environment = lake(arguments={"is_slippery": True, "map_name": "8x8"})
        seen = [environment.reset(task).text]
        for _ in range(20):
            transition = environment.step("down")
            seen.append(transition.observation.text)
            if transition.done:
                break
        return seen

    tasks = KIND.tasks(train=8, test=2).tasks("train")
    ways = [played(task) for task in tasks]
    assert ways == [played(task) for task in tasks]
    assert len(set(map(tuple, ways))) > 1


def test_actions_that_a_mask_forbids_are_not_admissible() -> None:
    environment = GymnasiumEnvironment("Taxi-v4", show="render", actions=list("snewpd"))
    task = seed(5)
    admissible = environment.reset(task).admissible
    assert 0 < len(admissible) < 6
    forbidden = next(name for name in "snewpd" if name not in admissible)
    refused = environment.step(forbidden)
    assert (refused.valid, refused.reward, refused.observation.admissible) == (False, 0.0, admissible)


def test_text_in_and_out_of_a_module_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echoing.py").write_text(TEXT_ENVIRONMENT)
    monkeypatch.syspath_prepend(tmp_path)
    environment = GymnasiumEnvironment("echoing:Echo-v0", show="said")
    word = environment.reset(seed(3)).text
    assert (len(word), environment.reset(seed(3)).text) == (4, word)
    refused = environment.step("much too long for this space")
    assert (refused.valid, refused.observation.text) == (False, word)
    won = environment.step(word)
    assert (won.reward, won.success, won.valid) == (0.5, True, True)
    del sys.modules["echoing"]


def test_fuzzed_actions_change_nothing() -> None:
    environment, rng = lake(), Random(0)
    before = environment.reset(seed(1))
    for said in ("", "a" * 100_000, "\ud800", "<action>" * 1000, "\0\x1b[2J", "看", "0", "left right"):
        transition = environment.step(said)
        assert (transition.valid, transition.observation, transition.done) == (False, before, False)
    for _ in range(500):
        if environment.step(rng.choice(["up", "down", "\0"])).done:
            environment.reset(seed(1))
    assert environment.reset(seed(1)) == before


def test_close_closes_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    played = "gymnasium.envs.toy_text.frozen_lake.FrozenLakeEnv"
    monkeypatch.setattr(f"{played}.close", lambda env: closed.append(env))
    environment, fresh = lake(), lake()
    environment.reset(seed(0))
    environment.close()
    environment.close()
    assert len(closed) == 1
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("left")
    fresh.close()
    assert len(closed) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "Nowhere-v0"}, "environment.options.id Nowhere-v0: .*doesn't exist"),
        ({"id": "CartPole-v1"}, r"CartPole-v1: Box\(.*is not text; wrap it, or set options.show to render"),
        ({"id": "FrozenLake-v1", "show": "map"}, "options.show map: FrozenLake-v1 has no such entry"),
        ({"id": "FrozenLake-v1", "actions": ["left"]}, "environment.options.actions: 1 names for 4 actions"),
        ({"id": "FrozenLake-v1", "arguments": {"depth": 3}}, "FrozenLake-v1: .*depth"),
    ],
)
def test_an_unplayable_environment_is_a_one_line_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        GymnasiumEnvironment(**options)


def test_a_missing_package_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.adapters import required

    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(EnvError, match=r"pip install 'gigpo-mega\[gymnasium\]'"):
        required("gymnasium", "gymnasium")
