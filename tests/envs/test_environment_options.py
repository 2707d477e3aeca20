"""Options that an environment cannot take are refused by name, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from envs.base import EnvError
from envs.registry import check_options, lookup
from gigpo_mega.config import Config, EnvironmentConfig
from gigpo_mega.tasks import load_tasks
from tests.helpers import refused


def refusal(name: str, tmp_path: Path, **fields: Any) -> str:
    cfg = Config(output=tmp_path, environment=EnvironmentConfig(name=name, **fields))
    return refused(lambda: load_tasks(replace(cfg)))


@pytest.mark.parametrize(("name", "fields", "said"), [
    ("sokoban", {"options": {"veiw": "rows"}},
     "environment sokoban: unknown key environment.options.veiw; did you mean view? known: max_steps, view"),
    ("sokoban", {"options": {"limit": 3}},
     "environment sokoban: unknown key environment.options.limit; known: max_steps, view"),
    ("sokoban", {"options": {"view": 3}},
     "environment sokoban: environment.options.view is 3; it must be one of symbols, rows, text, relative"),
    ("sokoban", {"tasks": {"tarin": 8}},
     "environment sokoban: unknown key environment.tasks.tarin; did you mean train? known: rows, columns, "
     "boxes, search_depth, train, test, seed, unseen"),
    ("sokoban", {"tasks": {"train": "8"}},
     "environment sokoban: environment.tasks.train is '8'; it must be int"),
    ("sokoban", {"tasks": {"unseen": 1}},
     "environment sokoban: environment.tasks.unseen is 1; it must be bool"),
    ("alfworld", {"tasks": {"task_types": "pick"}},
     "environment alfworld: environment.tasks.task_types is 'pick'; it must be Sequence[str]"),
    ("alfworld", {"tasks": {"data": None, "generate": 3}},
     "environment alfworld: environment.tasks.generate is 3; it must be Mapping[str, Any] | None"),
    ("search", {"options": {"corpus": 1}}, "environment search: environment.options.corpus is 1; it must be "
                                           "str | None"),
    ("search", {"options": {"corpus": "c", "topk": "3"}},
     "environment search: environment.options.topk is '3'; it must be int"),
    ("search", {"options": {"corpus": "c"}},
     "environment search: environment.tasks.data is missing; it must be str"),
    ("openenv", {"options": {"action": "say"}},
     "environment openenv: environment.options.url is missing; it must be str"),
])  # fmt: skip
def test_options_are_refused_with_environment_option_and_what_is_known(
    name: str, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert refusal(name, tmp_path, **fields) == said


@pytest.mark.parametrize(("name", "generate", "said"), [
    ("webshop", {"kidns": 3}, "unknown key environment.tasks.generate.kidns; did you mean kinds? known: "
                              "products, kinds, values, seed"),
    ("webshop", {"products": "many"}, "environment.tasks.generate.products is 'many'; it must be int"),
    ("search", {"people": 2.5}, "environment.tasks.generate.people is 2.5; it must be int"),
    ("alfworld", {"seed": 3}, "environment.tasks.generate.games is missing; it must be Mapping[str, int]"),
    ("alfworld", {"games": {"train": "8"}},
     "environment.tasks.generate.games is {'train': '8'}; it must be Mapping[str, int]"),
])  # fmt: skip
def test_a_generator_s_settings_are_refused_likewise(
    name: str, generate: dict[str, Any], said: str, tmp_path: Path
) -> None:
    data = tmp_path / "new"
    with pytest.raises(EnvError) as caught:
        lookup(name).tasks(data=str(data), generate=generate)
    assert str(caught.value) == f"environment {name}: {said}"
    assert not data.exists()


def any_of(
    free: Any = None,
    number: float = 0.0,
    pair: tuple[int, int] = (1, 2),
    names: Sequence[str] = (),
    table: Mapping[str, int] | None = None,
    kind: Literal["a", "b"] = "a",
    call: Callable[[], int] = int,
    untyped=None,
) -> None:
    """Takes what YAML can hold as other types."""


@pytest.mark.parametrize("options", [
    {"number": 3}, {"pair": [6, 7]}, {"names": ["x"]}, {"table": None}, {"table": {"a": 1}},
    {"kind": "b"}, {"untyped": {"x": [1]}},
])  # fmt: skip
def test_what_yaml_holds_for_a_type_passes(options: dict[str, Any]) -> None:
    check_options(any_of, options, "environment.options", "mine")


def test_annotations_that_cannot_be_read_check_nothing() -> None:
    class FakeOdd:
        def __init__(self, size: Unknown = 3, **more: int) -> None:  # noqa: F821  # type: ignore[name-defined]
            self.size = size

    check_options(FakeOdd, {"size": "x", "other": 3}, "environment.options", "mine")
    with pytest.raises(EnvError, match="environment mine: unknown key"):
        check_options(any_of, {"other": 3}, "environment.options", "mine")
