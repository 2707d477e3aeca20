"""The paper's messages about WebShop (arXiv 2505.10978, as verl-agent words them), and a compact form."""

from __future__ import annotations

import re
from functools import partial

from envs.base import Observation
from envs.dialogue import Dialogue, Situation, in_tags, tagged, whole
from envs.webshop.environment import shown
from envs.webshop.pages import SEPARATOR

LONGEST = 13_000  # characters; a longer message loses its history
FALLBACK_CHARACTERS = 20

# The paper's prompts spell e-commerce with a non-breaking hyphen.
_FIRST = """
You are an expert autonomous agent operating in the WebShop e\u2011commerce environment. 
Your task is to: {instruction}.
Your current observation is: {observation}.
Your admissible actions of the current situation are: 
[
{admissible}
].
{request}"""

_LATER = """
You are an expert autonomous agent operating in the WebShop e\u2011commerce environment.
Your task is to: {instruction}.
Prior to this step, you have already taken {step} step(s). Below are the most recent {window} observations \
and the corresponding actions you took: {history}
You are now at step {now} and your current observation is: {observation}.
Your admissible actions of the current situation are: 
[
{admissible}
].
{request}"""

_REPLY = """
Your current observation is: {observation}.
Your admissible actions of the current situation are:
[
{admissible}
].
{request}"""

_REQUEST = """
Now it's your turn to take one action for the current step.
You should first reason step-by-step about the current situation, then think carefully which admissible \
action best advances the shopping goal. This reasoning process MUST be enclosed within <think> </think> tags. 
Once you've finished your reasoning, you should choose an admissible action for current step \
and present it within <action> </action> tags.
"""


def prompt(situation: Situation) -> str:
    """A message without history first; later ones with the task, the step count and the last turns."""
    seen = situation.observation
    first = _FIRST.format(
        instruction=situation.instruction,
        observation=_page(seen, situation),
        admissible=_admissible(seen),
        request=_REQUEST,
    )
    if not situation.history:
        return first
    later = _LATER.format(
        instruction=situation.instruction,
        step=situation.step,
        window=len(situation.history),
        history="\n".join(
            f"[Observation {i}: '{_page(turn.observation, situation)}', Action {i}: '{turn.action}']"
            for i, turn in enumerate(situation.history, start=situation.first_shown + 1)
        ),
        now=situation.step + 1,
        observation=_page(seen, situation),
        admissible=_admissible(seen),
        request=_REQUEST,
    )
    return later if len(later) <= LONGEST else first


def reply(situation: Situation) -> str:
    """The next message where the conversation already holds the past."""
    seen = situation.observation
    return _REPLY.format(observation=_page(seen, situation), admissible=_admissible(seen), request=_REQUEST)


def _page(observation: Observation, situation: Situation) -> str:
    return shown(observation.text, situation.instruction)


def _admissible(observation: Observation) -> str:
    return "\n".join(f"'{action}'," for action in observation.admissible)


_PARTS = re.compile(r"page \d+ \(total results: \d+\)|rating: .*")
_BUTTONS = frozenset(("back to search", "< prev", "next >", "description", "features", "reviews", "buy now"))


def compact_prompt(situation: Situation) -> str:
    """Lines of plain text: the task, the actions so far that are still shown, and the page."""
    past = [f"> {turn.action}" for turn in situation.history]
    task = situation.instruction.lower().removeprefix("find me ").replace("and price lower than", "under")
    return "\n".join([f"Task: {task.removesuffix(' dollars')}", *past, *_lines(situation), ">"])


def compact_reply(situation: Situation) -> str:
    """What follows the last action where the conversation already holds the past."""
    return "\n" + "\n".join([*_lines(situation), ">"])


def _lines(situation: Situation) -> list[str]:
    """The page without its buttons, in lower case, a listed product a line."""
    text, told = situation.observation.text, situation.instruction.strip()
    parts = text.split(SEPARATOR)
    after = parts[parts.index(told) + 1 :] if told in parts else parts
    kept = [part for part in map(str.lower, after) if part not in _BUTTONS and not _PARTS.fullmatch(part)]
    if "Total results" in text:
        return [" ".join(kept[i : i + 3]) for i in range(0, len(kept), 3)] or ["nothing"]
    if after[-1:] == ["Buy Now"]:
        *options, title, price = kept
        return [title, ", ".join(options), price]
    return kept


DIALOGUES = {
    "chat": Dialogue(prompt, reply, partial(tagged, fallback=FALLBACK_CHARACTERS), in_tags),
    "compact": Dialogue(compact_prompt, compact_reply, whole, lambda action: f" {action}", chat=False),
}
