"""The recipes: each loads, has what the official script sets, and fits the nodes it names.

tests/golden_recipes.yaml is the table of the scripts' values, with every deliberate difference; the tables of
docs/recipes.md repeat the differences.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from gigpo_mega.algorithms.advantage import check_advantage
from gigpo_mega.config import Config
from gigpo_mega.config.load import FIELDS, load_config
from gigpo_mega.experiment.spec import load_spec
from gigpo_mega.planning.devices import DEVICES, Cluster
from gigpo_mega.planning.plan import make
from gigpo_mega.planning.shapes import find

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = {f"{file.parent.name}/{file.stem}": file for file in (ROOT / "configs").glob("*/qwen*.yaml")}
ALFWORLD = sorted(name for name in RECIPES if name.startswith("alfworld/"))
NODES = {"alfworld/qwen2.5-7b-2nodes": 2, "alfworld/qwen2.5-7b-8nodes": 8}
GOLDEN: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "golden_recipes.yaml").read_text())
SCRIPT = {recipe: script for script, table in GOLDEN["scripts"].items() for recipe in table["recipes"]}
# Where a run goes and what it keeps; a script has no such settings, or they are the table's `machinery`.
MACHINERY = {"engine", "parallel", "kernels", "checkpoint", "weights", "scratch", "coldstart", "output",
             "resume", "stack", "telemetry"}  # fmt: skip


def rows_of(script: str) -> list[dict[str, Any]]:
    """The table's rows that hold for the recipes of `script`."""
    table = GOLDEN["scripts"][script]
    return [*GOLDEN["common"], *table["rows"], *table["own"], *GOLDEN["code"]]


@cache
def recipe(name: str) -> Config:
    return load_config([str(RECIPES[name])], "")


def value_at(cfg: Config, path: str) -> Any:
    """The value of a field, or inside one that is a mapping."""
    found: Any = cfg
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def mismatches(cfg: Config, script: str) -> list[str]:
    """What in `cfg` is neither the value of `script` nor a difference that the table lists."""
    found: list[str] = []
    for row in rows_of(script):
        if "field" not in row:
            continue
        theirs, ours = row.get("means", row["value"]), value_at(cfg, row["field"])
        if ours != row.get("ours", theirs):
            found.append(f"{row['field']} is {ours!r}, {script} has {row['name']} {row['value']!r}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_loads(file: Path) -> None:
    assert load_config([str(file)], "").iterations >= 0


def test_every_recipe_is_in_the_table_of_the_official_values() -> None:
    assert set(SCRIPT) == set(GOLDEN["recipes"]) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_official_scripts_values(name: str) -> None:
    assert mismatches(recipe(name), SCRIPT[name]) == []


@pytest.mark.parametrize("changed", [
    ("--advantage.preset", "paper"), ("--advantage.normalization", "mean"), ("--optimizer.lr", "2e-6"),
    ("--optimizer.warmup_updates", "200"), ("--evaluation.split", "valid_unseen"), ("--rollout.groups", "16"),
    ("--batch.rows_per_update", "256"), ("--objective.dual_clip", "null"), ("--prompt.history", "2"),
])  # fmt: skip
def test_a_difference_that_is_not_in_the_table_is_found(changed: tuple[str, str]) -> None:
    cfg = load_config([str(RECIPES["search/qwen2.5-7b"]), *changed], "")
    assert [text.split()[0] for text in mismatches(cfg, "run_search.sh")] == [changed[0][2:]]


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_that_changes_what_is_learned_is_in_the_table(name: str) -> None:
    compared = {row["field"] for row in rows_of(SCRIPT[name]) if "field" in row}
    learned = {path for path in FIELDS if path.split(".")[0] not in MACHINERY}
    assert learned - compared - set(GOLDEN["ours"]) == set()


@pytest.mark.parametrize("script", GOLDEN["scripts"])
def test_a_difference_has_a_reason_and_is_in_the_docs(script: str) -> None:
    """docs/recipes.md has the row `name | value | ours | reason`, with the reason's line breaks removed."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    for row in rows_of(script):
        assert ("differs" in row) == ("ours" in row), row["name"]
        if "differs" in row:
            assert len(row["differs"]) > 20, row["name"]
            assert row.get("ours") != row["value"] or row["name"].startswith("val_batch_size"), row["name"]
            assert f"| {row['name']} | {row['value']} | {row['ours']} | {row['differs']} |" in page


def test_the_docs_list_no_difference_that_the_table_does_not_have() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## Deliberate differences")[2]
    listed = set(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)) - {"setting"}
    rows = [row for script in GOLDEN["scripts"] for row in rows_of(script)]
    assert listed == {row["name"] for row in rows if "differs" in row}


def test_the_warm_up_of_search_counts_the_updates_of_its_iterations() -> None:
    """A tenth of the iterations; an episode has two steps of the possible four, a search and an answer."""
    cfg = recipe("search/qwen2.5-7b")
    rows = cfg.rollout.groups * cfg.rollout.group_size * cfg.environment.max_steps // 2
    assert cfg.batch.rows_per_update is not None
    updates = round(rows / cfg.batch.rows_per_update)
    assert cfg.optimizer.warmup_updates == cfg.iterations // 10 * updates == 100


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_script_and_says_what_the_paper_does_not_have(name: str) -> None:
    head = RECIPES[name].read_text().split("\niterations:")[0]
    facts = GOLDEN["recipes"][name]
    assert SCRIPT[name] in head
    assert facts["model"] in head
    assert ("the paper has no" in head.lower()) == (not facts["paper"])
    assert recipe(name).model.path == Path("Qwen") / facts["model"]


@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("name", ALFWORLD)
def test_alfworld_recipes_fit_the_nodes_they_name(name: str, gpu: str) -> None:
    cfg = recipe(name)
    assert cfg.model.path is not None
    plan = make(find(cfg.model.path), cfg, Cluster(DEVICES[gpu], NODES.get(name, 1)))
    assert plan.problems == ()
    assert plan.engine is not None
    # Every episode can be in the engine at once, at half of the longest row.
    assert plan.engine.tokens >= cfg.rollout.concurrency * (2048 + 512) / 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_it_is_started(name: str) -> None:
    head = RECIPES[name].read_text().split("\niterations:")[0]
    nodes = r"(?:NODES=(\d+) NODE=0 HEAD=\.\.\.|PROCESSES=8)"
    command = re.search(rf"{nodes} tools/launch/torchrun\.sh (\S+)", head)
    assert command is not None
    assert int(command[1] or 1) == NODES.get(name, 1)
    assert ROOT / command[2] == RECIPES[name]
    assert recipe(name).output == Path("runs") / name.replace("/", "-")


@pytest.mark.parametrize("estimator", ["g2po", "graphgpo"])
@pytest.mark.parametrize("name", [*ALFWORLD, "alfworld/small", "quickstart"])
def test_successors_that_beat_gigpo_go_on_top_of_recipes(
    name: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    cfg = load_config([name, f"alfworld/{estimator}"], "")
    assert cfg.advantage.estimator == estimator
    check_advantage(cfg.advantage)
    compared = load_spec(ROOT / "docs/experiments/alfworld.yaml").config(estimator).advantage
    assert cfg.advantage.gamma == compared.gamma
