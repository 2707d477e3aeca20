"""The planner against real learners, and its suggestions for runs that do not fit."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gigpo_mega.commands import plan as command
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.dry_run import describe_run
from gigpo_mega.errors import UserError
from gigpo_mega.planning import memory
from gigpo_mega.planning.devices import DEVICES, GIB, Cluster
from gigpo_mega.planning.plan import make, suggest
from gigpo_mega.planning.shapes import NAMED, find
from gigpo_mega.planning.speed import Workload, micro_batches
from tests.programs import results
from tools.bench.emulation import HELD

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/alfworld/qwen2.5-7b.yaml")
ALONE = ["qwen2:batch.packed=false:parallel.recompute=full", "qwen3:lora.rank=8:model.dtype=bfloat16"]
DATA_PARALLEL = ["qwen2:model.dtype=bfloat16:objective.kl_coef=0"]
MODEL_PARALLEL = [
    "qwen2:parallel.tensor=2:parallel.sequence_parallel=true",
    "qwen2:parallel.pipeline=2:parallel.virtual_pipeline=2",
    "qwen2:parallel.context=2",
]
Measured = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """By case, for each rank: what a real learner held and allocated, and the same of an emulated one."""
    found: Measured = {}
    for world, cases in ((1, ALONE), (2, DATA_PARALLEL + MODEL_PARALLEL)):
        for row in results(world, "tests/tools/learner_memory.py", *cases):
            found.setdefault(row["case"], []).append(row)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("case", [*ALONE, *DATA_PARALLEL, *MODEL_PARALLEL])
def test_a_real_learner_holds_and_allocates_what_an_emulated_one_does(case: str, measured: Measured) -> None:
    assert len(measured[case]) == (1 if case in ALONE else 2)
    for rank in measured[case]:
        real, emulated = rank["real"], rank["emulated"]
        assert real["held"] == emulated["held"]
        if case in MODEL_PARALLEL:  # gloo's threads hold on to what they sent and received: a while more
            assert real["peak"] > 0.95 * emulated["peak"]
        else:
            assert real["peak"] == pytest.approx(emulated["peak"], rel=1e-3)
    for name in HELD:  # an optimizer of odd size is not divided evenly
        planned = sum(rank["emulated"]["planned_held"][name] for rank in measured[case])
        assert sum(rank["real"]["held"][name] for rank in measured[case]) == planned, name


@pytest.mark.parametrize(
    ("name", "billions"),  # as the model cards say
    [("qwen2.5-0.5b", 0.49), ("qwen2.5-1.5b", 1.54), ("qwen2.5-3b", 3.09), ("qwen2.5-7b", 7.61),
     ("qwen2.5-14b", 14.7), ("qwen3-0.6b", 0.6), ("qwen3-1.7b", 1.7), ("qwen3-4b", 4.0), ("qwen3-8b", 8.2)],
)  # fmt: skip
def test_named_models_have_their_published_size(name: str, billions: float) -> None:
    assert memory.whole(NAMED[name]) / 1e9 == pytest.approx(billions, rel=0.02)


def test_stages_and_tensor_ranks_hold_the_model_between_them() -> None:
    shape = NAMED["qwen2.5-7b"]
    layout = load_config(["--parallel.tensor", "4", "--parallel.pipeline", "2"], "").parallel
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


def test_an_option_that_does_not_exist_is_refused_with_the_likeliest() -> None:
    for words in (["--gpus", "h100"], ["--gpus=h100"]):
        with pytest.raises(UserError, match=r"^unknown option --gpus; did you mean --gpu\?$"):
            command.main(["alfworld/qwen2.5-7b", *words])
    with pytest.raises(UserError, match=r"^unknown key iteration \(command line\); did you mean iterations"):
        command.main(["alfworld/qwen2.5-7b", "--iteration", "3"])


def recipe(*overrides: str) -> Config:
    return load_config([RECIPE, *overrides], "")


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


def test_attention_is_planned_as_the_layers_keep_it() -> None:
    shape, (q, k) = NAMED["qwen2.5-7b"], (3584, 512)
    local, lora = recipe("--model.layers", "local"), recipe("--lora.rank", "8")
    assert memory.attention(shape, local) == memory.attention(shape, lora) == (2 * q + 3 * k) + 2 * q
    # Transformer Engine: contiguous query, key and value, and the output.
    assert memory.attention(shape, recipe()) == memory.attention(shape, recipe("--model.layers", "te"))
    assert memory.attention(shape, recipe()) == 2 * q + 2 * k
    assert memory.attention(shape, recipe("--model.dtype", "float32")) == memory.attention(shape, local)


def test_a_block_of_logits_is_as_large_as_the_kernel_makes_it() -> None:
    shape, responses, mib = NAMED["qwen2.5-7b"], 1000, 1 << 20
    hidden = responses * 3584 * (4 + 2)
    whole = responses * 152064 / 4  # logits of a tensor-parallel rank
    assert memory.head_gradients(shape, recipe(), responses) == hidden + whole * 2
    assert memory.head_gradients(shape, recipe(), 10 * responses) == 10 * hidden + 192 * mib
    chunked = recipe("--kernels.backend", "chunked")
    assert memory.head_gradients(shape, chunked, responses) == hidden + 192 * mib


def test_an_engine_that_holds_no_row_is_a_problem() -> None:
    plan = make(NAMED["qwen2.5-7b"], recipe("--engine.memory_fraction", "0.15"), Cluster(DEVICES["h100"]))
    assert plan.problems == (
        "engine: its cache holds 0 tokens, less than one row of 2560 (engine.memory_fraction 0.15)",
    )


def test_an_engine_elsewhere_takes_no_memory() -> None:
    here, apart = (
        make(NAMED["qwen2.5-7b"], recipe(*url), Cluster(DEVICES["h100"]))
        for url in (("--engine.replicas", "1"), ("--engine.url", "http://gpu07:30000"))
    )
    assert [kind.name for kind in here.kinds] == ["learner + engine", "learner"]
    assert [(kind.name, kind.count) for kind in apart.kinds] == [("learner", 8)]
    assert apart.kinds[0].memory == here.kinds[1].memory
    assert apart.engine is None


def test_separate_engines_have_their_gpus_to_themselves() -> None:
    shape, cluster, work = NAMED["qwen2.5-7b"], Cluster(DEVICES["h100"]), Workload(25, 1024, 256)
    apart = ("--engine.placement", "separate", "--engine.replicas", "4", "--engine.tensor", "2",
             "--weights.transport", "broadcast", "--rollout.pool", "ray")  # fmt: skip
    elsewhere = make(shape, recipe("--engine.url", "http://gpu07:30000"), cluster, work)
    plan = make(shape, recipe(*apart), cluster, work)
    assert {kind.name: kind.count for kind in plan.kinds} == {"learner": 8, "engine": 8}
    of_learner, of_engine = sorted(plan.kinds, key=lambda kind: kind.name, reverse=True)
    assert of_learner.memory == elsewhere.kinds[0].memory
    assert plan.engine is not None
    assert (plan.engine.count, plan.engine.gpus) == (4, 2)
    cache = plan.engine.weights + plan.engine.cache
    free = cluster.device.memory - memory.ENGINE_PROCESS
    fraction = recipe().engine.memory_fraction
    assert cache == pytest.approx(fraction * free, rel=1e-4)  # whole tokens
    assert of_engine.memory.total == pytest.approx(cache + memory.ENGINE_PROCESS)
    taking_turns = plan.seconds
    assert (
        taking_turns.prefill + taking_turns.decode > elsewhere.seconds.prefill + elsewhere.seconds.decode == 0
    )
    ahead = ("--rollout.max_staleness", "1", "--objective.old_logprob", "engine")
    beside = make(shape, recipe(*apart, *ahead), cluster, work).seconds
    learning, rollout = beside.score + beside.update + beside.synchronize, beside.prefill + beside.decode
    assert beside.total == pytest.approx(beside.push + max(learning, rollout))
    turns = make(shape, recipe(*apart, *ahead[2:]), cluster, work).seconds
    assert turns.total == pytest.approx(beside.total + min(learning, rollout))


def test_the_gpu_of_the_rank_that_pushes_holds_a_context_of_every_other_server() -> None:
    def runtime(*changes: str) -> float:
        kind = make(NAMED["qwen2.5-7b"], recipe(*changes), Cluster(DEVICES["h100"])).kinds[0]
        return (kind.memory.runtime - memory.PROCESS - memory.ENGINE_PROCESS) / GIB

    assert runtime() == 7 * 0.5
    assert runtime("--engine.replicas", "2") == 0.5
    assert runtime("--engine.replicas", "1", "--engine.tensor", "4") == 3 * 0.5
    assert runtime("--weights.transport", "disk", "--weights.folder", "w") == 0.0


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, {"stage 0 + engine": 1, "stage 0": 1, "stage 1": 2}),
     (2, {"stage 0 + engine": 2, "stage 1": 2}),
     (4, {"stage 0 + engine": 2, "stage 1 + engine": 2})],
)  # fmt: skip
def test_the_engine_shares_the_first_gpus_of_the_first_stages(size: int, expected: dict[str, int]) -> None:
    layout = ("--parallel.pipeline", "2", "--parallel.tensor", "1", "--parallel.sequence_parallel", "false")
    cfg = recipe(*layout, "--engine.tensor", str(size), "--engine.replicas", "1")
    plan = make(NAMED["qwen2.5-7b"], cfg, Cluster(DEVICES["h100"], 1, 4))
    assert {kind.name: kind.count for kind in plan.kinds} == expected
    assert (plan.data, plan.engine and plan.engine.gpus) == (2, size)


def test_every_node_has_engines_on_its_first_gpus() -> None:
    layout = ("--parallel.pipeline", "2", "--parallel.tensor", "1", "--parallel.sequence_parallel", "false")
    cfg = recipe(*layout, "--engine.tensor", "2", "--engine.replicas", "1")
    plan = make(NAMED["qwen2.5-7b"], cfg, Cluster(DEVICES["h100"], 2, 4))
    assert plan.engine is not None
    assert (plan.engine.count, plan.engine.gpus) == (2, 2)
    # Stage 0 is the first node, stage 1 the second.
    counts = {kind.name: kind.count for kind in plan.kinds}
    assert counts == {"stage 0 + engine": 2, "stage 0": 2, "stage 1 + engine": 2, "stage 1": 2}


def test_a_fleet_plays_in_parallel_down_to_the_seconds_of_one_episode() -> None:
    """Prefill is divided among engines; decoding is too, while reading the weights does not dominate it."""
    shape, work = NAMED["qwen2.5-7b"], Workload(25, 1024, 256)
    one, eight = (
        make(shape, recipe("--engine.replicas", count), Cluster(DEVICES["h100"]), work).seconds
        for count in ("1", "8")
    )
    assert one.prefill == pytest.approx(8 * eight.prefill)
    assert one.decode > eight.decode
    tasks = ("--rollout.groups", "128", "--rollout.concurrency", "1024", "--batch.rows_per_update", "2048")
    nodes = make(shape, recipe(*tasks), Cluster(DEVICES["h100"], 8), work).seconds
    whole = make(shape, recipe(), Cluster(DEVICES["h100"]), work).seconds
    assert nodes.prefill + nodes.decode == pytest.approx(whole.prefill + whole.decode, rel=1e-6)
    assert nodes.total == pytest.approx(whole.total, rel=0.01)  # eight times the rows
    same = make(shape, recipe(), Cluster(DEVICES["h100"], 8), work).seconds
    assert (round(whole.total), round(same.total), round(same.decode)) == (173, 81, 68)


def test_hours_of_the_papers_runs_are_those_of_the_page() -> None:
    page = (ROOT / "docs/results.md").read_text()
    rows = re.findall(r"^\| `tools/launch/torchrun.sh (\S+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    assert rows[0] == ("configs/alfworld/qwen2.5-1.5b.yaml", "150", "52", "2.2")
    for config, iterations, seconds, hours in rows:
        cfg = load_config([str(ROOT / config)], "")
        shape = find(str(cfg.model.path))
        total = make(shape, cfg, Cluster(DEVICES["h100"]), Workload.of(cfg)).seconds.total
        assert cfg.iterations == int(iterations), config
        assert (round(total), f"{total * cfg.iterations / 3600:.1f}") == (int(seconds), hours), config


def test_blocks_of_logits_take_192_mib() -> None:
    shape, cfg, responses = NAMED["qwen2.5-7b"], recipe("--kernels.backend", "chunked"), 4096.0
    gradients = responses * shape.hidden * (2 + 4)
    assert memory.head_gradients(shape, cfg, responses) - gradients == pytest.approx(192 * 2**20, abs=1)


def test_data_ranks_are_what_tensor_pipeline_and_context_leave() -> None:
    layout = load_config(
        ["--parallel.tensor", "2", "--parallel.pipeline", "3", "--parallel.context", "5"], ""
    )
    assert [layout.parallel.data(world) for world in (30, 120)] == [1, 4]


def test_a_dry_run_plans_the_memory_of_the_plan(tmp_path: Path) -> None:
    policy = ROOT / "configs/quickstart_policy"
    games = "--environment.tasks.data"
    paths = {"--model.path": policy, "--output": tmp_path / "run", games: tmp_path / "games"}
    flags = [str(word) for flag in paths.items() for word in flag]
    cfg = load_config([str(ROOT / "configs/quickstart.yaml"), *flags], "")
    apart = replace(cfg, engine=replace(cfg.engine, url="http://gpu07:30000"))
    planned = make(find(policy), apart, Cluster(DEVICES["a100"], 1, 1)).kinds[0].memory
    mib = (planned.total - memory.PROCESS) / (1 << 20)
    assert f"{mib:.0f} MiB on the fullest rank" in describe_run(cfg)


def test_the_cache_of_an_engine_that_lends_its_memory_counts_in_rollouts_only() -> None:
    shape, cluster = NAMED["qwen2.5-7b"], Cluster(DEVICES["h100"])
    kept, lent = (
        make(shape, recipe("--engine.release_memory", release), cluster) for release in ("false", "auto")
    )
    assert kept.engine == lent.engine
    assert kept.engine is not None
    update, rollout = lent.kinds[0].memory, kept.kinds[0].memory
    assert update.total == pytest.approx(rollout.total - kept.engine.cache, abs=1)
    # With a small micro-batch, or an engine that takes much, the rollout is the worst moment.
    flags = ("--batch.microbatch_tokens", "2560", "--engine.memory_fraction", "0.5")
    small = make(shape, recipe(*flags), cluster).kinds[0].memory
    assert (small.activations, small.logprob) == (0, 0)
    always = make(shape, recipe(*flags, "--engine.release_memory", "false"), cluster).kinds[0].memory
    assert small.total == pytest.approx(always.total - always.activations - always.logprob)
    assert small.engine_cache == always.engine_cache > always.activations + always.logprob


def test_impossible_layouts_are_refused() -> None:
    shape = NAMED["qwen2.5-7b"]
    with pytest.raises(UserError, match=r"parallel\.pipeline 8 .* 28 layers"):
        make(shape, recipe("--parallel.pipeline", "8", "--parallel.tensor", "1",
                           "--parallel.sequence_parallel", "false"), Cluster(DEVICES["h100"]))  # fmt: skip
    with pytest.raises(UserError, match=r"engine\.tensor 8 does not divide the model's 28"):
        make(shape, recipe("--engine.tensor", "8"), Cluster(DEVICES["h100"]))


def test_more_gpus_and_faster_ones_take_less_time() -> None:
    shape, cfg = NAMED["qwen2.5-7b"], recipe()
    totals = [
        make(shape, cfg, Cluster(DEVICES[gpu], nodes)).seconds.update
        for gpu, nodes in (("a100", 1), ("h100", 1), ("h100", 2))
    ]
    assert totals[0] / totals[1] == pytest.approx(989 / 312)
    assert totals[1] / totals[2] == pytest.approx(2)
    # 6 operations for each parameter and token, plus attention.
    rows, tokens = 16 * 8 * 25, 1024 + 256
    least = 6 * 6.53e9 * rows * tokens / (8 * 0.4 * 989e12)
    assert totals[1] == pytest.approx(least, rel=0.05)


def test_micro_batches_fill_the_budget() -> None:
    cfg = recipe("--batch.microbatch_tokens", "4096", "--batch.rows_per_update", "320")
    work = Workload(episode_steps=25, prompt_tokens=768, response_tokens=256)
    assert micro_batches(cfg, work, data=8) == 320 * 1024 // 8 // 4096


def test_the_command_prints_numbers_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--parallel.tensor", "1", "--parallel.sequence_parallel", "false"]
    assert command.main([RECIPE, "--gpu", "h200", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"]
    assert record["suggestions"] == []
    (kind,) = record["kinds"]
    assert record["totals"][kind["name"]] == sum(kind["memory"].values())
    assert command.main([RECIPE, *wide, "--model", "qwen2.5-14b", "--gpu", "h100"]) == 1
    text = capsys.readouterr().out
    assert "14.77 B parameters" in text
    assert "does not fit: learner" in text
    assert "fits with --" in text
