"""The paper's ALFWorld prompts (arXiv 2505.10978, in verl-agent's wording), and a compact format."""

from __future__ import annotations

import re

from envs.base import Observation
from envs.dialogue import Dialogue, Situation, compact, format_tagged, parse_tagged

_FIRST = """
You are an expert agent operating in the ALFRED Embodied Environment.
Your current observation is: {observation}
Your admissible actions of the current situation are: [{admissible}].
{request}"""

_LATER = """
You are an expert agent operating in the ALFRED Embodied Environment. Your task is to: {instruction}
Prior to this step, you have already taken {step} step(s). Below are the most recent {window} observations \
and the corresponding actions you took: {history}
You are now at step {now} and your current observation is: {observation}
Your admissible actions of the current situation are: [{admissible}].
{request}"""

_REPLY = """
Your current observation is: {observation}
Your admissible actions of the current situation are: [{admissible}].
{request}"""

_REQUEST = """
Now it's your turn to take an action.
You should first reason step-by-step about the current situation. \
This reasoning process MUST be enclosed within <think> </think> tags.
Once you've finished your reasoning, you should choose an admissible action for current step \
and present it within <action> </action> tags.
"""

# Always possible and never needed: omitted from the compact prompt, still accepted by the environment.
_UNHELPFUL = re.compile(r"(help|inventory|look)$|examine ")


def prompt(situation: Situation) -> str:
    """At first a message without history; later one with the task, the step count and the last turns."""
    if not situation.history:
        text = situation.observation.text
        if situation.instruction not in text:  # the first observation of an episode contains it
            text += f"\nYour task is to: {situation.instruction}"
        return _FIRST.format(
            observation=text, admissible=_admissible(situation.observation), request=_REQUEST
        )
    return _LATER.format(
        instruction=situation.instruction,
        step=situation.step,
        window=len(situation.history),
        history=situation.turns(),
        now=situation.step + 1,
        observation=situation.observation.text,
        admissible=_admissible(situation.observation),
        request=_REQUEST,
    )


def reply(situation: Situation) -> str:
    """The next message of a conversation that already contains the past."""
    seen = situation.observation
    return _REPLY.format(observation=seen.text, admissible=_admissible(seen), request=_REQUEST)


def _admissible(observation: Observation) -> str:
    return "\n ".join(f"'{action}'" for action in observation.admissible if action != "help")


DIALOGUES = {
    "chat": Dialogue(prompt, reply, parse_tagged, format_tagged),
    "compact": compact(unhelpful=_UNHELPFUL, scene=False),
}
