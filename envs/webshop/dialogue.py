"""The paper's WebShop prompts (arXiv 2505.10978, in verl-agent's wording), and a compact format."""

from __future__ import annotations

import re
from functools import partial

from envs.base import Observation
from envs.dialogue import Answer, Dialogue, Situation, format_tagged, parse_tagged
from envs.webshop.environment import shown
from envs.webshop.pages import SEPARATOR
from envs.webshop.session import parse

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
    """At first a message without history; later one with the task, the step count and the last turns."""
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
        history=situation.turns(shown=lambda seen: _page(seen, situation)),
        now=situation.step + 1,
        observation=_page(seen, situation),
        admissible=_admissible(seen),
        request=_REQUEST,
    )
    return later if len(later) <= LONGEST else first


def reply(situation: Situation) -> str:
    """The next message of a conversation that already contains the past."""
    seen = situation.observation
    return _REPLY.format(observation=_page(seen, situation), admissible=_admissible(seen), request=_REQUEST)


def _page(observation: Observation, situation: Situation) -> str:
    return shown(observation.text, situation.instruction)


def _admissible(observation: Observation) -> str:
    return "\n".join(f"'{action}'," for action in observation.admissible)


_PARTS = re.compile(r"page \d+ \(total results: \d+\)|rating: .*")
_BUTTONS = frozenset(("back to search", "< prev", "next >", "description", "features", "reviews", "buy now"))
_PRICE = re.compile(r"\$?(\d+)\.\d+")
COMPACT_RESULTS = 5  # products of a result page that the compact format shows


def compact_prompt(situation: Situation) -> str:
    """Lines of plain text: the task, the last actions and the page."""
    past = [f">{compact_answer(turn.action)}" for turn in situation.history]
    task = situation.instruction.lower().removeprefix("find me ").removesuffix(" dollars")
    task = _whole_dollars(task.replace("and price lower than", "under"), "under ")
    return "\n".join([f"Task: {task}", *past, *_lines(situation), ">"])


def compact_reply(situation: Situation) -> str:
    """The page, for a conversation that already contains the past."""
    return "\n" + "\n".join([*_lines(situation), ">"])


def compact_read(text: str, ended: bool) -> Answer:
    """`search words` or `click text`, to which brackets are added; invalid if it was cut off."""
    verb, _, argument = text.strip().partition(" ")
    argument = argument.strip()
    return Answer(f"{verb}[{argument}]" if argument else "", valid=bool(argument) and ended)


def compact_answer(action: str) -> str:
    """The action without its brackets, so that its words are the same tokens as on the page."""
    verb, argument = parse(action)
    return f" {verb} {argument}" if verb else f" {action}"


def _whole_dollars(text: str, before: str = "") -> str:
    return re.sub(before + _PRICE.pattern, rf"{before}\1", text)


def _lines(situation: Situation) -> list[str]:
    """The page without buttons, in lower case, with prices in whole dollars, one line per listed product."""
    text, instruction = situation.observation.text, situation.instruction.strip()
    parts = text.split(SEPARATOR)
    after = parts[parts.index(instruction) + 1 :] if instruction in parts else parts
    kept = [part for part in map(str.lower, after) if part not in _BUTTONS and not _PARTS.fullmatch(part)]
    if "Total results" in text:
        shown = [kept[i : i + 3] for i in range(0, len(kept), 3)][:COMPACT_RESULTS]
        return [" ".join([*listed[:2], *map(_whole_dollars, listed[2:])]) for listed in shown] or ["nothing"]
    if after[-1:] == ["Buy Now"]:
        *options, title, price = kept
        return [title, ", ".join(options), _whole_dollars(price)]
    return kept


DIALOGUES = {
    "chat": Dialogue(prompt, reply, partial(parse_tagged, fallback=FALLBACK_CHARACTERS), format_tagged),
    "compact": Dialogue(compact_prompt, compact_reply, compact_read, compact_answer, chat=False),
}
