"""Games on disk, the generator, the expert and the environment an agent plays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from envs.alfworld import AlfworldEnvironment, AlfworldTasks, demonstrate, task_source
from envs.alfworld.engine import compile_game
from envs.alfworld.expert import Expert, read_goal
from envs.alfworld.games import TASK_TYPES, load_game
from envs.alfworld.generate import generate, make_game
from envs.alfworld.rooms import furnish, receptacle_type
from envs.alfworld.scenes import RoomLimits
from envs.alfworld.wheel import load_wheel
from envs.base import EnvError, Task
from envs.registry import lookup

ROOT = Path(__file__).resolve().parents[2]
SMALL = RoomLimits(receptacles=6, objects=6)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small games a split."""
    folder = tmp_path_factory.mktemp("games")
    for split in ("train", "valid_seen", "valid_unseen"):
        assert len(list(generate(folder, split, 12, seed=5, limits=SMALL))) == 12
    return folder


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def floor_plans(folder: Path) -> set[int]:
    return {int(path.parent.parent.name.split("-")[-1]) for path in folder.rglob("game.tw-pddl")}


def test_the_walkthrough_of_every_game_wins_it_and_not_earlier(root: Path) -> None:
    for task in AlfworldTasks(str(root)).tasks("train"):
        data = json.loads(Path(task.source).read_text())
        play = load_game(task.source).play()
        assert data["solvable"] is True
        won = [play.step(command) and play.won for command in data["walkthrough"]]
        assert won == [False] * (len(won) - 1) + [True]


def test_small_rooms_are_small_and_keep_what_the_task_needs(root: Path) -> None:
    for task in AlfworldTasks(str(root)).tasks("valid_unseen"):
        game = load_game(task.source)
        kinds = Counter(predicate for predicate, _ in game.problem.facts)
        assert kinds["receptacletype"] <= 6
        assert 1 <= kinds["objecttype"] <= 6
        goal = read_goal(game)
        wanted = [arguments for name, arguments in game.problem.facts if name == "objecttype"]
        assert sum(kind == f"{goal.object}type" for _, kind in wanted) >= goal.count


def test_all_six_types_come_in_turn_and_traj_data_says_so(root: Path) -> None:
    kinds = Counter(task.kind for task in AlfworldTasks(str(root)).tasks("train"))
    assert kinds == dict.fromkeys(TASK_TYPES, 2)
    only = AlfworldTasks(str(root), task_types=["look_at_obj_in_light"]).tasks("train")
    assert [task.kind for task in only] == ["look_at_obj_in_light"] * 2


def test_unseen_floor_plans_are_never_seen_in_training(root: Path) -> None:
    splits = {
        name: floor_plans(root / "json_2.1.1" / name) for name in ("train", "valid_seen", "valid_unseen")
    }
    unseen = {plan.number for plan in load_wheel().unseen}
    assert splits["valid_unseen"] <= unseen
    assert not (splits["train"] | splits["valid_seen"]) & unseen


