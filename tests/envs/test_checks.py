"""What users' environments return: plain values pass, numpy's become plain, anything else is one line."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from envs.base import EnvError, Observation, Transition
from envs.checks import checked_observation, checked_transition
from tests.rollout.fake_environment import FINE, WRONG


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_field(name: str) -> None:
    field = {"tuple": "step", "nothing": "step", "locked": "step"}.get(name, name.split()[0])
    with pytest.raises(EnvError, match=rf"^[^\n]*\b{field}\b[^\n]*$") as refused:
        checked_transition(WRONG[name]())
    assert len(str(refused.value)) < 160


@pytest.mark.parametrize("name", FINE)
def test_numpy_scalars_and_integers_become_plain_values(name: str) -> None:
    checked = checked_transition(FINE[name]())
    kinds = [type(getattr(checked, field)) for field in ("reward", "done", "success", "valid")]
    assert kinds == [float, bool, bool, bool]
    assert type(checked.observation.text) is str
    assert {type(command) for command in checked.observation.admissible} <= {str}
    assert pickle.loads(pickle.dumps(checked)) == checked


@pytest.mark.parametrize("reward", [-0.1, 0, True, 1e30, np.int64(3), np.float16(0.5)])
def test_finite_numbers_are_rewards(reward: Any) -> None:
    transition = Transition(Observation("here", ("go",), "walk", "state"), reward, False, False, True)
    checked = checked_transition(transition)
    assert checked == transition
    assert type(checked.reward) is float


def test_a_tensor_of_one_element_is_a_reward() -> None:
    torch = pytest.importorskip("torch")
    transition = Transition(Observation("here"), torch.tensor([2.5]), torch.tensor(True), False, True)  # type: ignore[arg-type]
    assert checked_transition(transition) == Transition(Observation("here"), 2.5, True, False, True)
    wrong = Transition(Observation("here"), torch.zeros(2), False, False, True)  # type: ignore[arg-type]
    with pytest.raises(EnvError, match=r"reward is Tensor tensor\(\[0\., 0\.\]\); it must be a number"):
        checked_transition(wrong)


@pytest.mark.parametrize("found", [None, "here", ("here", {}), {"text": "here"}])
def test_only_an_observation_is_one(found: object) -> None:
    with pytest.raises(EnvError, match=r"^the observation is .*, not envs\.Observation$"):
        checked_observation(found)
