"""What --help says: every field, its choices, and the values of the recipes that are named."""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_origin

import pytest

from gigpo_mega import evaluate, quickstart, train
from gigpo_mega.coldstart import program as coldstart
from gigpo_mega.commands import rollout
from gigpo_mega.config.load import FIELDS, SECTIONS, describe
from tests.test_options import complaint, parse


def test_help_shows_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse("--advantage.gamma", "oops", "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text == describe("gigpo-mega train", {})
    assert "--advantage.gamma  a number [0.95]\n        Discount of the step returns (Eq. 5)." in text
    assert all(f"--{path}  " in text for path in FIELDS)
    assert all(f"\n{name}: " in text for name in SECTIONS)


@pytest.mark.parametrize(("module", "option"), [(train, "--dry-run"), (quickstart, "--coldstart")])
def test_help_shows_what_a_program_takes_besides_fields(
    module: ModuleType, option: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    usage, meaning, *_ = capsys.readouterr().out.splitlines()
    assert usage.endswith(f"[--section.field VALUE ...] [{option}]")
    assert meaning.startswith(f"  {option}  ")


def test_help_shows_the_values_of_the_recipes_that_are_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        quickstart.main(["--help"])
    text = capsys.readouterr().out
    assert "--iterations  an integer [36]\n" in text
    assert '--output  a path ["runs/quickstart"]\n' in text


@pytest.mark.parametrize(("module", "said"), [
    (evaluate, "Play the held-out panel"), (coldstart, "Clone the environment's expert"),
    (rollout, "Collect the groups"),
])
def test_help_begins_with_what_a_program_does(
    module: ModuleType, said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert capsys.readouterr().out.splitlines()[1].startswith(said)


def test_every_field_has_a_docstring():
    assert [path for path, item in FIELDS.items() if not item.help] == []


def test_every_choice_of_a_field_that_takes_others_too_is_named():
    mixed = {path: item.expected for path, item in FIELDS.items()
             if get_origin(item.annotation) is not Literal
             and any(get_origin(kind) is Literal for kind in item.accepts)}
    assert mixed == {
        "resume": "true or false or auto",
        "engine.release_memory": "true or false or auto",
        "objective.rollout_is": "token or sequence or null",
    }
    for field, expected in mixed.items():
        assert complaint(f"--{field}=maybe") == f"{field}: expected {expected}, got 'maybe'"


def test_help_folds_long_texts_under_their_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("--help")
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  --prompt.dialogue "))
    indents = [len(line) - len(line.lstrip()) for line in lines[start + 1 : start + 3]]
    assert indents == [8, 8]
