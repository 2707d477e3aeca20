"""The planner beside real learners, and what it says of runs that do not fit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gigpo_mega import options
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.planning import memory
from gigpo_mega.planning.devices import DEVICES, GIB, Cluster
from gigpo_mega.planning.plan import make, suggest
from gigpo_mega.planning.shapes import NAMED, find
from gigpo_mega.planning.speed import Workload, micro_batches
from kernels.logprob.chunked import CPU_ELEMENTS
from tests.tools.plan_ranks import config
from tools import plan as program

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/alfworld/qwen2.5-7b.yaml")
CASES = {
    1: ["qwen2", "qwen2:batch.packed=false"],
    2: [
        "qwen2:model.dtype=bfloat16:objective.kl_coef=0",
        "qwen2:parallel.recompute=full:parallel.distributed_optimizer=false",
        "qwen2:parallel.tensor=2:parallel.sequence_parallel=true",
        "qwen2:parallel.pipeline=2:parallel.virtual_pipeline=2",
        "qwen2:parallel.context=2",
        "qwen3:parallel.tensor=2",
        "qwen2:lora.rank=16:parallel.tensor=2",
        "qwen3:lora.rank=8:model.dtype=bfloat16:parallel.pipeline=2",
    ],
}
Measured = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """By case, what each rank of a real learner held and allocated."""
    found: Measured = {}
    for world, cases in CASES.items():
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        command = [sys.executable, "-W", "ignore", *torchrun, "tests/tools/plan_ranks.py", *cases]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-4000:]
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                row = json.loads(line[7:])
                found.setdefault(row["case"], []).append(row)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases])
def test_plan_agrees_with_a_real_learner(case: str, measured: Measured) -> None:
    shape, cfg = config(case)
    for rank in measured[case]:
        stage, batches = rank["stage"], rank["microbatches"]
        stored = memory.stored(shape, cfg, stage, rank["replicas"])
        assert [rank[name] for name in ("weights", "gradients", "optimizer", "reference")] == [*stored]
        planned = memory.activations(shape, cfg, stage, batches, fused_norm=False)
        planned += memory.logprob(shape, cfg, stage, elements=CPU_ELEMENTS)
        assert planned == pytest.approx(rank["peak"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "billions"),  # as the model cards say
    [("qwen2.5-0.5b", 0.49), ("qwen2.5-1.5b", 1.54), ("qwen2.5-3b", 3.09), ("qwen2.5-7b", 7.61),
     ("qwen2.5-14b", 14.7), ("qwen3-0.6b", 0.6), ("qwen3-1.7b", 1.7), ("qwen3-4b", 4.0), ("qwen3-8b", 8.2)],
)  # fmt: skip
def test_named_models_have_their_published_size(name: str, billions: float) -> None:
    assert memory.whole(NAMED[name]) / 1e9 == pytest.approx(billions, rel=0.02)


def test_stages_and_tensor_ranks_hold_the_model_between_them() -> None:
    shape = NAMED["qwen2.5-7b"]
    layout = options.load(["--parallel.tensor", "4", "--parallel.pipeline", "2"], "").parallel
    held = sum(memory.parameters(shape, layout, stage) * layout.tensor for stage in range(layout.pipeline))
    norms = (2 * shape.layers + 1) * shape.hidden  # on every tensor-parallel rank
    assert held - (layout.tensor - 1) * norms == memory.whole(shape) == 7_615_616_512


def test_models_are_found_by_directory_or_name(tmp_path: Path) -> None:
    assert find("models/Qwen2.5-7B-Instruct") == find("qwen2.5-7b")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="model_type"):
        find(tmp_path)
    with pytest.raises(UserError, match=r"gpt-2 is no directory and no known model; known: qwen2\.5-0\.5b, "):
        find("gpt-2")


def recipe(*overrides: str) -> Config:
    return options.load([RECIPE, *overrides], "")


def test_every_suggestion_fits_when_it_is_planned() -> None:
    shape, cluster = NAMED["qwen2.5-7b"], Cluster(DEVICES["a100"])
    overrides = ("--parallel.tensor", "1", "--parallel.sequence_parallel", "false")
    plan = make(shape, recipe(*overrides), cluster)
    assert not plan.fits
    assert "GiB" in plan.problems[0]
    suggestions = suggest(shape, recipe(*overrides), cluster)
    assert suggestions
    for suggestion in suggestions:
        words = [word for flag in suggestion.flags for word in shlex.split(flag)]
        nodes = int(words.pop(words.index("--nodes") + 1)) if "--nodes" in words else 1
        words = [word for word in words if word != "--nodes"]
        again = make(shape, recipe(*overrides, *words), replace(cluster, nodes=nodes), Workload.of(recipe()))
        assert again == suggestion.plan
        assert again.fits
        assert again.kinds[0].memory.total <= 0.95 * 79.2 * GIB


def test_adapters_need_gradients_and_moments_of_themselves_alone() -> None:
    shape, cluster = NAMED["qwen2.5-7b"], Cluster(DEVICES["h100"])
    flags = ("--lora.rank", "64", "--parallel.tensor", "1", "--parallel.sequence_parallel", "false")
    full, lora = make(shape, recipe(*flags[2:]), cluster), make(shape, recipe(*flags), cluster)
    each = 64 * ((3584 + 4608) + (3584 + 3584) + (3584 + 37888) + (18944 + 3584))
    assert memory.adapters(shape, recipe(*flags)) == 28 * each == 142_213_120
    found = lora.kinds[0].memory
    assert found.gradients == 4 * 28 * each
    assert found.optimizer == 12 * 28 * each / 8
    assert found.reference == 0
    assert found.weights == 2 * (memory.whole(shape) + 28 * each)
    assert lora.seconds.update == pytest.approx(full.seconds.update * 2 / 3)  # no gradient of the base


def test_an_engine_that_holds_no_row_is_a_problem() -> None:
    plan = make(NAMED["qwen2.5-7b"], recipe("--engine.memory_fraction", "0.15"), Cluster(DEVICES["h100"]))
    assert plan.problems == (
        "engine: its cache holds 0 tokens, less than one row of 2560 (engine.memory_fraction 0.15)",
    )


def test_an_engine_elsewhere_takes_nothing_here() -> None:
    here, apart = (
        make(NAMED["qwen2.5-7b"], recipe(*url), Cluster(DEVICES["h100"]))
        for url in ((), ("--engine.url", "http://gpu07:30000"))
    )
    assert [kind.name for kind in here.kinds] == ["learner + engine", "learner"]
    assert [(kind.name, kind.count) for kind in apart.kinds] == [("learner", 8)]
    assert apart.kinds[0].memory == here.kinds[1].memory
    assert apart.engine is None


def test_impossible_layouts_are_refused() -> None:
    shape = NAMED["qwen2.5-7b"]
    with pytest.raises(UserError, match=r"parallel\.pipeline 8 .* 28 layers"):
        make(shape, recipe("--parallel.pipeline", "8", "--parallel.tensor", "1",
                           "--parallel.sequence_parallel", "false"), Cluster(DEVICES["h100"]))  # fmt: skip
    with pytest.raises(UserError, match="--tp-size 8 must divide the model's 28"):
        make(shape, recipe("--engine.arguments", '["--tp-size=8"]'), Cluster(DEVICES["h100"]))


def test_more_gpus_and_faster_ones_take_less_time() -> None:
    shape, cfg = NAMED["qwen2.5-7b"], recipe()
    totals = [
        make(shape, cfg, Cluster(DEVICES[gpu], nodes)).seconds.update
        for gpu, nodes in (("a100", 1), ("h100", 1), ("h100", 2))
    ]
    assert totals[0] / totals[1] == pytest.approx(989 / 312)
    assert totals[1] / totals[2] == pytest.approx(2)
    # 6 operations for each parameter and token, and attention besides.
    rows, tokens = 16 * 8 * 25, 1024 + 256
    least = 6 * 6.53e9 * rows * tokens / (8 * 0.4 * 989e12)
    assert totals[1] == pytest.approx(least, rel=0.05)


def test_micro_batches_fill_the_budget() -> None:
    cfg = recipe("--batch.microbatch_tokens", "4096", "--batch.rows", "320")
    work = Workload(episode_steps=25, prompt_tokens=768, response_tokens=256)
    assert micro_batches(cfg, work, data=8) == 320 * 1024 // 8 // 4096


def test_program_reports_in_numbers_and_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--parallel.tensor", "1", "--parallel.sequence_parallel", "false"]
    assert program.main([RECIPE, "--gpu", "h200", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"]
    assert record["suggestions"] == []
    assert record["totals"]["learner"] == sum(record["kinds"][1]["memory"].values())
    assert program.main([RECIPE, *wide, "--model", "qwen2.5-14b", "--gpu", "h100"]) == 1
    told = capsys.readouterr().out
    assert "14.77 B parameters" in told
    assert "does not fit: learner" in told
    assert "fits with --" in told
