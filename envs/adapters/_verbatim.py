"""Dialogues for environments that parse the policy's whole answer themselves."""

from __future__ import annotations

from envs.dialogue import Answer, Dialogue, Situation


def _unparsed(text: str, ended: bool) -> Answer:
    """The answer as it is; the environment decides what it means."""
    del ended
    return Answer(text, valid=bool(text.strip()))


def _shown(situation: Situation) -> str:
    return situation.observation.text


def _transcript(situation: Situation) -> str:
    """The instruction, the turns in the window and the observation; the very first holds the instruction."""
    first_shown = not situation.history or situation.first_shown == 0
    past = [part for turn in situation.history for part in (turn.observation.text, turn.action)]
    start = [] if first_shown else [situation.instruction]
    return "\n\n".join(part for part in [*start, *past, situation.observation.text] if part)


TRANSCRIPT = {
    "chat": Dialogue(_transcript, _shown, _unparsed, str),
    "compact": Dialogue(_transcript, _shown, _unparsed, str, chat=False),
}
"""The prompt is the instruction and the last turns."""

AS_SHOWN = {
    "chat": Dialogue(_shown, _shown, _unparsed, str),
    "compact": Dialogue(_shown, _shown, _unparsed, str, chat=False),
}
"""The observation is the whole prompt, history included."""
