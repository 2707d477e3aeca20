"""How answers become actions, rule by rule, and what the generic dialogues show."""

from __future__ import annotations

import pytest

from envs.base import EnvError, EnvironmentKind, Observation
from envs.dialogue import GENERIC, Answer, Situation, Turn, choose, parse_tagged, parse_whole
from envs.registry import lookup

THOUGHT = "<think>The mug is on the desk.</think>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{THOUGHT}<action>Go To Desk 1</action>", Answer("go to desk 1", True)),
        (f"{THOUGHT}\n<ACTION> look </Action> and more", Answer("look", True)),
        (f"{THOUGHT}<action>a</action><action>b</action>", Answer("a", True)),
        ("<action>look</action>", Answer("look", False)),
        ("<think>hm<action>look</action>", Answer("look", False)),
        ("<THINK>hm</THINK><action>look</action>", Answer("look", False)),
        (f"{THOUGHT}<action>look", Answer(" the desk.</think><action>look", False)),
        ("I would TAKE the mug from the desk now", Answer("take the mug from the desk now", False)),
        (f"{THOUGHT[:-8]}看</think><action>look</action>", Answer("look", False)),
        (f"{THOUGHT}</action><action>look", Answer("", True)),  # as the reference has it
        ("", Answer("", False)),
    ],
)
def test_a_tagged_action_is_lower_cased_and_needs_a_thought(answer: str, expected: Answer) -> None:
    assert parse_tagged(answer, ended=True) == expected


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        (" go to desk 1 \n", True, Answer("go to desk 1", True)),
        (" go to desk", False, Answer("go to desk", False)),
        ("  ", True, Answer("", False)),
    ],
)
def test_a_whole_answer_cut_off_or_empty_is_invalid(answer: str, ended: bool, expected: Answer) -> None:
    assert parse_whole(answer, ended) == expected


def test_a_shorter_fallback_sends_fewer_characters() -> None:
    assert parse_tagged("I would TAKE the mug", True, fallback=7) == Answer("the mug", valid=False)


@pytest.mark.parametrize("environment", [None, "alfworld"])
@pytest.mark.parametrize("name", ["chat", "compact"])
def test_cloning_targets_are_parsed_as_their_action(environment: str | None, name: str) -> None:
    dialogue = choose(lookup(environment), name) if environment else GENERIC[name]
    answer = dialogue.answer("take mug 1 from desk 1")
    assert dialogue.read(answer, True) == Answer("take mug 1 from desk 1", valid=True)


PAGE = Observation("a page", ("open", "close"), "find it")
LATER = Situation("find it", Observation("a box"), (Turn(PAGE, "open"),), step=3)


def test_a_generic_message_contains_task_history_and_admissible_actions() -> None:
    first = GENERIC["chat"].prompt(Situation("find it", PAGE))
    assert first.startswith("\nYour task is: find it\nYour current observation is: a page\n")
    assert "current situation are: ['open', 'close']." in first
    assert "[Observation" not in first
    later = GENERIC["chat"].prompt(LATER)
    assert "already taken 3 step(s)" in later
    assert "[Observation 3: 'a page', Action 3: 'open']" in later
    assert "admissible" not in later
    assert GENERIC["chat"].reply(LATER) == "a box"


def test_the_generic_compact_prompt_shows_the_first_observation() -> None:
    assert GENERIC["compact"].prompt(Situation("find it", PAGE)) == (
        "Task: find it\na page\nCan: open, close\n>"
    )
    assert GENERIC["compact"].prompt(LATER) == "Task: find it\na page\n> open\na box\n>"
    assert GENERIC["compact"].reply(LATER) == "\na box\n>"


def test_an_environments_own_dialogue_comes_first() -> None:
    def unused() -> None: ...

    own = EnvironmentKind(unused, unused, dialogues={"chat": GENERIC["compact"]})  # pyright: ignore[reportArgumentType]
    assert choose(own, "chat") is GENERIC["compact"]
    with pytest.raises(EnvError, match=r"unknown dialogue 'loud'; known: chat, compact"):
        choose(own, "loud")
