"""The configurations of docs/environments/adapters.md fit their adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.base import EnvError
from envs.dialogue import choose
from envs.registry import check_options, lookup
from gigpo_mega.config import EnvironmentConfig, PromptConfig

PAGE = Path(__file__).parents[2] / "docs/environments/adapters.md"
SECTIONS: list[dict[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
]


def test_every_adapter_has_its_block() -> None:
    modules = {file.stem for file in (PAGE.parents[2] / "envs/adapters").glob("[a-z]*.py")}
    assert {section["environment"]["name"] for section in SECTIONS} == modules


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["environment"]["name"])
def test_a_block_fits_its_adapter(section: dict[str, Any]) -> None:
    config = EnvironmentConfig(**section["environment"])
    prompt = PromptConfig(**section.get("prompt", {}))
    try:
        kind = lookup(config.name)
    except EnvError as error:
        pytest.skip(str(error))
    check_options(kind.environment, config.options, "environment.options", config.name)
    check_options(kind.tasks, config.tasks, "environment.tasks", config.name)
    choose(kind, prompt.dialogue)


def test_the_first_block_is_played() -> None:
    config = EnvironmentConfig(**SECTIONS[0]["environment"])
    kind = lookup(config.name)
    task = kind.tasks(**config.tasks).tasks("test")[0]
    environment = kind.environment(**config.options)
    assert environment.reset(task).text.startswith("[S]FFF")
    ends = [environment.step(action) for action in ("down", "down", "right", "right", "down", "right")]
    assert ends[-1].success
