"""Dialogues for environments that read the policy's whole answer themselves."""

from __future__ import annotations

from envs.dialogue import Answer, Dialogue, Situation


def _said(text: str, ended: bool) -> Answer:
    """The answer as it is; whether it means anything is the environment's to say."""
    del ended
    return Answer(text, valid=bool(text.strip()))


def _shown(situation: Situation) -> str:
    return situation.observation.text


def _transcript(situation: Situation) -> str:
    """The instruction, the turns that are shown, the observation; the first of all holds the instruction."""
    first_shown = not situation.history or situation.first_shown == 0
    said = [part for turn in situation.history for part in (turn.observation.text, turn.action)]
    start = [] if first_shown else [situation.instruction]
    return "\n\n".join(part for part in [*start, *said, situation.observation.text] if part)


TRANSCRIPT = {
    "chat": Dialogue(_transcript, _shown, _said, str),
    "compact": Dialogue(_transcript, _shown, _said, str, chat=False),
}
"""A window shows the instruction and the last turns."""

AS_SHOWN = {
    "chat": Dialogue(_shown, _shown, _said, str),
    "compact": Dialogue(_shown, _shown, _said, str, chat=False),
}
"""The observation is the whole prompt, history and all."""
