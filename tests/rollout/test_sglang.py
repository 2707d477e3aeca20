"""The client: batching and errors against a fake server, tokens and log-probs against the real one."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from fake_server import FakeServer, talk

from gigpo_mega.rollout.engines.base import Completion, EngineError, Sampling, positions_needed
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from tests.conftest import Served
from tests.tiny import QWEN2


def test_requests_made_together_are_one_post() -> None:
    server = FakeServer()

    async def conversation(engine: SGLangEngine) -> list[Completion]:
        return await asyncio.gather(*(engine.generate([7, token], Sampling()) for token in range(64)))

    completions = talk(server, conversation)
    assert [len(batch) for batch in server.batches] == [64]
    assert [c.response_ids.tolist() for c in completions] == [[token + 1] for token in range(64)]
    assert {v for c in completions for v in c.versions.tolist()} == {3}


def test_no_request_relies_on_a_connection_staying_open() -> None:
    server = FakeServer()

    async def conversation(engine: SGLangEngine) -> list[int]:
        return [len((await engine.generate([token], Sampling())).response_ids) for token in range(5)]

    assert talk(server, conversation) == [1] * 5
    assert len(server.served) == 5


def test_a_quick_answer_does_not_wait_for_a_slow_one_of_its_batch() -> None:
    server = FakeServer(delay=lambda prompt: 1.0 if prompt[-1] == 0 else 0.0)

    async def conversation(engine: SGLangEngine) -> list[int]:
        finished: list[int] = []

        async def one(token: int) -> None:
            await engine.generate([token], Sampling())
            finished.append(token)
            if token == 1:  # the episode goes on while its neighbor still decodes
                await engine.generate([100], Sampling())
                finished.append(100)

        await asyncio.gather(one(0), one(1))
        return finished

    assert talk(server, conversation) == [1, 100, 0]
    assert server.batches == [[[0], [1]], [[100]]]


def test_a_refusal_fails_every_request_of_the_batch() -> None:
    server = FakeServer()
    server.refuse = True

    async def conversation(engine: SGLangEngine) -> list[Any]:
        calls = (engine.generate([token], Sampling()) for token in range(3))
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = talk(server, conversation)
    assert [type(error) for error in errors] == [EngineError] * 3
    assert all("answered 400" in str(error) and "too long" in str(error) for error in errors)


def test_a_stream_that_ends_early_is_an_error() -> None:
    server = FakeServer()
    server.cut = True

    async def conversation(engine: SGLangEngine) -> list[Any]:
        calls = (engine.generate([token], Sampling()) for token in range(2))
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = talk(server, conversation)
    assert first.response_ids.tolist() == [1]
    assert isinstance(second, EngineError)
    assert "closed the stream" in str(second)


@pytest.mark.parametrize(("spans", "versions"), [
    ([("3", 0, 2), ("4", 2, 3)], [3, 3, 4]),
    ([("default", 0, 3)], [0, 0, 0]),
    ([("default", 0, 0), ("4", 0, 3)], [4, 4, 4]),
    ([("3", 0, 2)], None),
    ([("3", 0, 2), ("4", 2, 4)], None),
    ([("3", 1, 3)], None),
    ([("3", 0, 3), ("4", 1, 3)], None),
])  # fmt: skip
def test_every_token_knows_the_weights_that_sampled_it(
    spans: list[tuple[str, int, int]], versions: list[int] | None
) -> None:
    server = FakeServer()
    names = ("version", "start", "end")
    server.meta["weight_versions"] = [dict(zip(names, span, strict=True)) for span in spans]
    server.tokens = 3

    async def conversation(engine: SGLangEngine) -> Completion:
        return await engine.generate([1], Sampling())

    if versions is None:
        with pytest.raises(EngineError, match="the weight versions of 3 tokens are those of"):
            talk(server, conversation)
    else:
        assert talk(server, conversation).versions.tolist() == versions


@pytest.mark.parametrize(("reason", "said"), [
    ({"type": "abort"}, "aborted the request: it does not say why"),
    ({"type": "abort", "message": "Input length (9 tokens) exceeds\nit"}, 
     "aborted the request: Input length (9 tokens) exceeds it"),
])  # fmt: skip
@pytest.mark.parametrize("ids", [[], [0]])
def test_an_aborted_request_says_why(reason: dict[str, str], said: str, ids: list[int]) -> None:
    async def conversation(engine: SGLangEngine) -> Completion:
        return await engine.generate([1], Sampling())

    server = FakeServer()
    server.answer = {"output_ids": ids, "meta_info": {"weight_version": "3", "finish_reason": reason}}
    with pytest.raises(EngineError, match=rf"^http://127\.0\.0\.1:\d+ {re.escape(said)}$"):
        talk(server, conversation)


META = {"weight_version": "3", "finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.5, 2, None]]}


def line(**changes: Any) -> bytes:
    """An answer to the first request, as a server sends it, with parts replaced; None takes one out."""
    fields = {"index": 0, "output_ids": [2], "meta_info": META} | changes
    return b"data: " + json.dumps({k: v for k, v in fields.items() if v is not ...}).encode() + b"\n\n"


async def two_requests(engine: SGLangEngine) -> list[Any]:
    calls = (engine.generate([token], Sampling()) for token in range(2))
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), timeout=10)


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "closed the stream before all answers had come"),
    (line(), "closed the stream before all answers had come"),  # one result for two requests
    (b'"fine"\n', "no event stream but '\"fine\"'"),
    (b'[{"index": 0}]\n', "no event stream but '[{\"index\": 0}]'"),
    (b"<html>gateway</html>", "no event stream but '<html>gateway</html>'"),
    (b'data: "fine"\n\n', "sent '\"fine\"', no JSON object"),
    (b"data: [1, 2]\n\n", "sent '[1, 2]', no JSON object"),
    (b'data: {"index": 0, "out\n\n', "sent '{\"index\": 0, \"out', no JSON object"),
    (b"data: \xff\n\n", "no JSON object"),
    (line(index=2), "index 2 of 2 requests"),
    (line(index=-1), "index -1 of 2 requests"),
    (line(index="0"), "index '0' of 2 requests"),
    (line(index=...), "index None of 2 requests"),
    (line(error={"message": "no room"}), "no room"),
])  # fmt: skip
def test_what_belongs_to_no_request_fails_all_that_have_no_answer_yet(raw: bytes, said: str) -> None:
    server = FakeServer()
    server.raw = raw
    *_, last = answers = talk(server, two_requests)
    assert isinstance(last, EngineError)
    assert said in str(last)
    assert str(last).startswith("http://127.0.0.1:")
    assert "\n" not in str(last)
    assert all(isinstance(answer, Completion | EngineError) for answer in answers)


@pytest.mark.parametrize("changes", [
    {"meta_info": ...},
    {"meta_info": None},
    {"meta_info": "fine"},
    {"output_ids": ...},
    {"output_ids": "2"},
    {"output_ids": [3]},
    *({"meta_info": META | changes} for changes in [
        {"finish_reason": "stop"},
        {"finish_reason": {"type": 3}},
        {"weight_version": None},
        {"weight_version": "latest"},
        {"weight_versions": [3]},
        {"output_token_logprobs": None},
        {"output_token_logprobs": [-0.5]},
        {"output_token_logprobs": [[None, 2, None]]},
        {"output_token_logprobs": [["low", 2, None]]},
        {"output_token_logprobs": [[float("nan"), 2, None]]},
        {"output_token_logprobs": [[-0.5]]},
        {"cached_tokens": "many"},
    ]),
    {"output_ids": [], "meta_info": META | {"output_token_logprobs": []}},
    {"output_ids": [2**40], "meta_info": META | {"output_token_logprobs": [[-0.5, 2**40, None]]}},
])  # fmt: skip
def test_an_odd_answer_fails_its_request_alone(changes: dict[str, Any]) -> None:
    server = FakeServer()
    server.raw = line(**changes) + line(index=1)
    first, second = talk(server, two_requests)
    assert isinstance(first, EngineError)
    assert str(first).startswith("http://127.0.0.1:")
    assert "\n" not in str(first)
    assert len(str(first)) < 400
    assert second.response_ids.tolist() == [2]


def test_an_engine_works_on_after_an_odd_answer() -> None:
    server = FakeServer()
    server.raw = line(index=7)

    async def conversation(engine: SGLangEngine) -> Any:
        with pytest.raises(EngineError):
            await asyncio.wait_for(engine.generate([1], Sampling()), 10)
        server.raw = None
        return await engine.generate([1], Sampling())

    assert talk(server, conversation).response_ids.tolist() == [2]


def test_a_dead_server_is_an_engine_error() -> None:
    async def run() -> None:
        async with SGLangEngine("http://127.0.0.1:9", timeout=5) as engine:
            with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9"):
                await engine.generate([1, 2], Sampling())

    asyncio.run(run())


def sample(url: str, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
    async def run() -> list[Completion]:
        async with SGLangEngine(url) as engine:
            return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))

    return asyncio.run(run())


def exact_logprobs(
    served: Served, prompt: list[int], completion: Completion, temperature: float
) -> np.ndarray:
    import torch
    from transformers import Qwen2ForCausalLM

    model: Any = Qwen2ForCausalLM.from_pretrained(served.model, dtype=torch.float32).eval()
    ids = torch.tensor([[*prompt, *completion.response_ids.tolist()]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def prompts_of_many_lengths(seed: int, count: int = 24) -> list[list[int]]:
    """Half of them share a beginning, so that the prefix cache takes part."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, 200, 20).tolist()
    own = [rng.integers(3, 200, int(rng.integers(1, 90))).tolist() for _ in range(count)]
    return [(shared if i % 2 else []) + tail for i, tail in enumerate(own)]


