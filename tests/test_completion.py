"""Tab completes commands, recipes, fields and their values, asked as the shells ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gigpo_mega.commands import install_completion
from gigpo_mega.commands.complete import candidates
from gigpo_mega.config import recipes
from gigpo_mega.config.load import FIELDS
from gigpo_mega.errors import UserError
from gigpo_mega.program import COMMANDS
from tests.test_start_up import probed

ROOT = Path(__file__).parents[1]
GROUPS = ["--rollout.groups", "--rollout.group_size"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [*COMMANDS]),
        (["re"], ["report", "replay"]),
        (["--in"], ["--install-completion"]),
        (["train", "--rollout.gr"], GROUPS),
        (["plan", "alfworld/qwen2.5-7b", "--rollout.gr"], GROUPS),
        (["replay", "runs/x", "--rollout.gr"], GROUPS),
        (["train", "--dry"], ["--dry-run"]),
        (["plan", "--gp"], ["--gpu", "--gpus-per-node"]),
        (["trace", "--gr"], ["--group"]),
        (["train", "quickstart", "alfworld/qwen2.5-7b-"],
         [f"alfworld/qwen2.5-7b-{of}" for of in ("2nodes", "8nodes", "lora")]),
        (["train", "--model.dtype", ""], ["float32", "bfloat16"]),
        (["train", "--resume", ""], ["true", "false", "auto"]),
        (["train", "--output", ""], []),
        (["train", "--optimizer.lr", ""], []),
        (["convert", ""], ["import", "export", "verify"]),
        (["convert", "import", "--t"], ["--tensor"]),
        (["convert", "nothing", "--t"], []),
        (["report", ""], []),
        (["unknown", ""], []),
    ],
)  # fmt: skip
def test_what_a_word_may_become(words: list[str], expected: list[str]) -> None:
    assert candidates(words) == expected


def test_all_recipes_and_all_fields_are_offered() -> None:
    assert candidates(["train", ""]) == recipes.names()
    assert {f"--{path}" for path in FIELDS} <= set(candidates(["evaluate", "--"]))


def test_nothing_heavy_is_loaded() -> None:
    status, heavy, said = probed("gigpo_mega", "__complete", "train", "--rollout.gr")
    assert (status, heavy, said.split()) == (0, [], GROUPS)


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds `gigpo-mega`, with a home folder of its own."""
    command = tmp_path / "bin" / "gigpo-mega"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m gigpo_mega "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def asked(program: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(program, cwd=environment["HOME"], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def in_bash(environment: dict[str, str], *words: str) -> list[str]:
    """What bash offers after `gigpo-mega WORDS` when the completion is read from ~/.bashrc."""
    line = " ".join(f"'{word}'" for word in ("gigpo-mega", *words))
    script = (
        f". ~/.bashrc; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        'function=$(complete -p gigpo-mega); function=${function##*-F }; "${function% *}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return asked(["bash", "--norc", "-c", script], environment)


def test_bash_completes(shell: dict[str, str]) -> None:
    said = asked(["gigpo-mega", "--install-completion", "bash"], shell)
    assert said[-1] == "a new bash completes gigpo-mega"
    assert in_bash(shell, "tr") == ["train", "trace"]
    assert in_bash(shell, "train", "quickstart", "--rollout.gr") == GROUPS
    assert in_bash(shell, "train", "quickstart", "--model.dtype", "b") == ["bfloat16"]
    assert in_bash(shell, "train", "alfworld/sma") == ["alfworld/small", "alfworld/small_coldstart",
                                                       "alfworld/small_panel"]  # fmt: skip
    assert in_bash(shell, "report", "runs/") == [""]  # bash then offers files


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(shell: dict[str, str]) -> None:
    asked(["gigpo-mega", "--install-completion", "fish"], shell)
    line = "complete -C 'gigpo-mega train quickstart --rollout.gr'"
    assert sorted(asked(["fish", "-c", line], shell)) == sorted(GROUPS)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_asks_the_command(shell: dict[str, str]) -> None:
    asked(["gigpo-mega", "--install-completion", "zsh"], shell)
    line = "gigpo-mega train quickstart --rollout.gr"
    script = (
        ". ~/.zshrc; compadd() { print -l -- $found }; "
        f"words=({line}); CURRENT=4; _gigpo_mega; print -- $_comps[gigpo-mega]"
    )
    assert asked(["zsh", "-f", "-c", script], shell) == [*GROUPS, "_gigpo_mega"]


def test_installing_twice_adds_one_line_and_keeps_the_file(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    script = tmp_path / ".local/share/gigpo-mega/completion.bash"
    assert install_completion.install("bash", tmp_path) == [script, tmp_path / ".bashrc"]
    assert install_completion.install("bash", tmp_path) == [script]
    first, *rest = (tmp_path / ".bashrc").read_text().splitlines()
    assert (first, len(rest)) == ("alias ll='ls -l'", 1)
    assert install_completion.install("fish", tmp_path) == [
        tmp_path / ".config/fish/completions/gigpo-mega.fish"
    ]


def test_a_shell_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    with pytest.raises(UserError, match="tcsh cannot be completed for; give bash or zsh or fish after it"):
        install_completion.main([])
