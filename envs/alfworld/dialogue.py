"""The paper's messages about ALFWorld (arXiv 2505.10978, as verl-agent words them), and a compact form."""

from __future__ import annotations

import re

from envs.base import Observation
from envs.dialogue import Dialogue, Situation, compact, in_tags, tagged

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

# Always possible and never needed: left out of the compact prompt, still accepted by the environment.
_UNHELPFUL = re.compile(r"(help|inventory|look)$|examine ")


def prompt(situation: Situation) -> str:
    """A message without history first; later ones with the task, the step count and the last turns."""
    if not situation.history:
        return _first(situation)
    return _LATER.format(
        instruction=situation.instruction,
        step=situation.step,
        window=len(situation.history),
        history="\n".join(
            f"[Observation {i}: '{turn.observation.text}', Action {i}: '{turn.action}']"
            for i, turn in enumerate(situation.history, start=situation.first_shown + 1)
        ),
        now=situation.step + 1,
        observation=situation.observation.text,
        admissible=_admissible(situation.observation),
        request=_REQUEST,
    )


def reply(situation: Situation) -> str:
    """The next message where the conversation already holds the past."""
    seen = situation.observation
    return _REPLY.format(observation=seen.text, admissible=_admissible(seen), request=_REQUEST)


def _first(situation: Situation) -> str:
    text = situation.observation.text
    if situation.instruction not in text:  # the first observation says it itself
        text += f"\nYour task is to: {situation.instruction}"
    return _FIRST.format(observation=text, admissible=_admissible(situation.observation), request=_REQUEST)


def _admissible(observation: Observation) -> str:
    return "\n ".join(f"'{action}'" for action in observation.admissible if action != "help")


DIALOGUES = {
    "chat": Dialogue(prompt, reply, tagged, in_tags),
    "compact": compact(unhelpful=_UNHELPFUL, scene=False),
}
