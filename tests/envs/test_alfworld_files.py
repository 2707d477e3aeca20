"""Folders of ALFWorld games as people have them: unsolvable, movable, truncated, without a game."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from envs.alfworld import AlfworldEnvironment, AlfworldTasks
from envs.alfworld.games import load_game
from envs.alfworld.generate import generate
from envs.alfworld.scenes import RoomLimits
from envs.base import EnvError, Task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small games."""
    folder = tmp_path_factory.mktemp("games")
    assert len(list(generate(folder, "train", 12, seed=5, limits=RoomLimits(receptacles=6, objects=6)))) == 12
    return folder


def test_unsolvable_and_movable_games_are_skipped(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "train")
    games = sorted((tmp_path / "train").rglob("game.tw-pddl"))
    games[0].write_text(games[0].read_text().replace('"solvable": true', '"solvable": false'))
    games[1].write_text(games[1].read_text().replace('"solvable": true', '"checked": true'))
    shutil.move(
        games[2].parent.parent, tmp_path / "train" / "pick_and_place_with_movable_recep-Pen-Mug-Shelf-1"
    )
    left = AlfworldTasks(str(tmp_path)).tasks("train")
    assert len(left) == 9


def test_only_a_game_s_own_name_says_movable(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "movable" / "train" / "immovable")
    assert len(AlfworldTasks(str(tmp_path / "movable")).tasks("train")) == 12


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_truncated_game_is_found_before_anything_starts(root: Path, tmp_path: Path, keep: float) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "train")
    game = sorted((tmp_path / "train").rglob("game.tw-pddl"))[0]
    text = game.read_text()
    game.write_text(text[: int(keep * len(text))])
    with pytest.raises(EnvError, match=r"game\.tw-pddl: not a complete JSON file [^\n]+ download it again$"):
        AlfworldTasks(str(tmp_path)).tasks("train")


@pytest.mark.parametrize("content", ["", "null", "[]", '{"solvable": true}', b"\xff\xfe{", "[" * 100_000])
def test_a_file_that_is_no_game_is_found_before_anything_starts(
    root: Path, tmp_path: Path, content: str | bytes
) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "train")
    game = sorted((tmp_path / "train").rglob("game.tw-pddl"))[-1]
    game.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EnvError, match=r"game\.tw-pddl: [^\n]+$"):
        AlfworldTasks(str(tmp_path)).tasks("train")


def test_folders_without_a_game_are_skipped_and_a_split_of_them_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "train")
    games = sorted((tmp_path / "train").rglob("game.tw-pddl"))
    games[0].unlink()
    games[1].write_bytes(b"\xef\xbb\xbf" + games[1].read_bytes())  # a byte order mark
    games[2].write_text(json.dumps({**json.loads(games[2].read_text()), "solvable": None}))
    assert len(AlfworldTasks(str(tmp_path)).tasks("train")) == 10
    for game in games[1:]:
        game.unlink()
    with pytest.raises(EnvError, match=r"train: no solvable game of types .* among 0 files game\.tw-pddl"):
        AlfworldTasks(str(tmp_path)).tasks("train")


def test_errors_are_one_line_with_the_path_and_the_remedy(root: Path, tmp_path: Path) -> None:
    source = Path(AlfworldTasks(str(root)).tasks("train")[0].source)
    text = source.read_text()
    data = json.loads(text)
    domain = data.pop("pddl_domain")
    broken = {
        "truncated": text[: len(text) // 2],
        "no domain": json.dumps(data),
        "cut problem": json.dumps(
            {**data, "pddl_domain": domain, "pddl_problem": data["pddl_problem"][:900]}
        ),
        "list": "[]",
        "odd": json.dumps({**data, "pddl_domain": "(define (domain d) (:action a :precondition (not)))"}),
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.tw-pddl"
        path.write_text(content)
        with pytest.raises(EnvError) as error:
            AlfworldEnvironment().reset(Task(name, "", str(path)))
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert "generate" in message or "needs" in message
    with pytest.raises(EnvError, match=r"cannot be read .*No such file"):
        load_game(tmp_path / "missing")


def test_a_damaged_traj_data_is_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "json_2.1.1" / "train", tmp_path / "train")
    damaged = sorted((tmp_path / "train").rglob("traj_data.json"))[0]
    for content, said in {
        "{": "not a complete JSON file",
        **dict.fromkeys(("[]", '{"task_type": null}', '{"task": "a"}'), "not a JSON object with 'task_type'"),
    }.items():
        damaged.write_text(content)
        with pytest.raises(EnvError, match=rf"traj_data\.json: {said}"):
            AlfworldTasks(str(tmp_path)).tasks("train")
