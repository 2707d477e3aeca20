"""A server starts, takes the learner's weights twice, samples with them, and lends its cache in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gigpo_mega.config import EngineConfig, WeightsConfig
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.update import LARGEST_GAP
from gigpo_mega.rollout.engines.base import Completion, Sampling
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.memory import CacheMemory
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.types import Float32, Int32, Step
from gigpo_mega.weights import live
from gigpo_mega.weights.push import WeightPush
from tools.gpu.setup import Setup, Wrong

_ROWS = 64  # half of them greedy


def engine(setup: Setup) -> dict[str, Any]:
    """Seconds of start-up and of two pushes; the gap of log-probabilities after each, over 64 rows.

    With CUDA the server gives its KV cache's memory back before the second push, and takes it again. Raises
    Wrong if a gap exceeds what a run allows, or is not smaller than that to the weights before.
    """
    prompts = _prompts(setup)
    lends = setup.stack.cuda
    launch = Launch(setup.stack, setup.dtype, requests=_ROWS, releases_memory=lends)
    model, log = setup.describe(setup.folder / "model"), setup.folder / "sglang.log"
    config = EngineConfig(max_total_tokens=_ROWS * (2 * len(prompts[0]) + 8))
    with setup.layout() as layout:
        learner = setup.learner(layout)
        begin = time.perf_counter()
        with SGLangServer(model, config, log, launch) as server:
            started = time.perf_counter() - begin
            push = WeightPush(WeightsConfig(), setup.shape, [server.url], setup.folder)
            memory = CacheMemory(server.url)
            pushes, gaps = list[float](), list[float]()
            sampled: list[Completion] = []
            for version in (1, 2):
                _nudge(learner, version)
                pushed = push.push(live.export(learner.policy, learner.shape, layout), version)
                pushes.append(pushed.seconds)
                stale = _gap(learner, prompts, sampled) if sampled else None
                memory.resume()
                sampled = asyncio.run(_sample(server.url, prompts, setup.work.response))
                gaps.append(_gap(learner, prompts, sampled))
                if lends and version == 1:
                    memory.release()
    _check(gaps, stale, LARGEST_GAP[setup.dtype])
    return {"start_seconds": started, "push_seconds": pushes, "gap": gaps, "gap_of_old_weights": stale}


def _prompts(setup: Setup) -> list[Int32]:
    rng = np.random.default_rng(0)
    length = setup.work.prompt
    return [rng.integers(2, setup.shape.vocab, length, dtype=np.int32) for _ in range(_ROWS)]


def _nudge(learner: Learner, seed: int) -> None:
    """Change every weight a little: a push that does nothing must be seen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


async def _sample(url: str, prompts: Sequence[Int32], response: int) -> list[Completion]:
    """One half greedy, then the other at temperature 1: mixed they take another sampler than a run's."""
    found: list[Completion] = []
    async with SGLangEngine(url) as client:
        half = len(prompts) // 2
        for temperature, some in ((0.0, prompts[:half]), (1.0, prompts[half:])):
            sampling = Sampling(temperature, max_new_tokens=response)
            found += await asyncio.gather(*(client.generate(ids.tolist(), sampling) for ids in some))
    return found


def _gap(learner: Learner, prompts: Sequence[Int32], sampled: Sequence[Completion]) -> float:
    """The mean difference, over tokens, of the engine's log-probabilities from the learner's."""
    steps = [
        Step(prompt, found.response_ids, found.logprobs, 0.0, True, bytes(16), found.versions)
        for prompt, found in zip(prompts, sampled, strict=True)
    ]
    batches = learner.pack(steps, np.arange(len(steps)))
    theirs: list[Float32] = [steps[row].logprobs for batch in batches for row in batch.rows]
    ours = np.concatenate(learner.score(batches))
    return float(np.abs(ours - np.concatenate(theirs)).mean())


def _check(gaps: Sequence[float], stale: float | None, limit: float) -> None:
    if not max(gaps) <= limit:
        raise Wrong(f"the engine's log-probs are {max(gaps):.2g} from the learner's, more than {limit:g}")
    if stale is None or not stale > 2 * gaps[1]:
        raise Wrong(f"the gap to the weights before the second push, {stale}, is not above {gaps[1]:.2g}")
