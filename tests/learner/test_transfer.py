"""Arrays reach the learner's device as they are; a GPU takes them from pinned memory, and nobody waits."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from gigpo_mega.learner.samples import outline
from gigpo_mega.learner.targets import plan_updates
from gigpo_mega.learner.transfer import on_device
from gigpo_mega.learner.update import surrogate
from tests.learner import ranks
from tests.tiny import random_steps

pytestmark = pytest.mark.distributed


def test_on_a_cpu_nothing_is_copied() -> None:
    values = np.arange(5, dtype=np.float32)
    assert on_device(values, torch.device("cpu")).data_ptr() == values.ctypes.data


@pytest.mark.gpu
def test_a_gpu_has_what_the_host_had() -> None:
    values = np.arange(1 << 20)
    sent = on_device(values, torch.device("cuda"))
    del values  # its pinned copy lives until it has been read
    assert torch.equal(sent.cpu(), torch.arange(1 << 20))


def test_an_array_with_gaps_arrives_whole() -> None:
    assert on_device(np.arange(6)[::2], torch.device("cpu")).tolist() == [0, 2, 4]


def test_a_gpu_takes_it_from_pinned_memory_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        said.append("pinned")
        return self

    def to(self: torch.Tensor, device: torch.device, **options: Any) -> torch.Tensor:
        said.append((device.type, options))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    on_device(np.arange(5), torch.device("cuda"))
    assert said == ["pinned", ("cuda", {"non_blocking": True})]


@pytest.mark.parametrize("packed", [True, False])
def test_what_a_micro_batch_is_made_of_goes_to_the_device_without_a_wait(
    place: ranks.Place, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every column went from pageable memory, and the host waited for the device each time."""
    cfg = ranks.config(packed=packed)
    learner = ranks.learner(replace(place, cfg=cfg))
    rows, advantages = ranks.table(random_steps(ranks.ROWS))
    plan = plan_updates(learner, outline(learner.layout, rows), rows, advantages, cfg, 0)
    from_numpy, senders = torch.from_numpy, set[str]()

    def noting(values: Any) -> torch.Tensor:
        senders.add(sys._getframe(1).f_code.co_name)
        return from_numpy(values)

    monkeypatch.setattr(torch, "from_numpy", noting)
    learner.accumulate(plan[0], partial(surrogate, cfg, compare=True))
    assert senders == {"on_device"}
