"""The adapter to skyrl-gym, against its own environments; skipped if the package is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("skyrl_gym")
pytest.importorskip("omegaconf")

from envs.adapters.skyrl_gym import KIND, SkyRLGymEnvironment
from envs.base import EnvError, Task
from envs.dialogue import Situation, Turn, choose

ROW: dict[str, Any] = {
    "data_source": "sums",
    "env_class": "gsm8k_multi_turn",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 2 + 3?"}],
    "reward_spec": {"method": "rule", "ground_truth": "5"},
    "extra_info": {"max_turns": 3},
}


def task(row: dict[str, Any] = ROW) -> Task:
    return Task("train/0", "sums", json.dumps(row))


def test_rows_are_tasks(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    tasks = KIND.tasks(data=str(tmp_path)).tasks("train")
    assert [(t.id, t.kind) for t in tasks] == [("train/0", "sums"), ("train/1", "sums")]
    assert SkyRLGymEnvironment().reset(tasks[1]).text == "Think.\n\nWhat is 2 + 3?"
    with pytest.raises(EnvError, match=r"there is no .*test.jsonl and no test.parquet"):
        KIND.tasks(data=str(tmp_path)).tasks("test")


@pytest.mark.parametrize("prompt", [None, "What?", [None], ["What?"], [{"role": "user"}], [{"content": 3}]])
def test_a_row_without_a_conversation_is_refused_with_file_and_line(tmp_path: Path, prompt: object) -> None:
    lines = (json.dumps(row) for row in (ROW, ROW | {"prompt": prompt}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(EnvError, match=r"train\.jsonl:2: prompt has .* must be a list of messages"):
        KIND.tasks(data=str(tmp_path)).tasks("train")


def test_an_episode_of_two_turns_pays_partial_and_full_reward() -> None:
    environment = SkyRLGymEnvironment()
    first = environment.reset(task())
    wrong = environment.step("I think\n#### 4")
    assert (round(wrong.reward, 4), wrong.done, wrong.success) == (round(0.2 / 3, 4), False, False)
    assert "tentative numeric answer" in wrong.observation.text
    right = environment.step("Ah.\n#### 5")
    assert (right.reward, right.done, right.success, right.observation.text) == (1.0, True, True, "")
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("#### 5")
    assert environment.reset(task()) == first


def test_the_environments_own_turn_limit_ends_an_episode() -> None:
    environment = SkyRLGymEnvironment(extras={"max_turns": 2})
    environment.reset(task())
    ends = [environment.step(said).done for said in ("", "看" * 50_000)]
    assert ends == [False, True]


def test_a_class_is_found_by_its_import_path() -> None:
    environment = SkyRLGymEnvironment("skyrl_gym.envs.aime.env:AIMEEnv")
    environment.reset(task({"prompt": ROW["prompt"], "reward_model": {"ground_truth": "5"}}))
    assert environment.step("Answer: \\boxed{5}").done
    with pytest.raises(EnvError, match=r"environment.options.id nothing: No registered env"):
        SkyRLGymEnvironment("nothing").reset(task())


def test_each_environment_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr("skyrl_gym.envs.base_text_env.BaseTextEnv.close", lambda env: closed.append(env))
    environment = SkyRLGymEnvironment()
    environment.close()
    assert closed == []
    environment.reset(task())
    environment.reset(task())
    assert len(closed) == 1
    for _ in range(2):
        environment.close()
        assert len(set(map(id, closed))) == len(closed) == 2
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("#### 5")
    assert environment.reset(task()).text == "Think.\n\nWhat is 2 + 3?"


def test_the_policys_whole_answer_is_the_action() -> None:
    dialogue = choose(KIND, "chat")
    environment = SkyRLGymEnvironment()
    first = environment.reset(task())
    said = "Let me see.\n#### 4"
    assert dialogue.read(said, True).action == said
    second = environment.step(said).observation
    situation = Situation(first.instruction, second, (Turn(first, said),), 1)
    assert dialogue.prompt(situation) == "\n\n".join([first.text, said, second.text])
    later = Situation(first.instruction, second, (Turn(second, said),), 2)
    assert dialogue.prompt(later) == "\n\n".join([first.text, second.text, said, second.text])
