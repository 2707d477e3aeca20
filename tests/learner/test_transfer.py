"""Arrays reach the learner's device as they are; a GPU takes them from pinned memory, and nobody waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gigpo_mega.learner.transfer import on_device


def test_on_a_cpu_nothing_is_copied() -> None:
    values = np.arange(5, dtype=np.float32)
    assert on_device(values, torch.device("cpu")).data_ptr() == values.ctypes.data


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
