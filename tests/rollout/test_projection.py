"""The paper's projection, rule by rule, and the plain one."""

from __future__ import annotations

import pytest

from gigpo_mega.rollout.projection import ANSWERS, PROJECTIONS, Projected, plain, tagged

THOUGHT = "<think>The mug is on the desk.</think>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{THOUGHT}<action>Go To Desk 1</action>", Projected("go to desk 1", True)),
        (f"{THOUGHT}\n<ACTION> look </Action> and more", Projected("look", True)),
        (f"{THOUGHT}<action>a</action><action>b</action>", Projected("a", True)),
        ("<action>look</action>", Projected("look", False)),
        ("<think>hm<action>look</action>", Projected("look", False)),
        ("<THINK>hm</THINK><action>look</action>", Projected("look", False)),
        (f"{THOUGHT}<action>look", Projected(" the desk.</think><action>look", False)),
        ("I would TAKE the mug from the desk now", Projected("take the mug from the desk now", False)),
        (f"{THOUGHT[:-8]}看</think><action>look</action>", Projected("look", False)),
        (f"{THOUGHT}</action><action>look", Projected("", True)),  # as the reference has it
        ("", Projected("", False)),
    ],
)
def test_tagged(answer: str, expected: Projected) -> None:
    assert tagged(answer, finished=True) == expected


@pytest.mark.parametrize(
    ("answer", "finished", "expected"),
    [
        (" go to desk 1 \n", True, Projected("go to desk 1", True)),
        (" go to desk", False, Projected("go to desk", False)),
        ("  ", True, Projected("", False)),
    ],
)
def test_plain(answer: str, finished: bool, expected: Projected) -> None:
    assert plain(answer, finished) == expected


@pytest.mark.parametrize("projection", ["tagged", "plain"])
def test_what_cloning_teaches_projects_to_the_action(projection: str) -> None:
    answer = ANSWERS[projection]("take mug 1 from desk 1")
    assert PROJECTIONS[projection](answer, True) == Projected("take mug 1 from desk 1", valid=True)
