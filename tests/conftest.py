"""Tiers: a test without a tier is a unit test; `gpu` is skipped where there is no CUDA device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

TIERS = ("learn", "engine", "distributed", "aot", "interpret", "gpu", "unit")  # the longest first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test a tier; the files with the longest tiers come first, so that workers end together."""
    without_gpu = pytest.mark.skip(reason="no CUDA device")
    longest: dict[Path, int] = {}
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_gpu)
        if not any(map(item.get_closest_marker, TIERS)):
            item.add_marker(pytest.mark.unit)
        tier = min(TIERS.index(tier) for tier in TIERS if item.get_closest_marker(tier))
        longest[item.path] = min(tier, longest.get(item.path, tier))
    items.sort(key=lambda item: longest[item.path])


@dataclass(frozen=True)
class Served:
    """A real SGLang server with the weights of `model`, tagged version 0."""

    model: Path
    url: str


@pytest.fixture(scope="session")
def sglang_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from gigpo_mega.config import EngineConfig
    from gigpo_mega.rollout.server import SGLangServer
    from tests.tiny import write_policy

    folder = tmp_path_factory.mktemp("sglang")
    model = write_policy(folder / "model")
    with SGLangServer(model, EngineConfig(max_total_tokens=8192), folder / "sglang.log") as server:
        yield Served(model, server.url)


@pytest.fixture
def served(sglang_server: Served) -> Served:
    """The session's server, brought back to version 0 where a test before pushed other weights."""
    from safetensors.torch import load_file

    from gigpo_mega.weights.push import PushError, WeightPusher

    pusher = WeightPusher(sglang_server.url)
    try:
        pusher.verify(0)
    except PushError:
        pusher.push(load_file(sglang_server.model / "model.safetensors").items(), version=0)
    return sglang_server