@pytest.mark.engine
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.4, 1.0), (0.7, 0.8)])
def test_logprobs_are_those_of_the_tempered_distribution(
    served: Served, temperature: float, top_p: float
) -> None:
    prompts = prompts_of_many_lengths(seed=0)
    sampling = Sampling(temperature, top_p, max_new_tokens=6)
    completions: list[Completion] = []
    for _ in range(2):  # the second time from the prefix cache
        completions = sample(served.url, prompts, sampling)
        for prompt, completion in zip(prompts, completions, strict=True):
            assert len(completion.response_ids) == 6
            assert completion.finish == "length"
            assert not completion.versions.any()
            exact = exact_logprobs(served, prompt, completion, temperature)
            np.testing.assert_allclose(completion.logprobs, exact, atol=1e-5)
    assert sum(completion.cached_tokens for completion in completions) > 0


@pytest.mark.engine
def test_greedy_tokens_are_those_of_transformers(served: Served) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    model: Any = Qwen2ForCausalLM.from_pretrained(served.model, dtype=torch.float32).eval()
    prompts = prompts_of_many_lengths(seed=1, count=8)
    completions = sample(served.url, prompts, Sampling(temperature=0.0, max_new_tokens=8))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        assert completion.response_ids.tolist() == expected.tolist()
        np.testing.assert_allclose(
            completion.logprobs, exact_logprobs(served, prompt, completion, 1.0), atol=1e-5
        )


