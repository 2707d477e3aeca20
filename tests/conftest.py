"""Tiers: a test without a tier is a unit test; `gpu` is skipped where there is no CUDA device."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from tests import preloaded, reach

# Property tests have a fixed seed and no deadline: a failure means a change, never chance or load.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

TIERS = ("learn", "engine", "distributed", "aot", "interpret", "gpu", "unit")  # the longest first


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "only test files that a change since the last commit can reach (tests/reach.py)"
    parser.addoption("--changed", action="store_true", help=text)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --changed, leave out the files that nothing has changed for."""
    if not config.getoption("--changed") or collection_path.suffix != ".py":
        return None
    return None if collection_path in _reached() else True


@cache
def _reached() -> set[Path]:
    return reach.selected()


def pytest_configure() -> None:
    """One process for all workers: they inherit its address."""
    preloaded.python("learner")
    preloaded.python("engine")


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


def pytest_collection_finish() -> None:
    """Collections of garbage need not look at what has been imported, a second of CPU each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def visible_gpus() -> Iterator[None]:
    """A program that a test calls hides the GPUs of this process for good if it takes the CPU stack."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


@dataclass(frozen=True)
class Served:
    """A real SGLang server with the weights of `model`, tagged version 0."""

    model: Path
    url: str


@pytest.fixture(scope="session")
def sglang_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from gigpo_mega.config import EngineConfig
    from tests.tiny import write_policy

    folder = tmp_path_factory.mktemp("sglang")
    model = write_policy(folder / "model")
    with preloaded.engine(model, EngineConfig(max_total_tokens=8192), folder / "sglang.log") as server:
        yield Served(model, server.url)


@pytest.fixture
def served(sglang_server: Served, tmp_path: Path) -> Served:
    """The session's server, brought back to version 0 where a test before pushed other weights."""
    from safetensors.torch import load_file

    from gigpo_mega.config import WeightsConfig
    from gigpo_mega.shape import ModelShape
    from gigpo_mega.weights.push import WeightPush
    from gigpo_mega.weights.transport.base import PushError

    shape = ModelShape.from_hf(sglang_server.model)
    push = WeightPush(WeightsConfig(), shape, [sglang_server.url], tmp_path)
    try:
        push.verify(0)
    except PushError:
        push.push(load_file(sglang_server.model / "model.safetensors").items(), version=0)
    return sglang_server


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of a run of seconds, 3 iterations of tests/tiny.yaml; one real engine serves all of them."""
    from gigpo_mega.config import EngineConfig
    from tests.tiny import write_agent

    folder = tmp_path_factory.mktemp("runs")
    agent = write_agent(folder / "agent")
    with preloaded.engine(agent, EngineConfig(), folder / "sglang.log") as server:
        yield [str(Path(__file__).with_name("tiny.yaml")), "--model.path", str(agent),
               "--engine.url", server.url, "--environment.tasks.data", str(folder / "games"),
               "--iterations", "3"]  # fmt: skip
