"""The recipes: each loads, says what the paper says, and fits the machines it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gigpo_mega import options
from gigpo_mega.planning.devices import DEVICES, Cluster
from gigpo_mega.planning.plan import make
from gigpo_mega.planning.shapes import find

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
ALFWORLD = sorted((ROOT / "configs" / "alfworld").glob("qwen*.yaml"))
NODES = {"qwen2.5-1.5b": 1, "qwen2.5-3b": 1, "qwen2.5-7b": 1, "qwen2.5-7b-lora": 1, "qwen2.5-7b-2nodes": 2,
         "qwen2.5-7b-8nodes": 8}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_loads(file: Path) -> None:
    assert options.load([str(file)], "").steps >= 0


@pytest.mark.parametrize("file", ALFWORLD, ids=lambda file: file.stem)
def test_alfworld_recipes_are_the_papers(file: Path) -> None:
    """The official scripts' table in arXiv 2505.10978 and verl-agent 796ed31, with F_norm = std."""
    cfg = options.load([str(file)], "")
    rollout, advantage, objective = cfg.rollout, cfg.advantage, cfg.objective
    assert (rollout.groups, rollout.group_size) == (16, 8)
    assert (rollout.max_prompt_tokens, rollout.max_response_tokens) == (2048, 512)
    assert (cfg.environment.max_steps, cfg.environment.options["max_steps"], cfg.environment.history) == (
        50,
        50,
        2,
    )
    assert (advantage.gamma, advantage.omega, advantage.invalid_penalty) == (0.95, 1.0, 0.1)
    assert (advantage.estimator, advantage.normalization) == ("gigpo", "mean_std")
    adapters = (cfg.lora.rank, cfg.lora.scale, objective.kl_coef, cfg.optimizer.lr)
    assert adapters == ((64, 1.0, 0.0, 3e-6) if "lora" in file.stem else (None, 1.0, 0.01, 1e-6))
    assert objective.entropy_coef == 0.001
    assert (objective.clip_low, objective.clip_high, objective.dual_clip) == (0.2, 0.2, 3.0)
    assert (cfg.optimizer.weight_decay, cfg.optimizer.grad_clip) == (0.01, 1.0)
    assert (cfg.optimizer.schedule, cfg.optimizer.warmup_updates) == ("constant", 0)
    assert (cfg.batch.rows, cfg.batch.epochs, cfg.batch.shuffle) == (256, 1, False)
    assert (cfg.steps, rollout.temperature, cfg.evaluation.temperature) == (150, 1.0, 0.4)
    assert cfg.evaluation.episodes == 128
    assert cfg.model.dtype == "bfloat16"


@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("file", ALFWORLD, ids=lambda file: file.stem)
def test_alfworld_recipes_fit_the_nodes_they_name(file: Path, gpu: str) -> None:
    cfg = options.load([str(file)], "")
    assert cfg.model.path is not None
    plan = make(find(cfg.model.path), cfg, Cluster(DEVICES[gpu], NODES[file.stem]))
    assert plan.problems == ()
    assert plan.engine is not None
    # Every episode can be in the engine at once, at half of the longest row.
    assert plan.engine.tokens >= cfg.rollout.concurrency * (2048 + 512) / 2


@pytest.mark.parametrize("file", ALFWORLD, ids=lambda file: file.stem)
def test_a_recipe_says_how_it_is_started(file: Path) -> None:
    head = file.read_text().split("\nsteps:")[0]
    told = re.search(r"(?:NODES=(\d+) NODE=0 HEAD=\.\.\. )?tools/launch/torchrun\.sh (\S+)", head)
    assert told is not None
    assert int(told[1] or 1) == NODES[file.stem]
    assert ROOT / told[2] == file
    assert options.load([str(file)], "").output == Path(f"runs/alfworld-{file.stem}")