@pytest.mark.engine
def test_the_stop_token_is_part_of_the_response(served: Served) -> None:
    prompt = [5, 6, 7, 8]
    (greedy,) = sample(served.url, [prompt], Sampling(temperature=0.0, max_new_tokens=5))
    ids = greedy.response_ids.tolist()
    stop = ids[2]
    (stopped,) = sample(served.url, [prompt], Sampling(0.0, 1.0, 5, stop_token_ids=(stop,)))
    assert stopped.finish == "stop"
    assert stopped.response_ids.tolist() == ids[: ids.index(stop) + 1]
    assert len(stopped.logprobs) == len(stopped.response_ids)


@pytest.mark.engine
def test_a_server_says_how_many_requests_it_holds(served: Served) -> None:
    async def conversation() -> list[int | None]:
        async with SGLangEngine(served.url) as engine:
            sampling = Sampling(max_new_tokens=200)
            asked = [asyncio.create_task(engine.generate([5, 6, i], sampling)) for i in range(3)]
            seen: list[int | None] = []
            while not all(task.done() for task in asked):
                seen.append(await engine.held())
            while seen[-1] and len(seen) < 10_000:  # the scheduler says so when it is idle
                seen.append(await engine.held())
            return seen

    seen = asyncio.run(conversation())
    assert 3 in seen
    assert seen[-1] == 0


@pytest.mark.engine
def test_a_request_that_someone_aborts_says_so(served: Served) -> None:
    async def run() -> Completion:
        async with SGLangEngine(served.url) as engine:
            long = asyncio.create_task(engine.generate([5, 6, 7], Sampling(max_new_tokens=250)))
            while not await engine.held():
                assert not long.done()
            everything = json.dumps({"abort_all": True}).encode()
            request = Request(f"{served.url}/abort_request", everything, {"Content-Type": "application/json"})
            await asyncio.to_thread(lambda: urlopen(request).read())
            return await long

    with pytest.raises(EngineError, match=r"aborted the request: \w+"):
        asyncio.run(run())


@pytest.mark.engine
def test_a_prompt_that_does_not_fit_is_an_engine_error(served: Served) -> None:
    with pytest.raises(EngineError, match="is longer than the model's context length"):
        sample(served.url, [[5] * 300], Sampling(max_new_tokens=4))
    with pytest.raises(EngineError, match=r"aborted the request: Input length \(250 tokens\) exceeds"):
        sample(served.url, [[5] * 250], Sampling(max_new_tokens=1))


@pytest.mark.engine
@pytest.mark.parametrize(("prompt", "response"), [(249, 1), (249, 5), (236, 18), (1, 253)])
def test_an_engine_takes_what_the_positions_needed_allow_and_nothing_more(
    served: Served, prompt: int, response: int
) -> None:
    positions = QWEN2["max_position_embeddings"]
    fits = [(p, r) for p in range(1, 257) for r in range(1, 257) if positions_needed(p, r) <= positions]
    assert (prompt, response) in fits
    (completion,) = sample(served.url, [[5] * prompt], Sampling(temperature=0.0, max_new_tokens=response))
    assert len(completion.response_ids) == response
    for longer in ((prompt + 1, response), (prompt, response + 1)):
        if longer not in fits:
            sampling = Sampling(temperature=0.0, max_new_tokens=longer[1])
            try:
                (completion,) = sample(served.url, [[5] * longer[0]], sampling)
            except EngineError:
                continue
            assert len(completion.response_ids) < longer[1]  # cut without a word
