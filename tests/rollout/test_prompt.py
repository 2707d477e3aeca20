"""Prompts: both templates, the history window, truncation; the tokenizer behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from words import CHAT, write_tokenizer

from envs.base import Observation
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.prompt import EpisodePrompt, PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer

ROOM = "You are in the middle of a room.\n\nYour task is to: put a mug in desk."
FIRST = Observation(ROOM, ("go to desk 1", "help", "inventory", "look"), "put a mug in desk.")


def seen(number: int) -> Observation:
    return Observation(f"obs {number}", (f"take mug {number}", "examine mug 1", "help", "look"))


def builder(tmp_path: Path, template: str, history: int = 2, limit: int = 4096) -> PromptBuilder:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", CHAT))
    config = EnvironmentConfig(prompt=template, history=history)  # pyright: ignore[reportArgumentType]
    return PromptBuilder(config, tokenizer, limit)


def after(prompts: PromptBuilder, steps: int) -> EpisodePrompt:
    episode = prompts.start(FIRST)
    for step in range(1, steps + 1):
        episode.advance(f"act {step}", seen(step))
    return episode


def test_compact(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "compact")
    assert prompts.render(after(prompts, 0)) == "Task: put a mug in desk.\nStart.\nCan: go to desk 1\n>"
    assert prompts.render(after(prompts, 1)) == (
        "Task: put a mug in desk.\nStart.\n> act 1\nobs 1\nCan: take mug 1\n>"
    )
    assert prompts.render(after(prompts, 3)) == (
        "Task: put a mug in desk.\nobs 1\n> act 2\nobs 2\n> act 3\nobs 3\nCan: take mug 3\n>"
    )


def test_compact_without_admissible_actions_shows_the_scene(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "compact", history=0)
    episode = prompts.start(Observation("a page", instruction="buy a mug"))
    assert prompts.render(episode) == "Task: buy a mug\na page\n>"


def test_alfworld_first_step(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "alfworld")
    text = prompts.render(after(prompts, 0))
    assert f"Your current observation is: {ROOM}\n" in text
    assert "[Observation" not in text
    assert "situation are: ['go to desk 1'\n 'inventory'\n 'look']." in text
    assert "<think> </think>" in text
    assert "<action> </action>" in text


def test_alfworld_later_steps_count_and_remember(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "alfworld")
    text = prompts.render(after(prompts, 3))
    assert "Your task is to: put a mug in desk." in text
    assert "already taken 3 step(s)" in text
    assert "the most recent 2 observations" in text
    assert (
        "[Observation 2: 'obs 1', Action 2: 'act 2']\n[Observation 3: 'obs 2', Action 3: 'act 3']\n" in text
    )
    assert "You are now at step 4 and your current observation is: obs 3" in text
    one = prompts.render(after(prompts, 1))
    assert f"[Observation 1: '{ROOM}', Action 1: 'act 1']" in one


def test_alfworld_without_history_repeats_the_task(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "alfworld", history=0)
    assert "obs 2\nYour task is to: put a mug in desk." in prompts.render(after(prompts, 2))


def test_the_chat_template_wraps_the_message(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", CHAT))
    assert tokenizer.chat("a c") == [2, 4, 6, 3]


def test_a_long_prompt_loses_its_oldest_tokens(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "compact", limit=5)
    full = builder(tmp_path, "compact")
    episode = after(prompts, 3)
    ids = full.encode(episode)
    assert len(ids) > 5
    assert prompts.encode(episode) == ids[-5:]
    assert (prompts.truncated, full.truncated) == (1, 0)


def test_a_custom_tokenizer_survives_the_model_type_qwen2(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "go to desk"))
    assert tokenizer.encode("go to desk") == [4, 5, 6]
    assert tokenizer.decode([4, 5, 6, 1]) == "go to desk"
    assert tokenizer.stop_token_ids == (1,)
    assert len(tokenizer) == 7


def test_stop_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "a")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 1]}))
    assert Tokenizer(tmp_path).stop_token_ids == (1, 3)


def test_bad_tokenizers_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path: .* has no tokenizer.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"model.path: .*tokenizer.json is no tokenizer"):
        Tokenizer(tmp_path)
    without_chat = Tokenizer(write_tokenizer(tmp_path, "a"))
    with pytest.raises(UserError, match=r"environment.prompt alfworld needs a chat template"):
        without_chat.chat("a")
