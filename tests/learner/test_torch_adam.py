"""What megatron's checkpoints lose of torch's Adam; each fix is shown to be needed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner import shards, torch_adam
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from tests.learner import ranks
from tests.tiny import write_policy

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not torch_adam.USED, reason="Transformer Engine or Apex brings another Adam"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ranks.Place]:
    cfg = ranks.config()
    layout = parallel.initialize(cfg.parallel, seed=0)
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    yield ranks.Place(cfg, policy, policy, layout)
    parallel.shutdown()


@pytest.fixture(scope="module")
def checkpoints(place: ranks.Place, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """One checkpoint after an iteration of three updates."""
    made = ranks.learner(place)
    ranks.iterate(made, place.cfg, 0)
    saved = Checkpoints(tmp_path_factory.mktemp("checkpoints"), CheckpointConfig())
    saved.save(made)
    return saved


def steps(made: Learner) -> list[torch.Tensor]:
    return [state["step"] for adam in torch_adam._adams(made.optimizer) for state in adam.state.values()]


def test_every_parameter_has_a_step_of_its_own_after_loading(
    place: ranks.Place, checkpoints: Checkpoints
) -> None:
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    assert {float(step) for step in steps(made)} == {3.0}
    assert len({step.data_ptr() for step in steps(made)}) == len(steps(made)) > 10
    ranks.iterate(made, place.cfg, 1)
    assert {float(step) for step in steps(made)} == {6.0}


def test_updates_are_counted_on_after_loading(place: ranks.Place, checkpoints: Checkpoints) -> None:
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    assert made.updates == 3
    ranks.iterate(made, place.cfg, 1)
    assert made.updates == 6


def test_on_a_gpu_adam_steps_in_one_kernel_also_after_loading(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the CPU's fused kernel stands for CUDA's; a checkpoint written without it must not turn it off."""
    plain = ranks.learner(place)
    assert not any(group.get("fused") for group in plain.optimizer.param_groups)
    monkeypatch.setattr(torch_adam, "_FUSED_ON", "cpu")
    for fused, slow in ((ranks.learner(place), plain), (ranks.learner(place), ranks.learner(place))):
        if slow is not plain:
            checkpoints.load(fused, 1)
            checkpoints.load(slow, 1)
            for group in slow.optimizer.param_groups:
                group["fused"] = None
        groups = fused.optimizer.param_groups
        assert len(groups) >= 2
        assert all(group["fused"] for group in groups)
        for made in (fused, slow):
            ranks.iterate(made, place.cfg, fused.iteration)
        assert {float(step) for step in steps(fused)} == {3.0 * fused.iteration}
        for one, other in zip(fused.policy.parameters(), slow.policy.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_another_adam_has_zeros_for_moments_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine's has no state then, megatron allocates one, and a checkpoint was refused."""

    class FakeDistributed:
        def __init__(self) -> None:
            self.optimizer, self.allocated = SimpleNamespace(state={}), 0

        def state_dict(self) -> None: ...

        def load_state_dict(self, state: None) -> None:
            self.allocated += 1
            garbage = {name: torch.full((3,), 7.0) for name in ("param", "exp_avg", "exp_avg_sq")}
            self.optimizer.state["parameter"] = garbage

    made: Any = FakeDistributed()
    monkeypatch.setattr(torch_adam, "USED", False)
    monkeypatch.setattr(shards, "_distributed", lambda learner: made)
    for _ in range(2):
        shards._fill_moments(cast(Learner, None))
    assert made.allocated == 1
    sums = {name: float(value.sum()) for name, value in made.optimizer.state["parameter"].items()}
    assert sums == {"param": 21.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}


def test_loading_wants_a_state_to_load_into(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_adam, "prefill", lambda optimizer: None)
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.load(ranks.learner(place), 1)


def test_loading_forgets_the_step_of_each_parameter(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_adam, "restore_step_count", lambda optimizer, steps: None)
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    shared = len({step.data_ptr() for step in steps(made)}) < len(steps(made))
    assert shared or {float(step) for step in steps(made)} != {3.0}