def test_both_lamps_are_used() -> None:
    wheel = load_wheel()
    names = [make_game(wheel, "train", "look_at_obj_in_light", f"lamp/{i}", SMALL)[0] for i in range(12)]
    assert {name.split("-")[3] for name in names} == {"DeskLamp", "FloorLamp"}


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "envs.alfworld.generate", "--train", "6", "--valid-unseen", "6"]
    command += ["--seed", "9", "--max-receptacles", "6", "--max-objects", "6", "--output"]
    for seed in ("0", "1"):
        shown = subprocess.run(
            [*command, str(tmp_path / seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Warning" not in shown.stderr
    assert digest(tmp_path / "0") == digest(tmp_path / "1")
    list(generate(tmp_path / "2", "train", 6, seed=10, limits=SMALL))
    assert digest(tmp_path / "0" / "json_2.1.1" / "train") != digest(tmp_path / "2" / "json_2.1.1" / "train")


def test_receptacles_without_a_layout_stand_where_one_can_reach_them() -> None:
    wheel = load_wheel()
    plan = wheel.unseen[0]
    surfaces = furnish(plan, wheel, Random(0))
    real = {name for name, _ in plan.surfaces}
    added = [surface for surface in surfaces if surface.id not in real]
    assert Counter(surface.kind for surface in added)["StoveBurner"] == 4
    for surface in added:
        x, _, z = surface.position
        assert (surface.pose.x, surface.pose.z) in plan.standing
        assert ((surface.pose.x - x) ** 2 + (surface.pose.z - z) ** 2) ** 0.5 < 2.5  # meters
    assert len({str(surface.pose) for surface in added}) == len(added)


def test_basins_are_known_by_the_end_of_their_ids() -> None:
    assert receptacle_type("Sink|+01.10|+00.91|-01.60|SinkBasin") == "SinkBasin"
    assert receptacle_type("Cabinet|+00.68|+00.50|-02.20") == "Cabinet"


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("detour", [0.0, 0.3])
def test_the_expert_wins_every_small_game(root: Path, explore: bool, detour: float) -> None:
    for task in AlfworldTasks(str(root)).tasks("train"):
        play = load_game(task.source).play()
        expert = Expert(play, Random(3), detour, explore)
        for _ in range(50):
            if not play.won:
                assert play.step(expert.command())
        assert play.won
        shown = demonstrate(task, seed=3, detour=detour, max_steps=50)
        assert shown.success
        assert all(command in observation.admissible for observation, command in shown.turns)


def test_detours_are_drawn_from_the_seed_and_lengthen_the_walk(root: Path) -> None:
    tasks = AlfworldTasks(str(root)).tasks("train")

    def commands(seed: int, detour: float) -> list[list[str]]:
        return [[c for _, c in demonstrate(task, seed, detour).turns] for task in tasks]

    assert commands(1, 0.3) == commands(1, 0.3)
    assert commands(1, 0.3) != commands(2, 0.3)
    assert sum(map(len, commands(1, 0.3))) > sum(map(len, commands(1, 0.0)))


def test_an_exploring_expert_takes_only_what_it_was_shown(root: Path) -> None:
    taken = 0
    for task in AlfworldTasks(str(root)).tasks("valid_seen"):
        shown = demonstrate(task, seed=0)
        told = ""
        for observation, command in shown.turns:
            told += observation.text
            if command.startswith("take "):
                name = command.removeprefix("take ").partition(" from ")[0]
                assert f"a {name}" in told
                taken += 1
    assert taken >= 12


def test_an_expert_holding_the_wrong_thing_puts_it_down_and_still_wins(root: Path) -> None:
    task = AlfworldTasks(str(root), task_types=["pick_and_place_simple"]).tasks("train")[0]
    play = load_game(task.source).play()
    wrong = next(step for step in wrong_pickups(task) if step)
    expert = Expert(play, Random(0))
    for command in wrong:
        expert.observe(command)
        play.step(command)
    for _ in range(30):
        if play.won:
            break
        play.step(expert.command())
    assert play.won


def wrong_pickups(task: Task) -> Iterator[list[str]]:
    """Ways to pick up something that the task does not ask for."""
    game = load_game(task.source)
    goal = read_goal(game)
    for start in game.play().admissible:
        play = game.play()
        walk = [start]
        play.step(start)
        opening = [command for command in play.admissible if command.startswith("open ")]
        for command in opening:
            play.step(command)
            walk.append(command)
        takes = [command for command in play.admissible if command.startswith("take ")]
        yield next(([*walk, take] for take in takes if f"take {goal.object} " not in take), [])


def test_the_environment_follows_the_protocol_and_the_papers_reward(root: Path) -> None:
    environment = lookup("alfworld").environment(max_steps=20)
    assert isinstance(environment, AlfworldEnvironment)
    task = AlfworldTasks(str(root)).tasks("train")[0]
    first = environment.reset(task)
    assert first.text.startswith("-= Welcome to TextWorld, ALFRED! =-")
    assert first.text.endswith(f"Your task is to: {first.instruction}")
    assert "help" not in first.admissible
    assert environment.play.admissible == tuple(sorted((*first.admissible, "help")))
    wrong = environment.step("do a handstand")
    assert (wrong.observation.text, wrong.valid, wrong.reward) == ("Nothing happens.", False, 0.0)
    rewards = []
    for command in json.loads(Path(task.source).read_text())["walkthrough"]:
        transition = environment.step(command)
        assert transition.valid
        assert transition.observation.instruction == first.instruction
        rewards.append((transition.reward, transition.done, transition.success))
    assert rewards[:-1] == [(0.0, False, False)] * (len(rewards) - 1)
    assert rewards[-1] == (10.0, True, True)
    with pytest.raises(EnvError, match="call reset"):
        environment.step("look")


def test_the_step_limit_ends_the_episode_without_success(root: Path) -> None:
    environment = AlfworldEnvironment(max_steps=3)
    environment.reset(AlfworldTasks(str(root)).tasks("train")[0])
    ends = [environment.step("look") for _ in range(3)]
    assert [(end.done, end.success, end.reward) for end in ends] == [
        (False, False, 0.0),
        (False, False, 0.0),
        (True, False, 0.0),
    ]


def test_the_state_anchor_ignores_failed_commands_and_tells_places_apart(root: Path) -> None:
    task = AlfworldTasks(str(root)).tasks("train")[0]
    environment = AlfworldEnvironment(anchor="state")
    first = environment.reset(task)
    assert environment.step("nonsense").observation.state == first.state
    places = [command for command in first.admissible if command.startswith("go to ")]
    states = []
    for command in places:
        states.append(environment.step(command).observation.state)
        assert environment.step("nonsense").observation.state == states[-1]
    assert len(set(states)) == len(places)
    assert AlfworldEnvironment().reset(task).state is None  # the raw observation is the anchor


def test_the_state_anchor_knows_what_is_held(root: Path) -> None:
    task = AlfworldTasks(str(root), task_types=["pick_and_place_simple"]).tasks("train")[0]
    environment = AlfworldEnvironment(anchor="state")
    environment.reset(task)
    walkthrough = json.loads(Path(task.source).read_text())["walkthrough"]
    states = {command: environment.step(command).observation.state for command in walkthrough}
    take = next(command for command in walkthrough if command.startswith("take "))
    name = take.removeprefix("take ").partition(" from ")[0]
    assert f"holding {name};" in (states[take] or "")
    assert "holding nothing;" in (states[walkthrough[-1]] or "")


def test_two_environments_on_one_game_do_not_touch(root: Path) -> None:
    task = AlfworldTasks(str(root)).tasks("train")[0]
    one, other = AlfworldEnvironment(), AlfworldEnvironment()
    before = one.reset(task)
    assert other.reset(task) == before
    for command in json.loads(Path(task.source).read_text())["walkthrough"]:
        one.step(command)
    assert other.step("look").observation.admissible == before.admissible
    assert one.reset(task) == before


def test_tasks_are_sorted_and_found_in_both_layouts(root: Path, tmp_path: Path) -> None:
    tasks = AlfworldTasks(str(root)).tasks("valid_seen")
    assert [task.source for task in tasks] == sorted(task.source for task in tasks)
    shutil.copytree(root / "json_2.1.1" / "valid_seen", tmp_path / "valid_seen")
    assert [task.id for task in AlfworldTasks(str(tmp_path)).tasks("valid_seen")] == [t.id for t in tasks]


def test_alfworld_data_is_the_default_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(root))
    assert len(AlfworldTasks().tasks("train")) == 12
    monkeypatch.delenv("ALFWORLD_DATA")
    with pytest.raises(EnvError, match="ALFWORLD_DATA is not set"):
        AlfworldTasks()


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"data": "/nonexistent"}, "train", "no folder json_2.1.1/train"),
        ({"data": "."}, "test", "unknown split 'test'"),
        ({"data": ".", "task_types": ["cook"]}, "train", "task_types: unknown type 'cook'"),
    ],
)
def test_task_errors_name_the_field(options: dict[str, object], split: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        lookup("alfworld").tasks(**options).tasks(split)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_steps": 0}, "max_steps: 0 is below 1"), ({"anchor": "colour"}, "unknown anchor 'colour'")],
)
def test_environment_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        lookup("alfworld").environment(**options)


