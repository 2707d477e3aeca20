"""The gateway: its protocol, with and without the real openai client, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from asking import GO, LOOK, FakeSpeaker, ask, collector, post, tasks, tokenizer, user
from collecting import collect

from envs.agent import Connection
from envs.base import Task
from gigpo_mega.rollout.engines.base import Sampling
from gigpo_mega.rollout.gateway import server
from gigpo_mega.rollout.tokenizer import Tokenizer

OPENAI = openai.OpenAI(base_url="http://127.0.0.1", api_key="-", http_client=httpx.Client(trust_env=False))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def client(connection: Connection) -> openai.OpenAI:
    return OPENAI.with_options(base_url=connection.base_url, api_key=connection.api_key)


def asked(made: Tokenizer, use: Callable[[Connection], Any], engine: FakeSpeaker | None = None) -> Any:
    """What `use` returns in an episode, which then makes one good call."""
    found: list[Any] = []

    def agent(task: Task, connection: Connection) -> float:
        found.append(use(connection))
        ask(connection, [user("the end")])
        return 1.0

    (group,) = collect(
        collector(engine or FakeSpeaker(made), made, agent), tasks("a"), 1, Sampling(0.5, 0.9, 64)
    )
    assert len(group.trajectories[0].steps) >= 1
    return found[0]


def test_the_openai_client_gets_answers_usage_and_tool_calls(made: Tokenizer) -> None:
    call = '<tool_call>{"name": "go", "arguments": {"to": 3}}</tool_call>'
    engine = FakeSpeaker(made, lambda prompt: "there" if "arrived" in prompt else call)

    def use(connection: Connection) -> Any:
        chat: Any = client(connection).chat.completions.create
        messages: list[Any] = [{"role": "developer", "content": [{"type": "text", "text": "go"}]}, user("q")]
        first = chat(model=connection.model, messages=messages, tools=[LOOK, GO], extra_body={"anchor": "s"})
        message = first.choices[0].message
        messages += [
            message,
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "arrived"},
        ]
        second = chat(model=connection.model, messages=messages, tools=[LOOK, GO], max_tokens=3)
        listed = [model.id for model in client(connection).models.list()]
        return first, second, listed

    first, second, listed = asked(made, use, engine)
    assert first.choices[0].finish_reason == "tool_calls"
    assert first.choices[0].message.content is None
    function = first.choices[0].message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == ("go", {"to": 3})
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("length", "the")
    prompts, responses = zip(*engine.calls, strict=True)
    assert prompts[1][: len(prompts[0] + responses[0])] == prompts[0] + responses[0]
    for usage, prompt, response in zip((first.usage, second.usage), prompts, responses, strict=False):
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(response))
        assert usage.total_tokens == len(prompt) + len(response)
        assert usage.prompt_tokens_details.cached_tokens == 1
    assert listed == ["policy"]
    assert [sampling.max_new_tokens for sampling in engine.samplings] == [64, 3, 64]
    assert {(sampling.temperature, sampling.top_p) for sampling in engine.samplings} == {(0.5, 0.9)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stream": True}, "stream True is not supported: answers come whole"),
        ({"n": 2}, "n 2 is not supported: make one call for each answer"),
        ({"stop": ["x"]}, r"stop \['x'\] is not supported: answers are sampled as the run's"),
        ({"logprobs": True}, "logprobs True"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"tool_choice": "required"},
            "tool_choice 'required' is not supported: the policy chooses; give auto",
        ),
        ({"parallel_tool_calls": False}, "parallel_tool_calls False"),
        ({"frequency_penalty": 0.5}, "frequency_penalty 0.5"),
        ({"extra_body": {"banana": 1}}, "banana 1"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be an integer >= 1"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages must be a list, not str"),
        ({"messages": ["hello"]}, r"messages\[0\] must be a mapping, not str"),
        ({"messages": [{"role": "<|im_start|>", "content": ""}]}, r"messages\[0\].role is '<|im_start|>'"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, r"tool_calls\[0\] must have a function"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\] must be of type function"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].function.name is missing"),
        ({"extra_body": {"anchor": 3}}, "anchor must be text, not int"),
    ],
)
def test_what_the_gateway_does_not_do_is_said(made: Tokenizer, fields: dict[str, Any], said: str) -> None:
    def use(connection: Connection) -> None:
        body = {"model": connection.model, "messages": [user("q")]} | fields
        with pytest.raises(openai.BadRequestError, match=said):
            client(connection).chat.completions.create(**body)

    engine = FakeSpeaker(made)
    asked(made, use, engine)
    assert len(engine.calls) == 1


def test_what_means_nothing_here_is_accepted(made: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    def use(connection: Connection) -> None:
        for _ in range(2):
            ask(connection, [user("q")], temperature=0, top_p=0.5, seed=3, user="me", n=1, stream=False,
                frequency_penalty=0.0, stop=None, tool_choice="auto", metadata={"a": "b"})  # fmt: skip

    engine = FakeSpeaker(made)
    asked(made, use, engine)
    assert {(sampling.temperature, sampling.top_p) for sampling in engine.samplings} == {(0.5, 0.9)}
    assert capsys.readouterr().err == (
        "the agent asks for temperature 0, top_p 0.5, seed 3; the run samples with temperature 0.5 and top_p "
        "0.9, as its configuration says\n"
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"9" * 5000, 400, "the body is not JSON"),
        (b"[]", 400, "the body must be a mapping, not list"),
        (b"{}", 400, "messages is empty"),
        (b'{"messages": [{"role": "user"}]}', 404, "there is no model ''; the policy is called policy"),
        (b'{"model": "gpt-4o", "messages": [{"role": "user"}]}', 404, "there is no model 'gpt-4o'"),
        (b'{"model": "policy", "messages": [{"role": "user"}], "tools": [{"function": {"name": "x", "a": '
         + b"[" * 700 + b"]" * 700 + b"}}]}", 400, "recursion"),
        (b" " * (server.LARGEST_BODY + 1), 413, "the body is larger than 16777216 bytes"),
    ],
)  # fmt: skip
def test_bad_bodies_are_errors_of_openais_form(made: Tokenizer, body: bytes, status: int, said: str) -> None:
    found, reply = asked(made, lambda connection: post(connection, body))
    assert found == status
    assert said in reply["error"]["message"]
    assert reply["error"].keys() == {"message", "type", "code", "param"}


def test_other_addresses_and_methods_are_errors_of_openais_form(made: Tokenizer) -> None:
    assert asked(made, lambda connection: post(connection, {}, "/responses"))[0] == 404
    assert asked(made, lambda connection: post(connection, {}, "/models"))[0] == 405


def test_a_wrong_key_is_refused_and_no_key_lives_longer_than_its_episode(made: Tokenizer) -> None:
    old: list[Connection] = []

    def agent(task: Task, connection: Connection) -> float:
        for key in (
            "",
            "wrong",
            connection.api_key[:-1],
            connection.api_key + "x",
            *(c.api_key for c in old),
        ):
            wrong = Connection(connection.base_url, key, connection.model)
            status, reply = post(wrong, {"model": "policy", "messages": [user("q")]})
            assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client(Connection(connection.base_url, "wrong", "")).models.list()
        ask(connection, [user("q")])
        old.append(connection)
        return 1.0

    engine = FakeSpeaker(made)
    made_by = collector(engine, made, agent)
    for name in "ab":
        collect(made_by, tasks(name), 1)
    assert len(old) == 2
    assert len(engine.calls) == 2
    assert threading.active_count() < 20
