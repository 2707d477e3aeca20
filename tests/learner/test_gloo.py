"""Gloo groups that share a device: newer versions of torch get what they pass, unknown ones stay alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from gigpo_mega.learner import gloo

LIMIT = timedelta(seconds=7)


class FakeOptions:
    """Those of torch 2.14."""

    _devices: Any = None
    _timeout: Any = None
    enable_reconfigure = False


class FakeNewerGloo:
    """ProcessGroupGloo as torch 2.14 has it: options, or a timeout and what else it was made with."""

    _Options = FakeOptions

    def __init__(self, store: Any, rank: int, size: int, options: FakeOptions) -> None:
        self.made = (store, rank, size)
        self.options = options


def made_as_torch_2_14_does(store: Any, **further: Any) -> Any:
    c10d: Any = distributed_c10d
    return c10d.ProcessGroupGloo(store, 0, 1, timeout=LIMIT, **further)


def test_what_a_newer_torch_passes_reaches_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """`enable_reconfigure=` was a TypeError in every run on torch 2.14, then dropped."""
    monkeypatch.setattr(distributed_c10d, "ProcessGroupGloo", FakeNewerGloo)
    with gloo.one_device():
        groups = [made_as_torch_2_14_does("store", enable_reconfigure=asked) for asked in (True, False)]
    assert distributed_c10d.ProcessGroupGloo is FakeNewerGloo
    assert [group.options.enable_reconfigure for group in groups] == [True, False]
    assert groups[0].made == ("store", 0, 1)
    assert groups[0].options._timeout == LIMIT
    [device] = groups[0].options._devices
    assert [device] == groups[1].options._devices


def test_a_torch_that_was_never_tried_makes_its_groups_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_c10d, "ProcessGroupGloo", FakeNewerGloo)
    monkeypatch.setattr(gloo.torch, "__version__", "2.99.0")
    with gloo.one_device():
        assert distributed_c10d.ProcessGroupGloo is FakeNewerGloo


def test_the_installed_torch_is_one_that_was_tried() -> None:
    with gloo.one_device():
        group = made_as_torch_2_14_does(HashStore())
    assert type(group).__mro__.index(distributed_c10d.ProcessGroupGloo) == 1
    group.barrier().wait()
