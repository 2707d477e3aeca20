"""A sampled text as an assistant's message: its tool calls, and whether it is well formed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TAG = re.compile(r"</?tool_call>")


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant's message in OpenAI's form."""

    message: dict[str, Any]
    finish: str
    valid: bool  # it ended by itself, and its tool calls, if any, can be read


def read_answer(text: str, ended: bool, tools: Collection[str], number: int) -> Answer:
    """The answer `text` to call `number` of an episode; `ended`: it was not cut off.

    Tool calls have the form of Hermes and Qwen, <tool_call>{"name": ..., "arguments": {...}}</tool_call>,
    and end the message. If one is not of the `tools` or cannot be read, all is content, and invalid.
    """
    said, calls = text, list[dict[str, Any]]()
    readable = not tools or _TAG.search(text) is None
    if not readable:
        before, tag, rest = text.partition("<tool_call>")
        found = [_call(block, tools) for block in _CALL.findall(tag + rest)]
        readable = bool(found) and None not in found and not _CALL.sub("", tag + rest).strip()
        if readable and _TAG.search(before) is None:
            said = before.strip()
            calls = [
                {"id": f"call_{number}_{i}", "type": "function", "function": call}
                for i, call in enumerate(found)
            ]
        else:
            readable = False
    message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None}
    if calls:
        message["tool_calls"] = calls
    finish = "length" if not ended else "tool_calls" if calls else "stop"
    return Answer(message, finish, readable and ended)


def _call(text: str, tools: Collection[str]) -> dict[str, str] | None:
    """Name and arguments of a call, the latter as JSON again; None if it cannot be read."""
    try:
        found: Any = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
        return None
    name, arguments = found["name"], found["arguments"]
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    return {"name": name, "arguments": json.dumps(arguments)}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
