"""How a policy is talked to about an environment, and how its answers become actions.

An environment may bring a `Dialogue` of its own under a name (`EnvironmentKind.dialogues`); GENERIC has one
for a chat model and one for a small policy trained from scratch, which serve any environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from envs.base import EnvironmentError, EnvironmentKind, Observation

FALLBACK_CHARACTERS = 30
_CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One past exchange."""

    observation: Observation
    action: str


@dataclass(frozen=True, slots=True)
class Situation:
    """Where an episode stands when the policy is asked."""

    instruction: str
    observation: Observation
    history: tuple[Turn, ...] = ()  # the last turns, oldest first; as many as environment.history says
    step: int = 0  # actions taken so far

    @property
    def first_shown(self) -> int:
        """Number of the oldest turn in `history`, counted from 0."""
        return self.step - len(self.history)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer comes to: the action, and whether it had the form that was asked for."""

    action: str
    valid: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A pair of conventions: what the policy is shown, and how it must answer."""

    prompt: Callable[[Situation], str]  # all that the policy sees, where every step is a fresh message
    reply: Callable[[Situation], str]  # what follows its last answer, where the conversation grows
    read: Callable[[str, bool], Answer]  # (text, whether it ended by itself) -> action
    answer: Callable[[str], str]  # a text that `read` takes for the action; what cloning teaches
    chat: bool = True  # whether `prompt` and `reply` are messages in the model's chat template


def choose(kind: EnvironmentKind, name: str) -> Dialogue:
    """The dialogue `name` of an environment, its own or the generic one; EnvironmentError for others."""
    known: Mapping[str, Dialogue] = {**GENERIC, **kind.dialogues}
    if name not in known:
        raise EnvironmentError(f"environment.dialogue: unknown dialogue {name!r}; known: {', '.join(known)}")
    return known[name]


def tagged(text: str, ended: bool, fallback: int = FALLBACK_CHARACTERS) -> Answer:
    """The paper's rule: the lower-cased text between the first <action> and the first </action>.

    Invalid where either tag, <think> or </think> is missing, or where a Chinese character occurs. Without an
    action the last `fallback` characters are sent. Source: verl-agent, `alfworld_projection`.
    """
    del ended
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    if start < 0 or end < 0:
        return Answer(lowered[-fallback:], valid=False)
    action = lowered[start + len("<action>") : end].strip()
    thought = "<think>" in text and "</think>" in text
    return Answer(action, valid=thought and _CJK.search(text) is None)


def in_tags(action: str) -> str:
    """An answer without a thought that `tagged` reads as `action`."""
    return f"<think> </think>\n<action> {action} </action>"


def whole(text: str, ended: bool) -> Answer:
    """The whole text is the action; invalid where it is empty or was cut off before it ended."""
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


def message(situation: Situation) -> str:
    """A message to a chat model in the words of the paper's prompts, for an environment without its own."""
    past = ""
    if situation.history:
        turns = (
            f"[Observation {i}: '{turn.observation.text}', Action {i}: '{turn.action}']"
            for i, turn in enumerate(situation.history, start=situation.first_shown + 1)
        )
        past = (
            f"\nPrior to this step, you have already taken {situation.step} step(s). Below are the most "
            f"recent {len(situation.history)} observations and the corresponding actions you took: "
            + " ".join(turns)
        )
    return _CHAT.format(
        task=f"Your task is: {situation.instruction}" if situation.instruction else "You are an agent.",
        past=past,
        observation=situation.observation.text,
        choices=_choices(situation.observation),
    )


def follow(situation: Situation) -> str:
    """The next message of a growing conversation: the observation and what may be done."""
    return f"{situation.observation.text}\n{_choices(situation.observation)}".rstrip()


def _choices(observation: Observation) -> str:
    if not observation.admissible:
        return ""
    listed = ", ".join(f"'{action}'" for action in observation.admissible)
    return f"Your admissible actions of the current situation are: [{listed}]."


def compact(*, unhelpful: re.Pattern[str] | None = None, scene: bool = True) -> Dialogue:
    """A dialogue of few tokens for small policies: lines of plain text, the answer is the action itself.

    Admissible actions that `unhelpful` matches are not listed. Without `scene` the first observation is left
    out where its admissible actions say the same.
    """
    render = partial(_compact, unhelpful=unhelpful, scene=scene)

    def reply(situation: Situation) -> str:
        return "\n" + "\n".join([*render(situation), ">"])

    def prompt(situation: Situation) -> str:
        return "\n".join(
            [f"Task: {situation.instruction}", *_past(situation, scene), *render(situation), ">"]
        )

    return Dialogue(prompt, reply, whole, lambda action: f" {action}", chat=False)


def _compact(situation: Situation, *, unhelpful: re.Pattern[str] | None, scene: bool) -> list[str]:
    lines = [_seen(situation.observation, situation.step, scene)]
    if situation.observation.admissible:
        listed = (a for a in situation.observation.admissible if not (unhelpful and unhelpful.match(a)))
        lines.append("Can: " + ", ".join(listed))
    return lines


def _past(situation: Situation, scene: bool) -> list[str]:
    lines: list[str] = []
    for step, turn in enumerate(situation.history, start=situation.first_shown):
        lines += [_seen(turn.observation, step, scene), f"> {turn.action}"]
    return lines


def _seen(observation: Observation, step: int, scene: bool) -> str:
    return "Start." if not scene and step == 0 and observation.admissible else observation.text


GENERIC: Mapping[str, Dialogue] = {
    "chat": Dialogue(message, follow, tagged, in_tags),
    "compact": compact(),
}
