"""gigpo_mega.experiment.pictures: what is drawn over what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gigpo_mega.experiment import pictures


def run(seed: int, success: float) -> dict[str, Any]:
    return {"seed": seed, "curves": {"rollout/success": [success] * 4}}


def test_a_variant_is_drawn_over_the_reference_of_its_own_seeds() -> None:
    grouped = {"grpo": [run(1, 0.2), run(2, 0.8)], "gigpo": [run(2, 0.5)], "rloo": [run(3, 0.5)]}
    spec: Any = SimpleNamespace(references=("grpo",))
    drawn = [
        [line.get_ydata().tolist() for line in axes.lines] for axes in pictures._curves(spec, grouped).axes
    ]
    mean, same, own = (pytest.approx([100 * value] * 4) for value in (0.5, 0.8, 0.5))
    assert drawn == [[mean], [same, own], [own]]


@pytest.mark.parametrize("count", [3, 12, 24])
def test_lines_of_many_variants_can_be_told_apart(count: int) -> None:
    runs = [{"seed": 1, "curves": {"rollout/success": [0.5] * 4, "rollout/length": [9.0] * 4}}]
    grouped = {f"variant {number}": runs for number in range(count)}
    spec: Any = SimpleNamespace(references=())
    for figure in (pictures._mechanism(grouped), pictures._curves(spec, grouped)):
        looks = [(line.get_color(), line.get_linestyle()) for axes in figure.axes for line in axes.lines]
        assert len(set(looks)) == len(looks) == count
