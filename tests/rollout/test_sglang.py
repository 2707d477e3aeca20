"""The client: batching and errors against a fake server, tokens and log-probs against the real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from gigpo_mega.rollout.engine import Completion, EngineError, Sampling
from gigpo_mega.rollout.sglang import SGLangEngine
from tests.conftest import Served


class FakeServer:
    """Answers /generate as SGLang does: the prompt's last token + 1, after `delay(prompt)` seconds."""

    def __init__(self, delay: Callable[[list[int]], float] = lambda prompt: 0.0) -> None:
        self.batches: list[list[list[int]]] = []
        self.delay = delay
        self.refuse = False
        self.cut = False
        self.served: set[Any] = set()  # connections; one that is used again is reset
        self.answer: dict[str, Any] = {}  # replaces parts of every answer
        self.meta: dict[str, Any] = {
            "weight_version": "3",
            "cached_tokens": 0,
            "finish_reason": {"type": "stop"},
        }

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert request.transport is not None
        if request.transport in self.served:
            request.transport.abort()
        self.served.add(request.transport)
        self.batches.append(body["input_ids"])
        if self.refuse:
            return web.json_response({"error": "too long"}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        order = sorted(enumerate(body["input_ids"]), key=lambda item: self.delay(item[1]))
        waited = 0.0
        for index, prompt in order:
            await asyncio.sleep(self.delay(prompt) - waited)
            waited = self.delay(prompt)
            token = prompt[-1] + 1
            meta = {**self.meta, "output_token_logprobs": [[-0.5, token, None]]}
            answer = {"index": index, "output_ids": [token], "meta_info": meta} | self.answer
            await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
            if self.cut:
                return response
        await response.write(b"data: [DONE]\n\n")
        return response


def talk(
    server: FakeServer, conversation: Callable[[SGLangEngine], Awaitable[Any]], window: float = 0.002
) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/generate", server.generate)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with SGLangEngine(f"http://127.0.0.1:{port}", window=window) as engine:
                return await conversation(engine)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_requests_made_together_are_one_post() -> None:
    server = FakeServer()

    async def conversation(engine: SGLangEngine) -> list[Completion]:
        return await asyncio.gather(*(engine.generate([7, token], Sampling()) for token in range(64)))

    completions = talk(server, conversation)
    assert [len(batch) for batch in server.batches] == [64]
    assert [c.response_ids.tolist() for c in completions] == [[token + 1] for token in range(64)]
    assert {c.version for c in completions} == {3}


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
            if token == 1:  # the episode goes on while its neighbour still decodes
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


def test_a_response_of_two_weight_versions_is_an_error() -> None:
    server = FakeServer()
    spans = [{"version": "3", "start": 0, "end": 1}, {"version": "4", "start": 1, "end": 2}]
    server.meta["weight_versions"] = spans

    async def conversation(engine: SGLangEngine) -> Completion:
        return await engine.generate([1], Sampling())

    with pytest.raises(EngineError, match="several weight versions"):
        talk(server, conversation)


def test_a_request_aborted_before_its_first_token() -> None:
    async def conversation(engine: SGLangEngine) -> Completion:
        return await engine.generate([1], Sampling())

    server = FakeServer()
    meta = {"weight_version": "3", "finish_reason": {"type": "abort"}}
    server.answer = {"output_ids": [], "meta_info": meta}
    completion = talk(server, conversation)
    assert completion.finish == "abort"
    assert completion.response_ids.tolist() == []


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
            assert completion.version == 0
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
def test_abort_finishes_requests_in_flight(served: Served) -> None:
    async def run() -> Completion:
        async with SGLangEngine(served.url) as engine:
            long = asyncio.create_task(engine.generate([5, 6, 7], Sampling(max_new_tokens=200)))
            await asyncio.sleep(0.1)
            await engine.abort()
            return await long

    completion = asyncio.run(run())
    assert completion.finish == "abort"
    assert len(completion.response_ids) < 200


@pytest.mark.engine
def test_a_prompt_that_does_not_fit_is_an_engine_error(served: Served) -> None:
    with pytest.raises(EngineError):
        sample(served.url, [[5] * 300], Sampling(max_new_tokens=4))
