"""The adapter to TextWorld, on a game that tw-make writes; skipped if the package is not installed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textworld")

from envs.adapters.textworld import KIND, TextWorldEnvironment
from envs.base import EnvError, Task

textworld: Any = import_module("textworld")


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small games in its split `train`."""
    folder = tmp_path_factory.mktemp("games")
    for seed in (1, 2):
        options = textworld.GameOptions()
        options.path, options.seeds = str(folder / f"train/game{seed}.z8"), seed
        options.nb_rooms, options.nb_objects, options.quest_length = 2, 4, 2
        textworld.make(options)
    return folder


def walkthrough(task: Task) -> list[str]:
    return json.loads(Path(task.source).with_suffix(".json").read_text())["metadata"]["walkthrough"]


def test_the_walkthrough_wins(games: Path) -> None:
    environment = TextWorldEnvironment()
    tasks = KIND.tasks(data=str(games)).tasks("train")
    assert [task.id for task in tasks] == ["train/game1", "train/game2"]
    for task in tasks:
        first = environment.reset(task)
        assert first.text.startswith("-= ")
        assert first.instruction
        assert walkthrough(task)[0] in first.admissible
        played = [environment.step(command) for command in walkthrough(task)]
        assert [t.valid for t in played] == [True] * len(played)
        assert (played[-1].success, played[-1].done, sum(t.reward for t in played)) == (True, True, 1.0)
        assert environment.reset(task) == first


def test_looking_changes_no_anchor_and_no_answer_shows_the_status_line(games: Path) -> None:
    environment = TextWorldEnvironment(max_steps=4)
    first = environment.reset(KIND.tasks(data=str(games)).tasks("train")[0])
    looked = environment.step("inventory")
    assert looked.observation.state == first.state
    assert "=-0/" not in looked.observation.text
    assert [environment.step(said).valid for said in ("xyzzy", "看")] == [False, False]
    last = environment.step("look")
    assert (last.done, last.success) == (True, False)
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("look")


def test_fuzzed_commands_neither_raise_nor_leak(
    games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = TextWorldEnvironment(max_steps=200)
    task = KIND.tasks(data=str(games)).tasks("train")[1]
    first = environment.reset(task)
    for said in (
        "",
        "a" * 100_000,
        "\ud800",
        "\n\nlook\n",
        "<action>" * 9999,
        "\0\x1b[2J",
        "%s{0}",
        "quit",
        "save",
        "script",
        "undo",
        "restart",
    ):
        if environment.step(said).done:
            environment.reset(task)
    assert environment.reset(task) == first
    assert list(tmp_path.iterdir()) == []  # `save` and `script` write files where they are let


def test_close_ends_the_interpreter(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(interpreter: Any) -> None:
        if interpreter.game_running:
            ended.append(id(interpreter))  # not itself, which calls this when it is collected
        close(interpreter)

    ended, close = list[int](), textworld.envs.JerichoEnv.close
    monkeypatch.setattr(textworld.envs.JerichoEnv, "close", end)
    environment = TextWorldEnvironment()
    environment.close()
    task = KIND.tasks(data=str(games)).tasks("train")[0]
    first = environment.reset(task)
    assert ended == []
    for _ in range(2):
        environment.close()
        assert len(ended) == 1
    with pytest.raises(EnvError, match="the episode is over"):
        environment.step("look")
    assert environment.reset(task) == first


def test_a_game_can_be_played_after_one_that_cannot(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("damaged")

    one, other = KIND.tasks(data=str(games)).tasks("train")
    environment = TextWorldEnvironment()
    first = environment.reset(one)
    with monkeypatch.context() as patch:
        patch.setattr(textworld, "start", fail)
        with pytest.raises(EnvError, match="cannot be played: damaged"):
            environment.reset(other)
    assert environment.reset(one) == first


def test_a_file_that_is_not_a_game_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(EnvError, match=r"no game .*tw-make makes one"):
        KIND.tasks(data=str(tmp_path)).tasks("train")
    (tmp_path / "train/bad.z8").write_text("no game")
    with pytest.raises(EnvError, match=r"bad.z8 is not a game"):
        TextWorldEnvironment().reset(Task("bad", "textworld", str(tmp_path / "train/bad.z8")))
