"""What a request asks for, or why it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gigpo_mega.rollout.chat_template import Message

_ROLES = ("system", "developer", "user", "assistant", "tool")
_USED = frozenset({
    "model", "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "anchor",
})  # fmt: skip
OVERRULED = ("temperature", "top_p", "seed")  # the run samples as its configuration says
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
)
_ONLY: Mapping[str, Any] = {  # the value that means what happens anyway
    "n": 1, "stream": False, "parallel_tool_calls": True, "frequency_penalty": 0, "presence_penalty": 0,
    "logprobs": False, "logit_bias": {}, "stop": [], "response_format": {"type": "text"},
}  # fmt: skip
_REASONS = {
    "n": "make one call for each answer",
    "stream": "answers come whole",
    "tool_choice": "the policy chooses; give auto or none",
    "parallel_tool_calls": "the policy chooses",
}


class Refusal(Exception):
    """A request that gets no answer."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def payload(self) -> dict[str, Any]:
        """The body of the reply, in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "code": self.code, "param": self.param},
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One model call of an agent; two that mean the same to the chat template are equal."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    max_tokens: int | None = None
    anchor: str | None = None  # canonical text of the state that the agent acts in
    overruled: tuple[str, ...] = ()  # fields that the run decides, as the agent set them

    @property
    def seen(self) -> str:
        """The last message that is not the assistant's: what the answer answers."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] != "assistant"), "")


def read_body(body: bytes) -> ChatRequest:
    """The request in `body`; raises Refusal."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {str(error)[:80]}") from None
    if not isinstance(found, dict):
        raise Refusal(f"the body must be a mapping, not {_kind(found)}")
    given = {name: value for name, value in found.items() if value is not None}
    _check_fields(given)
    tools = tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(_list(given, "tools")))
    messages = tuple(read_message(f"messages[{i}]", m) for i, m in enumerate(_list(given, "messages")))
    if not messages:
        raise Refusal("messages is empty", param="messages")
    return ChatRequest(
        _text(given, "model", "") or "",
        messages,
        () if given.get("tool_choice") == "none" else tools,
        _limit(given),
        _text(given, "anchor", None),
        tuple(f"{name} {given[name]!r:.20}" for name in OVERRULED if name in given),
    )


def read_message(place: str, found: Any) -> Message:
    """A message with nothing but what templates read: the same for every way to write it."""
    if not isinstance(found, dict):
        raise Refusal(f"{place} must be a mapping, not {_kind(found)}", param=place)
    given = {name: value for name, value in found.items() if value not in (None, [])}
    role = given.pop("role", None)
    if role not in _ROLES:
        raise Refusal(f"{place}.role is {role!r:.40}; it must be one of {', '.join(_ROLES)}", param=place)
    message: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": _content(place, given.pop("content", "")),
    }
    if role == "assistant" and "tool_calls" in given:
        calls = _list(given, "tool_calls", place)
        message["tool_calls"] = [_call(f"{place}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
        del given["tool_calls"]
    for name in ("tool_call_id", "name"):
        if name in given:
            message[name] = _text(given, name, "", place)
            del given[name]
    if given:
        raise Refusal(f"{place}.{next(iter(given))!s:.40} is not supported", param=place)
    return message


def _check_fields(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        accepted = ("auto", "none") if name == "tool_choice" else (_ONLY.get(name),)
        if name in (*_WITHOUT_EFFECT, *OVERRULED) or (name in _USED and name != "tool_choice"):
            continue
        if value not in accepted:
            reason = _REASONS.get(name, "answers are sampled as the run's configuration says")
            raise Refusal(f"{name!s:.40} {value!r:.40} is not supported: {reason}", param=str(name)[:40])


def _tool(place: str, found: Any) -> Message:
    function = found.get("function") if isinstance(found, dict) else None
    if not isinstance(function, dict) or found.get("type", "function") != "function":
        raise Refusal(f"{place} must be of type function, with a function", param=place)
    if not _text(function, "name", "", place):
        raise Refusal(f"{place}.function.name is missing", param=place)
    return {"type": "function", "function": function}


def _call(place: str, found: Any) -> dict[str, Any]:
    """A tool call; arguments that are a JSON mapping become one, as templates expect them."""
    function = found.get("function") if isinstance(found, dict) else None
    if not isinstance(function, dict):
        raise Refusal(f"{place} must have a function", param=place)
    text = _text(function, "arguments", "{}", place) or ""
    try:
        arguments: Any = json.loads(text)
    except (ValueError, RecursionError):
        arguments = text
    return {
        "id": _text(found, "id", "", place),
        "type": "function",
        "function": {
            "name": _text(function, "name", "", place),
            "arguments": arguments if isinstance(arguments, dict) else text,
        },
    }


def _content(place: str, found: Any) -> str:
    """The text of a content; parts of text are joined."""
    if isinstance(found, str):
        return found
    parts: list[Any] = found if isinstance(found, list) else [found]
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(f"{place}.content must be text, or a list of parts of type text", param=place)
    return "".join(map(str, texts))


def _limit(given: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = given.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Refusal(f"{name} is {value!r:.40}; it must be an integer >= 1", param=name)
            return value
    return None


def _list(given: Mapping[str, Any], name: str, place: str = "") -> Sequence[Any]:
    value = given.get(name, [])
    if not isinstance(value, list):
        raise Refusal(f"{place}{name} must be a list, not {_kind(value)}", param=name)
    return value


def _text(given: Mapping[str, Any], name: str, default: str | None, place: str = "") -> str | None:
    value = given.get(name, default)
    if value is not default and not isinstance(value, str):
        raise Refusal(f"{place}{place and '.'}{name} must be text, not {_kind(value)}", param=name)
    return value


def _kind(value: object) -> str:
    return type(value).__name__
