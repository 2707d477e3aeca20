"""Tiers: a test without a tier is a unit test; `gpu` is skipped where there is no CUDA device."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TIERS = {"unit", "interpret", "aot", "distributed", "engine", "learn", "gpu"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers = [{mark.name for mark in item.iter_markers()} & TIERS for item in items]
    without_gpu = pytest.mark.skip(reason="no CUDA device")
    for item, names in zip(items, tiers, strict=True):
        if not names:
            item.add_marker(pytest.mark.unit)
        if "gpu" in names and not _cuda():
            item.add_marker(without_gpu)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
