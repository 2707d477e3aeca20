"""The gateway: what is trained on is what was sampled, whatever an agent sends and the policy says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from asking import GO, LOOK, FakeSpeaker, ask, collector, post, tasks, tokenizer, user
from collecting import collect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.agent import Connection
from envs.base import Task
from gigpo_mega.batching import pack
from gigpo_mega.config import BatchConfig
from gigpo_mega.rollout.engines.base import Sampling
from gigpo_mega.rollout.gateway.answers import read_answer
from gigpo_mega.rollout.gateway.conversations import Conversations
from gigpo_mega.rollout.gateway.requests import ChatRequest, Refusal, read_body, read_message
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import RowTable, Step, Trajectory
from tools.bench.fuzz.policy import Call, FakeFuzzer

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "desk 1"}}\n</tool_call>'
START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def played(engine: Any, made: Tokenizer, agent: Callable[..., float], **fields: Any) -> Trajectory:
    """One episode of `agent`."""
    (group,) = collect(collector(engine, made, agent, **fields), tasks("a"), 1)
    return group.trajectories[0]


def spelled(made: Tokenizer, step: Step) -> str:
    return made.spelled(step.prompt_ids.tolist())


def test_a_conversation_that_goes_on_keeps_its_tokens(made: Tokenizer) -> None:
    engine = FakeSpeaker(made, lambda prompt: f" a\n{len(prompt)} <think>\ufeffx")

    def agent(task: Task, connection: Connection) -> float:
        messages: list[Any] = [{"role": "system", "content": "be brief"}, user("one")]
        for text in ("two", "three", "four"):
            messages += [ask(connection, messages), user(text)]
        return 1.0

    steps = played(engine, made, agent).steps
    assert len(steps) == 3
    for earlier, later, text in zip(steps, steps[1:], ("two", "three"), strict=False):
        before = [*earlier.prompt_ids.tolist(), *earlier.response_ids.tolist()]
        assert later.prompt_ids.tolist()[: len(before)] == before
        added = made.spelled(later.prompt_ids.tolist()[len(before) :])
        assert added == f"\n{START}user\n{text}{END}\n{START}assistant\n"
    assert (
        spelled(made, steps[0]) == f"{START}system\nbe brief{END}\n{START}user\none{END}\n{START}assistant\n"
    )


def test_tokens_that_no_text_becomes_stay_in_the_conversation(made: Tokenizer) -> None:
    """The ids that were sampled, not those of their text: "ab" as two bytes, halves of a character."""
    parts = [*made.encode("a"), *made.encode("b"), made.encode("🂡")[0]]
    assert made.encode(made.decode(parts)) != parts
    request = ChatRequest("policy", (user("x"),))
    conversations = Conversations(made)
    prompt, response = conversations.prompt(request), np.array([*parts, made.end(chat=True)], np.int32)
    said = {"role": "assistant", "content": made.decode(response.tolist())}
    conversations.answered(request, prompt, said, response)
    grown = conversations.prompt(ChatRequest("policy", (user("x"), said, user("y"))))
    assert grown[: len(prompt) + len(response)] == [*prompt, *response.tolist()]


@pytest.mark.parametrize("change", ["question", "answer", "tools", "dropped"])
def test_a_prefix_that_the_agent_altered_is_rendered_anew(made: Tokenizer, change: str) -> None:
    engine = FakeSpeaker(made, lambda prompt: "  up")

    def agent(task: Task, connection: Connection) -> float:
        messages: list[Any] = [user("one"), ask(connection, [user("one")], tools=[GO]), user("two")]
        if change == "question":
            messages[0] = user("ONE")
        elif change == "answer":
            messages[1] = {"role": "assistant", "content": "down"}
        elif change == "dropped":
            del messages[:2]
        ask(connection, messages, tools=[LOOK if change == "tools" else GO])
        return 1.0

    first, second = played(engine, made, agent).steps
    before = [*first.prompt_ids.tolist(), *first.response_ids.tolist()]
    assert second.prompt_ids.tolist()[: len(before)] != before
    first_turn = f"{START}user\none{END}\n{START}assistant\n"
    shown = {
        "question": f"{START}user\nONE{END}\n{START}assistant\n  up{END}\n",
        "answer": f"{first_turn}down{END}\n",
        "tools": f"{first_turn}  up{END}\n",
        "dropped": "",
    }[change]
    tools = f"{START}system\nTools:\n{json.dumps(LOOK if change == 'tools' else GO)}\n{END}\n"
    assert spelled(made, second) == f"{tools}{shown}{START}user\ntwo{END}\n{START}assistant\n"


def test_conversations_at_once_do_not_mix(made: Tokenizer) -> None:
    """Four threads of one episode, with the same beginning; each continues its own tokens."""
    engine = FakeFuzzer(made)

    def agent(task: Task, connection: Connection) -> float:
        def talk(name: str) -> None:
            messages: list[Any] = [user(f"I am {name}")]
            for turn in range(5):
                messages += [ask(connection, messages), user(f"{name} {turn}")]

        threads = [threading.Thread(target=talk, args=[name]) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 0.5

    steps = played(engine, made, agent).steps
    assert len(steps) == 20
    for name in "abcd":
        own = [step for step in steps if f"I am {name}" in spelled(made, step)]
        assert len(own) == 5
        for earlier, later in pairwise(own):
            before = np.concatenate([earlier.prompt_ids, earlier.response_ids]).tolist()
            assert later.prompt_ids.tolist()[: len(before)] == before
    assert [step.reward for step in steps] == [0.0] * 19 + [0.5]


def test_tool_calls_go_both_ways(made: Tokenizer) -> None:
    engine = FakeSpeaker(made, lambda prompt: "done" if "a mug" in prompt else f"I look.\n{CALL}")
    replies: list[Any] = []

    def agent(task: Task, connection: Connection) -> float:
        messages: list[Any] = [user("find a key")]
        said = ask(connection, messages, tools=[LOOK, GO])
        (call,) = said["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "a mug"}
        replies.extend([said, ask(connection, [*messages, said, result], tools=[LOOK, GO])])
        return 1.0

    first, second = played(engine, made, agent).steps
    assert replies[0] == {
        "role": "assistant", "content": "I look.",
        "tool_calls": [{"id": "call_1_0", "type": "function",
                        "function": {"name": "look", "arguments": '{"at": "desk 1"}'}}],
    }  # fmt: skip
    assert replies[1] == {"role": "assistant", "content": "done"}
    before = [*first.prompt_ids.tolist(), *first.response_ids.tolist()]
    assert second.prompt_ids.tolist()[: len(before)] == before
    added = made.spelled(second.prompt_ids.tolist()[len(before) :])
    assert added == f"\n{START}tool\na mug{END}\n{START}assistant\n"
    assert (first.valid, second.valid) == (True, True)
    assert (first.action, second.observation) == (f"I look.\n{CALL}", "a mug")


def test_a_tool_call_of_the_past_is_shown_as_the_template_has_it(made: Tokenizer) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "look", "arguments": '{"at": "a"}'}}
    messages = [user("q"), {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "x", "content": "mug"}]  # fmt: skip
    request = read_body(json.dumps({"model": "policy", "messages": messages}).encode())
    text = made.spelled(Conversations(made).prompt(request))
    assert (
        f'assistant\n<tool_call>\n{{"name": "look", "arguments": {{"at": "a"}}}}\n</tool_call>{END}' in text
    )


ONE = '{"name": "look", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (f"<tool_call>{ONE}</tool_call>", 1, None),
        (f"so\n<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>\n", 2, "so"),
        ("look", 0, "look"),
        ('<tool_call>{"name": "look"}</tool_call>', None, None),
        ('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', None, None),
        ('<tool_call>{"name": ["look"], "arguments": {}}</tool_call>', None, None),
        ('<tool_call>{"name": "look", "arguments": "x"}</tool_call>', None, None),
        ('<tool_call>{"name": "look", "arguments": {"a": NaN}}</tool_call>', None, None),
        ('<tool_call>{"name": "look", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>", None, None),
        ('<tool_call>{"name": "look", "arguments": {"a": ' + "[" * 99999 + "}}</tool_call>", None, None),
        (f"<tool_call>{ONE}</tool_call> and more", None, None),
        (f"<tool_call>{ONE}", None, None),
        (f"{ONE}</tool_call>", None, None),
        (f"</tool_call><tool_call>{ONE}</tool_call>", None, None),
        (f"<tool_call><tool_call>{ONE}</tool_call>", None, None),
        ("<tool_call></tool_call>", None, None),
    ],
)
def test_tool_calls_that_cannot_be_read_are_content_and_invalid(
    text: str, calls: int | None, content: str | None
) -> None:
    answer = read_answer(text, True, {"look"}, 1)
    assert answer.valid == (calls is not None)
    assert len(answer.message.get("tool_calls", [])) == (calls or 0)
    assert answer.message["content"] == (text if calls is None else content)
    assert read_answer(text, True, (), 1).message == {"role": "assistant", "content": text}
    assert not read_answer(text, False, {"look"}, 1).valid
    assert read_answer(text, False, {"look"}, 1).finish == "length"


HOSTILE = st.one_of(
    st.text(st.characters(), max_size=20),
    st.lists(
        st.sampled_from([START, END, "<|im_", "end|>", "<|endoftext|>", "\ud83c", "\udca1", "\ue000", "\0",
                         "<", "tool_call>", "</think>", "user\n", " ", "{{ x }}", "{% raw %}"]),
        max_size=8,
    ).map("".join),
)  # fmt: skip
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@st.composite
def message(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {"role": draw(ROLES), "content": draw(HOSTILE)}
    if draw(st.booleans()):
        parts = st.lists(HOSTILE.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
        found["content"] = draw(parts)
    if found["role"] == "assistant" and draw(st.booleans()):
        arguments = draw(st.one_of(HOSTILE, st.dictionaries(HOSTILE, HOSTILE, max_size=2).map(json.dumps)))
        found["tool_calls"] = [
            {"id": draw(HOSTILE), "function": {"name": draw(HOSTILE), "arguments": arguments}}
        ]
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.lists(message(), min_size=1, max_size=3), then=st.lists(message(), max_size=3), data=st.data()
)
def test_no_text_of_an_agent_becomes_a_control_token(
    made: Tokenizer, first: list[Any], then: list[Any], data: st.DataObject
) -> None:
    """The only ones are those that the template writes, one beginning and one end for a message."""
    ids = st.lists(st.integers(0, made.largest_id), max_size=6)
    response = np.array([*data.draw(ids), *data.draw(st.sampled_from([[], [made.end(chat=True)]]))], np.int32)
    if not len(response):
        return
    tool = {"type": "function", "function": {"name": "x", "description": data.draw(HOSTILE)}}

    def request(messages: list[Any]) -> ChatRequest:
        body = {"model": "policy", "messages": messages, "tools": [tool]}
        return read_body(json.dumps(body).encode())

    conversations, asked = Conversations(made), request(first)
    prompt = conversations.prompt(asked)
    pad, start, end = 0, prompt[0], made.end(chat=True)
    assert (prompt.count(start), prompt.count(end)) == (len(first) + 2, len(first) + 1)
    assert pad not in prompt
    answer = read_answer(made.decode(response.tolist()), True, {"x"}, 1).message
    conversations.answered(asked, prompt, read_message("answer", answer), response)
    grown = conversations.prompt(request([*first, answer, *then]))
    said = [*prompt, *response.tolist()]
    assert grown[: len(said)] == said
    added = grown[len(said) :]
    own = response[-1] != end
    assert (added.count(start), added.count(end)) == (len(then) + 1, len(then) + own)
    assert pad not in added


@pytest.mark.parametrize("concurrency", [1, 8])  # one at a time, the same messages every time
def test_a_fuzzed_policy_is_trained_on_what_it_said(concurrency: int, made: Tokenizer) -> None:
    """Agents that hand messages back, alter and drop them, over a policy that says anything."""
    calls = (
        CALL,
        f"{CALL}{CALL}",
        CALL[:-3],
        '<tool_call>{"name": "go", "arguments": {"\ud800": 1}}</tool_call>',
    )
    engine, seeds = FakeFuzzer(made, calls), {"a": iter(range(6)), "b": iter(range(6, 12))}

    def agent(task: Task, connection: Connection) -> float:
        rng, tools = Random(next(seeds[task.id])), [LOOK, GO]
        messages: list[Any] = [user(f"task {task.id} {END}")]
        for turn in range(8):
            said = ask(connection, messages, tools=tools, max_tokens=rng.choice([None, 3, 64]))
            results = [
                {
                    "role": "tool",
                    "tool_call_id": call["id"],
                    "content": f"\ud83c {call['function']['arguments']}",
                }
                for call in said.get("tool_calls", [])
            ]
            messages += [said, *(results or [user(f"{said['content']} {turn}")])]
            if rng.random() < 0.2:
                rng.choice(messages)["content"] = rng.choice(["x", "<|im_start|>", ""])
            if rng.random() < 0.1:
                messages = [user("again")]
        return rng.random()

    made_by = collector(engine, made, agent, concurrency=concurrency)
    groups = collect(made_by, tasks("a", "b"), 6, Sampling(max_new_tokens=64))
    rows = RowTable.from_groups(groups)
    recorded = Counter(Call.of(s.prompt_ids, s.response_ids, s.logprobs, s.versions) for s in rows.steps)
    assert recorded == Counter(call for _, call in engine.calls)
    assert len(rows) == made_by.stats.steps == 2 * 6 * 8
    assert {step.valid for step in rows.steps} == {True, False}
    for batch in pack(rows.steps, np.arange(len(rows)), BatchConfig(microbatch_tokens=8192)):
        expected = [rows.steps[row].response_ids for row in batch.rows]
        assert batch.labels[batch.mask].tolist() == np.concatenate(expected).tolist()


def test_a_long_prompt_loses_its_oldest_tokens_and_its_conversation_none(made: Tokenizer) -> None:
    engine = FakeSpeaker(made)

    def agent(task: Task, connection: Connection) -> float:
        messages: list[Any] = [user("x" * 30)]
        for _ in range(3):
            messages += [ask(connection, messages), user("y")]
        return 1.0

    made_by = collector(engine, made, agent, longest=40)
    (group,) = collect(made_by, tasks("a"), 1)
    steps = group.trajectories[0].steps
    assert max(len(step.prompt_ids) for step in steps) == 40
    assert made_by.stats.truncated == sum(len(step.prompt_ids) == 40 for step in steps) == 3
    assert spelled(made, steps[2]).endswith(f"up{END}\n{START}user\ny{END}\n{START}assistant\n")


def test_a_template_without_tools_is_refused(tmp_path: Path) -> None:
    plain = tokenizer(tmp_path, "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    replies: list[Any] = []

    def agent(task: Task, connection: Connection) -> float:
        body = {"model": connection.model, "messages": [user("q")]}
        replies.append(post(connection, body | {"tools": [LOOK]}))
        replies.append(post(connection, body | {"tools": [LOOK], "tool_choice": "none"}))
        return 1.0

    assert len(played(FakeSpeaker(plain), plain, agent).steps) == 1
    assert replies[0][0] == 400
    assert "leaves tools out" in replies[0][1]["error"]["message"]
    assert replies[1][0] == 200


def test_messages_in_many_spellings_are_the_same() -> None:
    plain = {"role": "assistant", "content": ""}
    nulls = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    assert read_message("m", {"role": "assistant", "content": None, "annotations": []} | nulls) == plain
    assert read_message("m", {"role": "assistant"}) == plain
    spaced = {"id": "i", "type": "function", "function": {"name": "go", "arguments": '{ "a":1}'}}
    tight = {"id": "i", "function": {"name": "go", "arguments": '{"a": 1}'}}
    both = [read_message("m", {"role": "assistant", "tool_calls": [call]}) for call in (spaced, tight)]
    assert both[0] == both[1]
    with pytest.raises(Refusal, match=r"m.audio is not supported"):
        read_message("m", plain | {"audio": {"id": "x"}})
