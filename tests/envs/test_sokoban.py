"""Rooms against the reference's; moves, rewards, the expert, the dialogues; nothing said breaks them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from envs.base import EnvError, Observation, Task
from envs.dialogue import Answer, Situation, Turn
from envs.sokoban import Room, Shape, SokobanEnvironment, SokobanTasks, demonstrate, room_of, solve
from envs.sokoban.dialogue import DIALOGUES, project
from envs.sokoban.rooms import MOVES
from envs.sokoban.views import render

# Recorded from verl-agent's generator (env_package/sokoban/sokoban/room_utils.py) run on these seeds.
GOLDEN = json.loads((Path(__file__).parent / "golden_sokoban.json").read_text())
KINDS = {"#": 0, "_": 1, "O": 2, "P": 1, "S": 2, "X": 1, "√": 2}


def room(*rows: str) -> Room:
    places = {(i, j): symbol for i, row in enumerate(rows) for j, symbol in enumerate(row)}
    (player,) = [cell for cell, symbol in places.items() if symbol in "PS"]
    boxes = frozenset(cell for cell, symbol in places.items() if symbol in "X√")
    return Room(tuple(tuple(KINDS[symbol] for symbol in row) for row in rows), player, boxes)


def rows(state: Room) -> list[str]:
    return render(state, "rows").replace(" ", "").split("\n")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['seed']}-{case['boxes']}")
def test_rooms_are_the_references(case: dict[str, Any]) -> None:
    shape = Shape(len(case["room"]), len(case["room"][0]), case["boxes"], case["search_depth"])
    assert rows(room_of(case["seed"], shape)) == case["room"]


START = room("######", "#_XOP#", "#____#", "#____#", "#____#", "######")


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        ("#PX_O#", "right", "#_PXO#"),
        ("#_PXO#", "right", "#__P√#"),
        ("#P√_O#", "right", "#_SXO#"),
        ("#PX#O#", "right", "#PX#O#"),
        ("#PXXO#", "right", "#PXXO#"),
        ("#PX_O#", "left", "#PX_O#"),
        ("#_SX_#", "left", "#POX_#"),
        ("#_XP_#", "left", "#XP__#"),
    ],
)
def test_the_player_pushes_one_box_and_never_pulls(before: str, name: str, after: str) -> None:
    wall = "#" * len(before)
    assert rows(room(wall, before, wall).moved(name))[1] == after
    turned = rows(room(*map("".join, zip(wall, before, wall, strict=True))).moved(
        {"left": "up", "right": "down"}[name]))
    assert "".join(row[1] for row in turned) == after


def test_rewards_of_an_episode() -> None:
    environment = SokobanEnvironment(max_steps=3)
    environment.reset(Task("a", "b", "0 6 6 1 30"))
    environment._room = room("######", "#PX_O#", "#____#", "######")
    first, second = environment.step("right"), environment.step("Right")
    assert (first.reward, first.done, first.success, first.valid) == (-0.1, False, False, True)
    assert second.reward == pytest.approx(-0.1 + 1 + 10)
    assert (second.done, second.success) == (True, True)
    with pytest.raises(EnvError, match="call reset"):
        environment.step("up")


def test_leaving_a_target_and_running_out_of_steps() -> None:
    environment = SokobanEnvironment(max_steps=3)
    environment.reset(Task("a", "b", "0 6 6 1 30"))
    environment._room = room("######", "#P√_X#", "#O___#", "######")
    assert environment.step("right").reward == pytest.approx(-1.1)
    refused, last = environment.step("fly"), environment.step("still")
    assert (refused.reward, refused.valid, refused.done) == (-0.1, False, False)
    assert (last.reward, last.valid, last.done, last.success) == (-0.1, True, True, False)


def test_symbols_rows_and_text_views_show_every_cell() -> None:
    small = room("######", "#SX_√#", "#_#O_#", "######")
    assert render(small, "rows") == "# # # # # #\n# S X _ √ #\n# _ # O _ #\n# # # # # #"
    assert render(small, "symbols").split("\n")[1] == " # \t S \t X \t _ \t √ \t # \t"
    assert render(small, "text") == (
        "The room has 4 rows and 6 columns, walls around it.\nYou: row 2 column 2\n"
        "Boxes: row 2 column 3; row 2 column 5\n"
        "Targets: row 2 column 2; row 2 column 5; row 3 column 4\nWalls inside: row 3 column 3"
    )


def test_the_relative_view_shows_relative_positions_and_its_state_is_the_whole_room() -> None:
    near, far = room("#####", "#PX_#", "#__O#", "#####"), room("#####", "#PX_#", "#_#O#", "#####")
    assert render(near, "relative") == (
        "target from box: down 1 right 1\nbox walls: up free free free\n"
        "your walls: up free left free\nbox from you: down 0 right 1"
    )
    assert render(far, "relative").split("\n")[1] == "box walls: up down free free"
    two = render(room("######", "#OX__#", "#_PXO#", "######"), "relative").split("\n")
    assert [line for line in two if "from" in line] == [
        "target from box: down 0 left 1", "box from you: up 1 right 0",
        "target from box: down 0 right 1", "box from you: down 0 right 1",
    ]  # fmt: skip
    environment = SokobanEnvironment(view="relative")
    seen = environment.reset(Task("a", "b", "0 6 6 1 30"))
    assert seen.state == render(environment.room, "rows")
    assert SokobanEnvironment(view="rows").reset(Task("a", "b", "0 6 6 1 30")).state is None


def test_tasks_are_apart_and_drawn_as_the_reference_draws() -> None:
    tasks = SokobanTasks(train=300, test=300, unseen=False)
    train, test = (
        [int(task.source.split()[0]) for task in tasks.tasks(split)] for split in ("train", "test")
    )
    drawn = np.random.RandomState(0).randint(0, 2**16 - 1, size=400).tolist()
    assert train == list(dict.fromkeys(drawn))[:300]
    assert len(set(train)) == len(set(test)) == 300
    assert max(train) < 2**16 <= min(test) <= max(test) < 2**32
    assert SokobanTasks(seed=1).tasks("train")[0] != SokobanTasks().tasks("train")[0]
    with pytest.raises(EnvError, match="unknown split 'valid'; known: train, test"):
        tasks.tasks("valid")
    with pytest.raises(EnvError, match=r"environment\.tasks\.train: 0 is not in 1\.\.32768"):
        SokobanTasks(train=0)


def test_unseen_rooms_are_unseen() -> None:
    def rooms(tasks: SokobanTasks, split: str) -> list[Room]:
        return [room_of(int(task.source.split()[0]), tasks.shape) for task in tasks.tasks(split)]

    drawn, fresh = SokobanTasks(unseen=False), SokobanTasks()
    known, held_out = set(rooms(drawn, "train")), rooms(drawn, "test")
    assert (len(held_out), sum(room in known for room in held_out)) == (512, 198)
    assert known & set(rooms(fresh, "test")) == set()
    assert known == set(rooms(fresh, "train"))
    both = rooms(SokobanTasks(test=640), "test")
    panel, rest = both[::2], both[1::2]  # as configs/sokoban/small.yaml has it
    assert sum(room in set(panel) for room in rest) == 6


def test_a_seed_that_gives_no_room_is_replaced_by_one_that_follows_from_it() -> None:
    small = Shape(5, 5, 1, 3)
    rooms = [room_of(seed, small) for seed in range(40)]
    room_of.cache_clear()
    assert rooms == [room_of(seed, small) for seed in range(40)]
    assert not any(state.solved for state in rooms)


def test_every_room_is_solved_and_detours_stay_in_time() -> None:
    for task in SokobanTasks(train=60).tasks("train"):
        best = demonstrate(task, seed=0)
        assert best.success
        assert len(best.turns) == len(solve(room_of(int(task.source.split()[0]), Shape())) or ())
        idle = demonstrate(task, seed=0, detour=0.5, options={"view": "rows"})
        assert idle == demonstrate(task, seed=0, detour=0.5, options={"view": "rows"})
        assert idle.success
        assert len(idle.turns) >= len(best.turns)


def test_the_solver_finds_the_fewest_moves_or_none() -> None:
    assert solve(room("######", "#PX_O#", "######")) == ("right", "right")
    assert solve(room("######", "#PX_O#", "######"), limit=1) is None
    open_room = room("#####", "#___#", "#PXO#", "#___#", "#####")
    assert solve(open_room.moved("up"), limit=2) == ("down", "right")  # not the first state of its depth
    assert solve(room("#####", "#PXO#", "#####").moved("right")) == ()
    assert solve(room("######", "#XP_O#", "######")) is None


THOUGHT = "<think>up?</think>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{THOUGHT}<action>Right</action>", Answer("Right", True)),
        (f"{THOUGHT}<action>go left, then up</action>", Answer("Up", True)),  # in the pool's order
        (f"{THOUGHT}<action>still</action>", Answer("Still", True)),
        (f"{THOUGHT}<action>jump</action>", Answer("Still", False)),
        (f"{THOUGHT}<action>left", Answer("Still", False)),
        ("<action>left</action>", Answer("Left", False)),
        ("up", Answer("Still", False)),
        ("", Answer("Still", False)),
    ],
)
def test_the_first_move_named_in_the_action_block_is_played(text: str, expected: Answer) -> None:
    assert project(text, ended=True) == expected


@pytest.mark.parametrize("name", list(MOVES))
def test_cloning_targets_are_parsed_as_their_action(name: str) -> None:
    for dialogue in DIALOGUES.values():
        answer = dialogue.read(dialogue.answer(name), True)
        assert (answer.action.lower(), answer.valid) == (name, True)


def test_messages_are_verl_agents() -> None:
    chat, seen = DIALOGUES["chat"], Observation(" # \t")
    first = chat.prompt(Situation("", seen))
    assert "\n# Current Step\nYour current observation is:\n # \t\nYour admissible actions are" in first
    later = chat.prompt(Situation("", seen, (Turn(Observation(" P \t"), "Up"),), step=3))
    assert (
        "Prior to this step, you have already taken 3 step(s). Below are the most recent 1 observations "
        "and the corresponding actions you took: [Observation 3: ' P \t', Action 3: 'Up']\n"
        "You are now at step 4 and your current observation is:\n # \t\n"
    ) in later
    assert DIALOGUES["compact"].prompt(Situation("", Observation("# P"))) == "# P\n>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 4}, r"tasks\.rows: 4 is not in 5\.\.30"),
        ({"boxes": 5}, "5 are too many for 6 x 6 cells"),
        ({"search_depth": 501}, r"501 is not in 3\.\.500"),
        ({"seed": -1}, "-1 is below 0"),
    ],
)
def test_task_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        SokobanTasks(**options)


def test_unknown_views_and_step_limits_below_one_are_refused() -> None:
    with pytest.raises(EnvError, match="unknown view 'video'; known: symbols, rows, text, relative"):
        SokobanEnvironment(view="video")  # pyright: ignore[reportArgumentType]
    with pytest.raises(EnvError, match=r"max_steps: 0 is below 1"):
        SokobanEnvironment(max_steps=0)


@pytest.mark.parametrize(
    "source",
    ["", "1", "-1 6 6 1 30", "٣ 6 6 1 30", f"{2**32} 6 6 1 30", "9" * 5000, "1 6 6 1 30 "],
)
def test_a_source_that_is_not_a_seed_and_shape_is_refused(source: str) -> None:
    with pytest.raises(EnvError, match="is not `seed rows columns boxes search_depth`"):
        SokobanEnvironment().reset(Task("a", "b", source))


def test_no_answer_breaks_this_or_another_episode() -> None:
    rng, tasks = Random(0), SokobanTasks(train=40).tasks("train")
    said = ["", "up", "down", "left", "right", "RIGHT ", "a" * 100_000, "看", "\ud800", "\0\x1b[2J",
            "<action>" * 9999, f"{THOUGHT}<action>up</action>"]
    players = [SokobanEnvironment() for _ in range(3)]
    shadows: list[Room | None] = [None] * 3
    for _ in range(10_000):
        i = rng.randrange(3)
        shadow = shadows[i]
        if shadow is None:
            task = rng.choice(tasks)
            seen = players[i].reset(task)
            shadow = room_of(int(task.source.split()[0]), Shape())
            assert seen.text == render(shadow, "symbols")
        action = rng.choice(said)
        if rng.random() < 0.3:
            action = project(action, ended=True).action
        transition = players[i].step(action)
        name = action.strip().lower()
        shadow = shadow.moved(name) if name in MOVES else shadow
        assert transition.observation.text == render(shadow, "symbols")
        assert transition.success == shadow.solved
        shadows[i] = None if transition.done else shadow
