"""Prompts: ALFWorld's dialogues, the history window, growing conversations, truncation; the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from word_tokenizer import CHAT, write_tokenizer

from envs.alfworld.dialogue import DIALOGUES
from envs.base import Observation
from envs.dialogue import Situation, Turn
from gigpo_mega.config import PromptConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.prompt import EpisodePrompt, PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer

ROOM = "You are in the middle of a room.\n\nYour task is to: put a mug in desk."
FIRST = Observation(ROOM, ("go to desk 1", "help", "inventory", "look"), "put a mug in desk.")


def seen(number: int) -> Observation:
    return Observation(f"obs {number}", (f"take mug {number}", "examine mug 1", "help", "look"))


def builder(tmp_path: Path, name: str, history: int = 2, limit: int = 4096) -> PromptBuilder:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", CHAT))
    return PromptBuilder(PromptConfig(history=history), DIALOGUES[name], tokenizer, limit)


def shown(name: str, steps: int, history: int = 2) -> str:
    """What `name` shows after `steps` actions."""
    return DIALOGUES[name].prompt(situation(steps, history))


def situation(steps: int, history: int = 2) -> Situation:
    turns = tuple(Turn(FIRST if i == 0 else seen(i), f"act {i + 1}") for i in range(steps))
    return Situation(
        FIRST.instruction, seen(steps) if steps else FIRST, turns[-history:] if history else (), steps
    )


def after(prompts: PromptBuilder, steps: int) -> EpisodePrompt:
    episode = prompts.start(FIRST)
    for step in range(1, steps + 1):
        episode.advance(f"act {step}", seen(step))
    return episode


def test_compact() -> None:
    assert shown("compact", 0) == "Task: put a mug in desk.\nStart.\nCan: go to desk 1\n>"
    assert shown("compact", 1) == "Task: put a mug in desk.\nStart.\n> act 1\nobs 1\nCan: take mug 1\n>"
    assert shown("compact", 3) == (
        "Task: put a mug in desk.\nobs 1\n> act 2\nobs 2\n> act 3\nobs 3\nCan: take mug 3\n>"
    )


def test_the_first_message() -> None:
    text = shown("chat", 0)
    assert f"Your current observation is: {ROOM}\n" in text
    assert "[Observation" not in text
    assert "situation are: ['go to desk 1'\n 'inventory'\n 'look']." in text
    assert "<think> </think>" in text
    assert "<action> </action>" in text


def test_later_messages_count_and_remember() -> None:
    text = shown("chat", 3)
    assert "Your task is to: put a mug in desk." in text
    assert "already taken 3 step(s)" in text
    assert "the most recent 2 observations" in text
    assert (
        "[Observation 2: 'obs 1', Action 2: 'act 2']\n[Observation 3: 'obs 2', Action 3: 'act 3']\n" in text
    )
    assert "You are now at step 4 and your current observation is: obs 3" in text
    assert f"[Observation 1: '{ROOM}', Action 1: 'act 1']" in shown("chat", 1)


def test_without_history_the_task_is_repeated() -> None:
    assert "obs 2\nYour task is to: put a mug in desk." in shown("chat", 2, history=0)


@pytest.mark.parametrize("name", ["chat", "compact"])
@pytest.mark.parametrize("history", [0, 1, 3])
def test_an_episode_tells_the_dialogue_where_it_stands(tmp_path: Path, name: str, history: int) -> None:
    prompts = builder(tmp_path, name, history=history)
    for steps in range(5):
        assert after(prompts, steps).situation == situation(steps, history)


@pytest.mark.parametrize("name", ["chat", "compact"])
def test_a_growing_conversation_never_rewrites_a_token(tmp_path: Path, name: str) -> None:
    config = PromptConfig(context="append")
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "obs 1 2 3 take mug examine Can: > act", CHAT))
    episode = PromptBuilder(config, DIALOGUES[name], tokenizer, 4096).start(FIRST)
    before: list[int] = []
    for step in range(1, 4):
        ids = episode.ids()
        assert ids[: len(before)] == before
        said = [20 + step, 30 + step, 1]  # no text says these: nothing may be tokenised again
        before = [*ids, *said]
        episode.advance(f"act {step}", seen(step), said)
    last = tokenizer.decode(episode.ids()[len(before) :])
    assert "obs 3" in last.replace("'", " ")
    assert "obs 2" not in last


def test_a_conversation_goes_on_after_the_end_token(tmp_path: Path) -> None:
    chat = CHAT.replace("{% endfor %}", "<eos> {% endfor %}")
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", chat))
    assert tokenizer.chat("a") == [2, 4, 1, 3]
    assert tokenizer.chat_on(1, "b") == [2, 5, 1, 3]  # the answer ended with its own <eos>
    assert tokenizer.chat_on(5, "b") == [1, 2, 5, 1, 3]  # it was cut off, so the template's ends it


def test_observed_text_cannot_end_a_message(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", CHAT))
    assert tokenizer.chat("a <bot> c") == [2, 4, 0, 0, 6, 3]  # "< bot>": unknown words
    assert tokenizer.encode("a <eos>") == [4, 0, 0]
    assert tokenizer.chat_on(1, "<user>") == [2, 0, 0, 3]


def test_the_chat_template_wraps_the_message(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "a b c", CHAT))
    assert tokenizer.chat("a c") == [2, 4, 6, 3]


def test_a_long_prompt_loses_its_oldest_tokens(tmp_path: Path) -> None:
    prompts = builder(tmp_path, "compact", limit=5)
    full = builder(tmp_path, "compact")
    episode = after(prompts, 3)
    ids = full.encode(episode.situation)
    assert len(ids) > 5
    assert episode.ids() == ids[-5:]
    assert (prompts.truncated, full.truncated) == (1, 0)


def test_a_custom_tokenizer_survives_the_model_type_qwen2(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, "go to desk"))
    assert tokenizer.encode("go to desk") == [4, 5, 6]
    assert tokenizer.decode([4, 5, 6, 1]) == "go to desk"
    assert tokenizer.stop_token_ids == (1,)
    assert tokenizer.largest_id == 6


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
    with pytest.raises(UserError, match=r"prompt.dialogue chat needs a chat template"):
        without_chat.chat("a")
