"""Agents that ask a gateway in this process, with an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from collecting import by
from fake_engine import FakeOpened
from wild_models import written

from envs.agent import Agent, Connection
from envs.base import Task
from envs.dialogue import GENERIC
from gigpo_mega.config import EnvironmentConfig, PromptConfig
from gigpo_mega.rollout.collector import Collector
from gigpo_mega.rollout.engines.base import Completion, Engine, Sampling
from gigpo_mega.rollout.gateway.player import AgentPlayer
from gigpo_mega.rollout.gateway.server import Gateway
from gigpo_mega.rollout.gateway.session import Policy
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from tests.helpers import wait_for

TOOL_CHAT = (  # of the kind that Qwen2.5 and Hermes have
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
GO = {"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}
SLOW = b'{"model": "policy", "messages": [{"role": "user", "content": "slow"}]}'


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def tokenizer(folder: Path, chat: str = TOOL_CHAT) -> Tokenizer:
    """One of bytes and some words; <|im_start|> and <|im_end|> are control tokens."""
    return Tokenizer(
        written(folder, "<|im_start|>", "<|im_end|>", chat_template=chat, eos_token="<|im_end|>")
    )


class FakeSpeaker(FakeOpened):
    """Says `text(prompt)` of the prompt's spelling; keeps what it saw and said."""

    def __init__(self, tokenizer: Tokenizer, text: Callable[[str], str] = lambda prompt: "up") -> None:
        self._tokenizer, self.text = tokenizer, text
        self.calls: list[tuple[list[int], list[int]]] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        said = self._tokenizer.encode(self.text(self._tokenizer.spelled(prompt_ids)))
        whole = [*said, self._tokenizer.end(chat=True)]
        ids = np.array(whole[: sampling.max_new_tokens], dtype=np.int32)
        self.calls.append((list(prompt_ids), ids.tolist()))
        self.samplings.append(sampling)
        logprobs = np.full(len(ids), -0.5, np.float32)
        finish = "stop" if len(whole) == len(ids) else "length"
        return Completion(ids, logprobs, np.full(len(ids), 3, np.int32), finish, 1)

    async def healthy(self) -> bool:
        return True


class FakeStuck(FakeSpeaker):
    """Never answers a prompt with "slow" in it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.begun = self.cancelled = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        if "slow" in self._tokenizer.spelled(prompt_ids):
            self.begun += 1
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return await super().generate(prompt_ids, sampling, session)


def player(
    engine: Engine, made: Tokenizer, agent: Agent, longest: int = 100_000, **fields: Any
) -> AgentPlayer:
    """Plays by `agent`; `fields` are of EnvironmentConfig."""
    prompts = PromptBuilder(PromptConfig(), GENERIC["chat"], made, longest)
    config = EnvironmentConfig(name="chats", **fields)
    return AgentPlayer(Gateway(Policy(engine, made, prompts), config.max_steps), agent, {}, config)


def collector(
    engine: Engine, made: Tokenizer, agent: Agent, retries: int = 0, concurrency: int = 8, **fields: Any
) -> Collector:
    """Collects episodes of `agent`, up to `concurrency` at once."""
    return by(player(engine, made, agent, **fields), concurrency, retries)


def tasks(*names: str) -> list[Task]:
    return [Task(name, "chat", name) for name in names]


def post(
    connection: Connection, body: Any, path: str = "/chat/completions", timeout: float = 20
) -> tuple[int, dict[str, Any]]:
    """Status and body of the reply to `body`: bytes, or something that becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {connection.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(connection.base_url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ask(connection: Connection, messages: Sequence[Any], **fields: Any) -> dict[str, Any]:
    """The message of the answer."""
    body = {"model": connection.model, "messages": list(messages)} | fields
    status, reply = post(connection, body)
    assert status == 200, reply
    return reply["choices"][0]["message"]


def give_up(connection: Connection, engine: FakeStuck) -> None:
    """Make a call, hang up when the engine is at work, and wait until the gateway has noticed."""
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SLOW)}\r\n"
            f"Authorization: Bearer {connection.api_key}\r\n\r\n")  # fmt: skip
    address, given_up = urlsplit(connection.base_url), engine.begun
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(head.encode() + SLOW)
        wait_for(lambda: engine.begun == given_up + 1)
    wait_for(lambda: engine.cancelled == given_up + 1)
