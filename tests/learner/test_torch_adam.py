"""What megatron's checkpoints forget of torch's Adam; each mend is shown to be needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import parallel, torch_adam
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.update import Learner
from tests.learner import ranks
from tests.tiny import write_policy

from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # isort: skip

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
    return [state["step"] for state in torch_adam._states(made.optimizer)]


def test_every_parameter_has_a_step_of_its_own_after_loading(
    place: ranks.Place, checkpoints: Checkpoints
) -> None:
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    assert {float(step) for step in steps(made)} == {3.0}
    assert len({step.data_ptr() for step in steps(made)}) == len(steps(made)) > 10
    ranks.iterate(made, place.cfg, 1)
    assert {float(step) for step in steps(made)} == {6.0}


def test_the_scheduler_goes_on_where_it_was(place: ranks.Place, checkpoints: Checkpoints) -> None:
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    assert made.scheduler.num_steps == 3
    ranks.iterate(made, place.cfg, 1)
    assert made.scheduler.num_steps == 6


def test_loading_wants_a_state_to_load_into(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_adam, "prefill", lambda optimizer: None)
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.load(ranks.learner(place), 1)


def test_loading_drops_the_step_from_the_state(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_set_main_param_and_optimizer_states"
    unmended = getattr(DistributedOptimizer, name).__wrapped__
    monkeypatch.setattr(DistributedOptimizer, name, unmended)
    with pytest.raises(UserError, match="KeyError: 'step'"):
        checkpoints.load(ranks.learner(place), 1)


def test_loading_forgets_the_step_of_each_parameter(
    place: ranks.Place, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_adam, "restore_step_count", lambda optimizer, steps: None)
    made = ranks.learner(place)
    checkpoints.load(made, 1)
    shared = len({step.data_ptr() for step in steps(made)}) < len(steps(made))
    assert shared or {float(step) for step in steps(made)} != {3.0}
