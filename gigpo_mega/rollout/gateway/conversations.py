"""Prompts of an agent's conversations: what was sampled stays token for token what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from gigpo_mega.rollout.chat_template import Message
from gigpo_mega.rollout.gateway.requests import ChatRequest
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import Int32


class Conversations:
    """Those of one episode, any number, told apart by their messages and tools."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[bytes, Int32] = {}  # the ids of conversations up to an answer, its own included

    def prompt(self, request: ChatRequest) -> list[int]:
        """The ids of a prompt.

        If the messages begin with those of an earlier request and its answer, unchanged, the ids begin with
        those of that prompt and the sampled ones; else all is rendered. Raises UserError if the chat template
        refuses the messages or leaves the tools out.
        """
        digests = list(_digests(request))
        for length in range(len(request.messages), 0, -1):
            known = self._known.get(digests[length])
            if known is not None:
                added = self._tokenizer.following(int(known[-1]), request.messages[length:])
                return [*known.tolist(), *added]
        return self._tokenizer.conversation(request.messages, request.tools)

    def answered(self, request: ChatRequest, prompt: list[int], answer: Message, response: Int32) -> None:
        """Note that `request`, whose ids were `prompt`, got the ids `response`, which the agent knows as
        `answer`."""
        *_, asked = _digests(request)
        self._known[_digest(asked, answer)] = np.concatenate([np.array(prompt, np.int32), response])


def _digests(request: ChatRequest) -> Iterator[bytes]:
    """A digest of the tools, and of them and each beginning of the messages."""
    digest = b""
    for tool in request.tools:
        digest = _digest(digest, tool)
    yield digest
    for message in request.messages:
        digest = _digest(digest, message)
        yield digest


def _digest(before: bytes, message: Message) -> bytes:
    return blake2b(before + json.dumps(message, sort_keys=True).encode(), digest_size=32).digest()
