"""Numbers on the command lines of commands and tools: what is refused, and how."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import pytest

from gigpo_mega.arguments import PORT, SEED, number
from gigpo_mega.commands import convert, plan
from gigpo_mega.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "configs/alfworld/qwen2.5-7b.yaml")
PROGRAMS = [*(ROOT / "gigpo_mega/commands").glob("*.py"), *(ROOT / "tools").rglob("*.py")]


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        *((number(int), text, "an integer from 1 to 1000000000")
          for text in ("0", "-3", "1.5", "x", "", "1000000001", "9" * 5000)),
        *((number(float), text, "a number from 1 to 1e+09")
          for text in ("0", "-1", "0.999", "nan", "inf", "-inf", "1e400", "2e9", "x")),
        *((number(float, 0.01, 1), text, "a number from 0.01 to 1") for text in ("0", "1.01", "nan")),
        (PORT, "65536", "an integer from 1 to 65535"),
        (SEED, "-1", "an integer from 0 to 4294967295"),
    ],
)  # fmt: skip
def test_a_number_outside_its_limits_is_refused_with_the_limits(kind, text: str, wanted: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        kind(text)
    assert str(refused.value) == f"must be {wanted}, got {text[:40]!r}"


def test_a_number_within_its_limits_is_read() -> None:
    assert [number(int)(text) for text in ("1", " 7 ", "1000000000")] == [1, 7, 10**9]
    assert [number(float, 0.01, 1)(text) for text in ("1", "1e-2")] == [1.0, 0.01]
    assert (SEED("0"), PORT("65535")) == (0, 65535)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "x"])
@pytest.mark.parametrize(
    "option",
    ["--nodes", "--gpus-per-node", "--episode-steps", "--prompt-tokens", "--response-tokens", "--mfu",
     "--bandwidth"],
)  # fmt: skip
def test_a_plan_refuses_numbers_that_no_run_can_have(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.main([RECIPE, f"{option}={value}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    limits = r"an integer from 1 to 1000000000|a number from (1 to 1e\+09|0\.01 to 1)"
    assert re.fullmatch(f"gigpo-mega plan: error: argument {option}: must be ({limits}), got '{value}'", said)


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [("--episode-steps", "51", "environment.max_steps 50"),
     ("--prompt-tokens", "2049", "rollout.max_prompt_tokens 2048"),
     ("--response-tokens", "513", "rollout.max_response_tokens 512")],
)  # fmt: skip
def test_a_plan_refuses_a_mean_above_the_limit_of_the_run(option: str, value: str, limit: str) -> None:
    with pytest.raises(UserError, match=f"^{option} {value} is above {limit}"):
        plan.main([RECIPE, option, value])


@pytest.mark.parametrize("option", ["--nodes", "--gpus-per-node"])
def test_a_plan_of_a_billion_gpus_takes_no_longer(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([RECIPE, option, "1000000000", "--engine.replicas", "1"]) == 0
    assert "1000000000" in capsys.readouterr().out


def test_a_conversion_refuses_a_layout_below_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert.main(["import", "--hf", "a", "--out", "b", "--tensor", "0"])
    assert capsys.readouterr().err.endswith(
        "error: argument --tensor: must be an integer from 1 to 1000000000, got '0'\n"
    )


def test_every_number_of_a_program_has_limits() -> None:
    unlimited = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PROGRAMS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "type"
        and isinstance(node.value, ast.Name) and node.value.id in ("int", "float")
    ]  # fmt: skip
    assert unlimited == []
