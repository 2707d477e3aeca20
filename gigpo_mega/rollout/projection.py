"""From the text of an answer to the action that the environment is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

FALLBACK_CHARACTERS = 30
_CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Projected:
    """An action, and whether the answer had the form that was asked for."""

    action: str
    valid: bool


def tagged(answer: str, finished: bool) -> Projected:
    """The paper's rule: the lower-cased text between the first <action> and the first </action>.

    Invalid where either tag, <think> or </think> is missing, or where a Chinese character occurs. Without an
    action the last 30 characters are sent. Source: verl-agent, `alfworld_projection`.
    """
    del finished
    text = answer.lower()
    start, end = text.find("<action>"), text.find("</action>")
    if start < 0 or end < 0:
        return Projected(text[-FALLBACK_CHARACTERS:], valid=False)
    action = text[start + len("<action>") : end].strip()
    thought = "<think>" in answer and "</think>" in answer
    return Projected(action, valid=thought and _CJK.search(answer) is None)


def plain(answer: str, finished: bool) -> Projected:
    """The whole answer is the action; invalid where it is empty or was cut off before it ended."""
    action = answer.strip()
    return Projected(action, valid=bool(action) and finished)


PROJECTIONS = {"tagged": tagged, "plain": plain}

# The other way: an answer from which the projection takes `action`; what cloning teaches.
ANSWERS: dict[str, Callable[[str], str]] = {
    "tagged": lambda action: f"<think> </think>\n<action> {action} </action>",
    "plain": lambda action: f" {action}",
}