def test_games_are_generated_on_first_use_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "games"
    how = {"games": {"train": 6, "valid_unseen": 6}, "seed": 2, "receptacles": 6, "objects": 6}
    assert len(task_source(str(data), generate=how).tasks("train")) == 6
    before = digest(data)
    assert len(task_source(str(data), generate={**how, "seed": 3}).tasks("valid_unseen")) == 6
    assert digest(data) == before
    with pytest.raises(EnvError, match="colour"):
        task_source(str(tmp_path / "other"), generate={"games": {"train": 1}, "colour": 1})
    with pytest.raises(EnvError, match=r"generate\.games: no split 'trian'; known: train, valid_seen, "):
        task_source(str(tmp_path / "other"), generate={"games": {"trian": 1}})
    assert not (tmp_path / "other").exists()


def test_home_and_variables_in_the_folder_of_games(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("NAME_OF_GAMES", root.name)
    for data in (f"~/{root.name}", "~/$NAME_OF_GAMES", "~/${NAME_OF_GAMES}"):
        assert len(task_source(data, generate={"games": {"train": 1}}).tasks("train")) == 12
    monkeypatch.setenv("ALFWORLD_DATA", "~/$NAME_OF_GAMES")
    assert len(AlfworldTasks().tasks("train")) == 12
    monkeypatch.chdir(tmp_path)
    for data, name in (("$NO_SUCH_FOLDER/x", r"\$NO_SUCH_FOLDER"), ("~no-such-person/x", "~no-such-person")):
        with pytest.raises(EnvError, match=rf"^environment\.tasks\.data '.*/x': {name} is not set on this "):
            task_source(data, generate={"games": {"train": 1}})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load_wheel.cache_clear()
    monkeypatch.setattr("envs.alfworld.wheel.find_spec", lambda name: None)
    try:
        with pytest.raises(EnvError, match="pip install --no-deps alfworld"):
            load_wheel()
    finally:
        load_wheel.cache_clear()


def test_limits_below_what_the_task_needs_keep_it() -> None:
    wheel = load_wheel()
    name, game, _ = make_game(wheel, "train", "pick_heat_then_place_in_recep", "tight", RoomLimits(1, 1))
    assert name.startswith("pick_heat_then_place_in_recep-")  # what the task needs is kept in any case
    problem = compile_game(game["pddl_domain"], game["grammar"], game["pddl_problem"]).problem
    assert sum(predicate == "objecttype" for predicate, _ in problem.facts) == 1
    with pytest.raises(EnvError, match="unknown task type 'cook'"):
        make_game(wheel, "train", "cook", "x")
