"""`gigpo-mega init NAME`: the folder it writes passes its own tests, and its README's commands train."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from envs.registry import lookup
from gigpo_mega.commands.init import STARTER, main, write
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.tasks import load_tasks
from tests.programs import run_python

SHORT = {"coldstart": ["--coldstart.games", "4", "--coldstart.updates", "2"],
         "train": ["--iterations", "1", "--rollout.groups", "2", "--evaluation.episodes", "2"]}  # fmt: skip


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `post`, as the working directory; its module can be imported while the test runs."""
    monkeypatch.delitem(sys.modules, "post", raising=False)  # of the test before
    monkeypatch.chdir(tmp_path)
    main(["post"])
    monkeypatch.chdir("post")
    monkeypatch.syspath_prepend(tmp_path / "post")
    return tmp_path / "post"


def python(folder: Path, *arguments: str) -> str:
    done = run_python(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:] or done.stdout[-3000:]
    return done.stdout


def test_it_prints_what_to_type_where_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["post"])
    said, *commands = capsys.readouterr().out.splitlines()
    assert said == "post/README.md says how it trains:"
    assert commands[0] == "cd post"
    assert [command.split()[:2] for command in commands[1:]] == [
        ["gigpo-mega", "coldstart"], ["gigpo-mega", "train"], ["gigpo-mega", "evaluate"],
    ]  # fmt: skip


def test_four_files_that_are_short(starter: Path) -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in starter.iterdir()}
    assert set(lines) == {"post.py", "post.yaml", "test_post.py", "README.md"}
    assert lines["README.md"] <= 15
    assert sum(lines.values()) < 150
    assert not [file.name for file in starter.iterdir() if "NAME" in file.read_text()]


def test_its_own_tests_pass(starter: Path) -> None:
    assert "4 passed" in python(starter, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_its_recipe_loads_with_tasks_and_an_expert(starter: Path) -> None:
    cfg = load_config(["post.yaml"], "gigpo-mega train")
    tasks = load_tasks(cfg)
    assert (len(tasks.training), len(tasks.held_out)) == (144, 128)
    assert lookup(cfg.environment.name).demonstrate is not None


@pytest.mark.parametrize(("name", "said"), [
    ("json", "json is an installed module, which would come before yours; choose another name"),
    ("my-env", "'my-env' is no name of a Python module"),
    ("class", "'class' is no name of a Python module"),
    ("../up", "'../up' is no name of a Python module"),
    ("taken", "taken exists already; choose another name"),
])  # fmt: skip
def test_a_name_that_would_not_work_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        write(name)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_where_no_folder_can_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    with pytest.raises(UserError, match=r"^mine cannot be made here: .*; go to a folder of yours$"):
        write("mine")


@pytest.mark.engine
def test_the_commands_of_its_readme_train(starter: Path) -> None:
    """Only that they run: that the agent learns takes minutes (docs/benchmarks/starter_seeds.json)."""
    found = re.findall(r"^    gigpo-mega (.*)$", (starter / "README.md").read_text(), re.M)
    lines = [shlex.split(line, comments=True) for line in found]
    assert [line[0] for line in lines] == ["coldstart", "train", "evaluate"]
    for line in lines[:2]:  # evaluation by itself starts the same engine once more
        python(starter, "-m", "gigpo_mega", *line, *SHORT[line[0]])
    assert json.loads((starter / "runs/post/evaluation_000001.json").read_text())["episodes"] == 2
    assert (starter / "runs/post/report.html").stat().st_size > 10_000


def test_templates_are_the_starters_only_files() -> None:
    assert sorted(path.name for path in STARTER.glob("*.*")) == [
        "NAME.py", "NAME.yaml", "README.md", "test_NAME.py",
    ]  # fmt: skip
