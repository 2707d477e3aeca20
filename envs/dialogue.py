"""Prompt formats and action parsing.

An environment may define a `Dialogue` of its own under a name (`EnvironmentKind.dialogues`). GENERIC has one
for a chat model and one for a small policy trained from scratch; both work with any environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from envs.base import EnvError, EnvironmentKind, Observation

FALLBACK_CHARACTERS = 30
_CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One past exchange."""

    observation: Observation
    action: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when the policy is asked for an action."""

    instruction: str
    observation: Observation
    history: tuple[Turn, ...] = ()  # the last turns, oldest first; as many as prompt.history says
    step: int = 0  # actions taken so far

    @property
    def first_shown(self) -> int:
        """Index of the oldest turn in `history`, counted from 0."""
        return self.step - len(self.history)

    def turns(self, separator: str = "\n", shown: Callable[[Observation], str] = attrgetter("text")) -> str:
        """The turns in `history` as the paper's prompts put them, numbered from 1."""
        return separator.join(
            f"[Observation {i}: '{shown(turn.observation)}', Action {i}: '{turn.action}']"
            for i, turn in enumerate(self.history, start=self.first_shown + 1)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer: the action, and whether it had the requested form."""

    action: str
    valid: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A prompt format together with the parser of its answers."""

    prompt: Callable[[Situation], str]  # prompt.context window: the whole prompt of a step
    reply: Callable[[Situation], str]  # prompt.context append: what follows the last answer
    read: Callable[[str, bool], Answer]  # (text, whether generation stopped by itself) -> action
    answer: Callable[[str], str]  # action -> a text that `read` parses as it; the target of cloning
    chat: bool = True  # whether `prompt` and `reply` are messages in the model's chat template
    tools: Sequence[Mapping[str, Any]] = ()  # that it shows, in OpenAI's form
    reply_role: Literal["user", "tool"] = "user"


def choose(kind: EnvironmentKind, name: str) -> Dialogue:
    """The dialogue `name` of an environment, its own or a generic one; raises EnvError if there is none."""
    known: Mapping[str, Dialogue] = {**GENERIC, **kind.dialogues}
    if name not in known:
        raise EnvError(f"prompt.dialogue: unknown dialogue {name!r}; known: {', '.join(known)}")
    return known[name]


def parse_tagged(text: str, ended: bool, fallback: int = FALLBACK_CHARACTERS) -> Answer:
    """The paper's rule: the lower-cased text between the first <action> and the first </action>.

    Invalid if either tag, <think> or </think> is missing, or if a Chinese character occurs. Without the tags
    the action is the last `fallback` characters. Source: verl-agent, `alfworld_projection`.
    """
    del ended
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    if start < 0 or end < 0:
        return Answer(lowered[-fallback:], valid=False)
    action = lowered[start + len("<action>") : end].strip()
    thought = "<think>" in text and "</think>" in text
    return Answer(action, valid=thought and _CJK.search(text) is None)


def format_tagged(action: str) -> str:
    """An answer with an empty thought that `parse_tagged` reads as `action`."""
    return f"<think> </think>\n<action> {action} </action>"


def parse_whole(text: str, ended: bool) -> Answer:
    """The whole text is the action; invalid if it is empty or was cut off."""
    action = text.strip()
    return Answer(action, valid=bool(action) and ended)


_CHAT = """
{task}{past}
Your current observation is: {observation}
{choices}
Now it's your turn to take an action.
You should first reason step-by-step about the current situation. \
This reasoning process MUST be enclosed within <think> </think> tags.
Once you've finished your reasoning, you should choose an action for current step \
and present it within <action> </action> tags.
"""


def chat_prompt(situation: Situation) -> str:
    """A chat message in the wording of the paper's prompts, for environments without their own."""
    past = ""
    if situation.history:
        past = (
            f"\nPrior to this step, you have already taken {situation.step} step(s). Below are the most "
            f"recent {len(situation.history)} observations and the corresponding actions you took: "
            + situation.turns(" ")
        )
    return _CHAT.format(
        task=f"Your task is: {situation.instruction}" if situation.instruction else "You are an agent.",
        past=past,
        observation=situation.observation.text,
        choices=_choices(situation.observation),
    )


def chat_reply(situation: Situation) -> str:
    """The next message of a growing conversation: the observation and the admissible actions."""
    return f"{situation.observation.text}\n{_choices(situation.observation)}".rstrip()


def _choices(observation: Observation) -> str:
    if not observation.admissible:
        return ""
    listed = ", ".join(f"'{action}'" for action in observation.admissible)
    return f"Your admissible actions of the current situation are: [{listed}]."


def compact(*, unhelpful: re.Pattern[str] | None = None, scene: bool = True) -> Dialogue:
    """A dialogue of few tokens for small policies: lines of plain text; the answer is the action itself.

    Admissible actions that `unhelpful` matches are not listed. Without `scene` the text of the first
    observation is left out if its admissible actions are listed anyway.
    """

    def shown(observation: Observation, step: int) -> str:
        return "Start." if not scene and step == 0 and observation.admissible else observation.text

    def current(situation: Situation) -> list[str]:
        lines, admissible = [shown(situation.observation, situation.step)], situation.observation.admissible
        if admissible:
            listed = (action for action in admissible if not (unhelpful and unhelpful.match(action)))
            lines.append("Can: " + ", ".join(listed))
        return [*lines, ">"]

    def prompt(situation: Situation) -> str:
        lines = [f"Task: {situation.instruction}"]
        for step, turn in enumerate(situation.history, start=situation.first_shown):
            lines += [shown(turn.observation, step), f"> {turn.action}"]
        return "\n".join([*lines, *current(situation)])

    def reply(situation: Situation) -> str:
        return "\n".join(["", *current(situation)])

    return Dialogue(prompt, reply, parse_whole, lambda action: f" {action}", chat=False)


GENERIC: Mapping[str, Dialogue] = {
    "chat": Dialogue(chat_prompt, chat_reply, parse_tagged, format_tagged),
    "compact": compact(),
}
