"""Every layout from one policy and the same rows: the losses, gradients and weights of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from tests.learner import ranks
from tests.programs import results
from tests.tiny import random_steps, write_policy

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
Results: TypeAlias = dict[str, dict[str, Any]]
Folders: TypeAlias = tuple[Path, Path]

ALONE = ["train:packed=false", "train", "train:microbatch_tokens=1000", "train:distributed_optimizer=false",
         "train:recompute=selective", "train:recompute=full", "train:background=true"]  # fmt: skip
TWO = ["tensor=2", "pipeline=2", "pipeline=2:virtual_pipeline=2", "tensor=2:sequence_parallel=true",
       "context=2", "distributed_optimizer=true"]  # fmt: skip
FOUR = ["tensor=2:pipeline=2", "tensor=2"]  # the second has two data-parallel ranks
MIXED = ["tensor=2:sequence_parallel=true:pipeline=2:virtual_pipeline=2",
         "tensor=2:sequence_parallel=true:context=2", "pipeline=2:context=2", "pipeline=2",
         "context=2"]  # the last two have two data-parallel ranks  # fmt: skip
HANDED = ["", ":tensor=2", ":context=2"]
BY_ROW = "iterate:ratio=sequence:aggregation=seq-mean-token-mean"  # GSPO
ADAPTED = "rank=4:alpha=8"  # learns adapters
ADAPTED_TWO = [f"train:{ADAPTED}:{layout}" for layout in (
    "tensor=2:sequence_parallel=true:recompute=full", "tensor=2:distributed_optimizer=false",
    "pipeline=2:virtual_pipeline=2", "context=2", "overlap_grad_reduce=true:overlap_param_gather=true",
)]  # fmt: skip
OVERLAP = "overlap_grad_reduce=true:overlap_param_gather=true"
OVERLAPPED = f"train:{OVERLAP}"
IN_BUCKETS = [f"buckets:{OVERLAP}", f"buckets:{OVERLAP}:rows_per_update=null"]


def both(layouts: list[str]) -> list[str]:
    """Training in each layout, padded, then packed: the checkpoint that is left is of packed rows."""
    return [f"train:{layout}:packed={packed}" for layout in layouts for packed in ("false", "true")]


def launch(world: int, folders: Folders, *cases: str) -> Results:
    """Results by case of tests/learner/ranks.py in `world` processes."""
    rows = results(world, "tests/learner/ranks.py", *map(str, folders), *cases)
    return {row["case"]: row for row in rows}


def alone(folders: Folders, *cases: str) -> Results:
    """The same in this process."""
    found = {case: ranks.run(*folders, case) for case in cases}
    return {case: json.loads(json.dumps(result)) for case, result in found.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The shared policy, and where checkpoints go."""
    policy = write_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=4)
    return policy, tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def one(folders: Folders) -> Results:
    by_row = [f"{BY_ROW}:packed=false", f"{BY_ROW}:microbatch_tokens=1000"]
    adapted = [f"train:{ADAPTED}:packed=false", f"train:{ADAPTED}", f"resume:{ADAPTED}"]
    found = alone(folders, *ALONE, "resume", "score", *by_row, *adapted)
    return found | alone(folders, "resume:distributed_optimizer=false")


@pytest.fixture(scope="module")
def two(folders: Folders, one: Results) -> Results:
    others = [
        BY_ROW,
        f"{BY_ROW}:context=2",
        OVERLAPPED,
        *IN_BUCKETS,
        "resume:pipeline=2",
        "resume:tensor=2",
        "full:tensor=2",
        "unfit:tensor=2",
        "logprob:tensor=2",
        "poisoned",
        "poisoned:tensor=2",
        "handed:context=2",
        "iterate:pipeline=2:virtual_pipeline=2",
        "iterate:context=2:old_logprob=engine",
    ]
    return launch(2, folders, *both(TWO), *others, *ADAPTED_TWO)


@pytest.fixture(scope="module")
def four(folders: Folders, one: Results) -> Results:
    mixed = [f"train:{layout}" for layout in MIXED]
    adapted = [f"train:{ADAPTED}:tensor=2:pipeline=2", f"reshard:{ADAPTED}:pipeline=4", f"reshard:{ADAPTED}"]
    handed = [f"{case}{layout}" for case in ("handed", "iterate") for layout in HANDED]
    handed.append("handed:tensor=2:pipeline=2")
    return launch(4, folders, *both(FOUR), *mixed, "reshard:pipeline=4", "reshard", *adapted, *handed)


def same(reference: dict[str, Any], found: dict[str, Any]) -> None:
    for a, b in zip(reference["metrics"][-len(found["metrics"]) :], found["metrics"], strict=True):
        assert a.keys() == b.keys()
        assert a["loss/total"] == pytest.approx(b["loss/total"], abs=1e-6)
        assert a["optimizer/grad_norm"] == pytest.approx(b["optimizer/grad_norm"], abs=1e-5)
        assert a["optimizer/lr"] == b["optimizer/lr"]
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=2e-6), name
    assert found["distance"] < 1e-5


@pytest.mark.parametrize("case", ALONE[1:])
def test_batches_and_options_change_nothing(case: str, one: Results) -> None:
    same(one[ALONE[0]], one[case])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_activations_give_the_same_bits(recompute: str, one: Results) -> None:
    assert one[f"train:recompute={recompute}"]["metrics"] == one["train"]["metrics"]
    assert one[f"train:recompute={recompute}"]["weights"] == one["train"]["weights"]


@pytest.mark.parametrize("case", [*both(TWO), OVERLAPPED])
def test_two_processes_equal_one(case: str, one: Results, two: Results) -> None:
    same(one["train:packed=false"], two[case])


@pytest.mark.parametrize("case", IN_BUCKETS)
def test_gathers_of_parameters_that_overlap_change_no_bit(case: str, two: Results) -> None:
    assert two[case]["different"] == [[], []]
    assert two[case]["buckets"] == 5


def test_adapters_learn_the_same_in_every_layout(one: Results, two: Results, four: Results) -> None:
    """And go on from a checkpoint of another one; weights are compared with the adapters merged in."""
    reference = one[f"train:{ADAPTED}:packed=false"]
    found = {case: r for results in (one, two, four) for case, r in results.items() if ADAPTED in case}
    assert len(found) == 11
    for result in found.values():
        same(reference, result)
    assert one[f"resume:{ADAPTED}"]["weights"] == one[f"train:{ADAPTED}"]["weights"]


@pytest.mark.parametrize("case", [*both(FOUR), *(f"train:{layout}" for layout in MIXED)])
def test_four_processes_equal_one(case: str, one: Results, four: Results) -> None:
    same(one["train:packed=false"], four[case])


def test_losses_by_row_depend_on_no_layout(one: Results, two: Results) -> None:
    """Their denominator counts rows, over all micro-batches and data-parallel ranks."""
    [expected] = one[f"{BY_ROW}:packed=false"]["metrics"]
    by_token = one["train"]["metrics"][0]
    assert abs(expected["loss/total"] - by_token["loss/total"]) > 1e-3
    assert abs(expected["optimizer/grad_norm"] - by_token["optimizer/grad_norm"]) > 1e-2
    others = (one[f"{BY_ROW}:microbatch_tokens=1000"], two[BY_ROW], two[f"{BY_ROW}:context=2"])
    for [found] in (case["metrics"] for case in others):
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=2e-6), name


def test_resume_is_bit_equal(one: Results, two: Results) -> None:
    pairs = [
        (one["resume"], one["train:background=true"]),  # the last to write the checkpoint of this layout
        (one["resume:distributed_optimizer=false"], one["train:distributed_optimizer=false"]),
        (two["resume:pipeline=2"], two["train:pipeline=2:packed=true"]),
        (two["resume:tensor=2"], two["train:tensor=2:packed=true"]),
    ]
    for resumed, uninterrupted in pairs:
        assert resumed["metrics"] == uninterrupted["metrics"][1:]
        assert resumed["weights"] == uninterrupted["weights"]


def test_checkpoint_resumes_under_any_layout(folders: Folders, four: Results) -> None:
    """Written by two tensor x two pipeline ranks: optimizer, scheduler and weights go on, wherever."""
    uninterrupted = four["train:tensor=2:pipeline=2:packed=true"]
    for resumed in (alone(folders, "reshard")["reshard"], four["reshard:pipeline=4"], four["reshard"]):
        (found,), expected = resumed["metrics"], uninterrupted["metrics"][1]
        assert found["optimizer/updates"] == 3
        for name in found:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
        assert found["optimizer/lr"] == expected["optimizer/lr"]
        assert resumed["distance"] < 1e-5


def test_one_rank_without_space_stops_every_rank(two: Results) -> None:
    first, second = two["full:tensor=2"]["errors"]
    assert first == second
    assert first.startswith("checkpoint: cannot write ")
    assert two["full:tensor=2"]["left"] == ["iteration_000001"]


def test_a_weight_that_is_not_finite_on_one_rank_stops_every_rank_before_any_writes(two: Results) -> None:
    """The others used to enter megatron's collectives while that rank reported its error in one of ours."""
    first, second = two["unfit:tensor=2"]["errors"]
    assert first == second
    assert first.startswith("checkpoint: a weight of the policy is not finite; ")
    assert two["unfit:tensor=2"]["left"] == ["iteration_000001"]


@pytest.mark.parametrize("case", ["poisoned", "poisoned:tensor=2"])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_every_rank(case: str, two: Results) -> None:
    (first, kept), (second, kept_too) = two[case]["everyone"]
    assert first == second
    assert first.startswith("iteration 0, update 2 of 3: a gradient is not finite")
    assert kept
    assert kept_too


def test_logprob_of_a_split_vocabulary(two: Results) -> None:
    for name, error in two["logprob:tensor=2"]["errors"].items():
        assert error < 5e-6, name


@pytest.mark.parametrize("layout", HANDED)
def test_rows_that_the_leader_alone_has_give_the_same_bits(layout: str, four: Results) -> None:
    (expected,) = four["iterate" + layout]["metrics"]
    assert [rank["metrics"] for rank in four["handed" + layout]["everyone"]] == [expected] * 4


def test_every_rank_gets_the_rows_that_it_computes_and_no_others(two: Results, four: Results) -> None:
    """A whole copy of the groups used to reach every rank, objects and texts included."""
    sizes = [4 * (len(s.prompt_ids) + 3 * len(s.response_ids)) for s in random_steps(ranks.ROWS)]
    for data, layout in ((4, ""), (2, ":tensor=2"), (2, ":context=2"), (1, ":tensor=2:pipeline=2")):
        for rank in four["handed" + layout]["everyone"]:
            assert rank["outline"] < 16 * ranks.ROWS + 300  # two lengths a row, and what pickle adds
            assert rank["tokens"] <= sum(sizes) / data + 2 * max(sizes)
    assert [rank["tokens"] for rank in two["handed:context=2"]["everyone"]] == [0, sum(sizes)]


def test_the_leader_gets_the_learners_logprobs_of_all_rows_in_every_layout(
    one: Results, two: Results, four: Results
) -> None:
    """Those of the old policy, which `score` gives; with the engine's below the ratio, of each row's update:
    only the first update's are of the same weights."""
    scores = one["score"]["scores"]
    expected = [scores[str(row)] for row in range(ranks.ROWS)]
    whole = [value for row in expected for value in row]
    for found in (two["iterate:pipeline=2:virtual_pipeline=2"], *(four["iterate" + at] for at in HANDED)):
        assert found["logprobs"] == pytest.approx(whole, abs=5e-6)
    present, first = two["iterate:context=2:old_logprob=engine"]["logprobs"], ranks.ROWS // 3
    size = sum(map(len, expected[:first]))
    assert present[:size] == pytest.approx(whole[:size], abs=5e-6)
    assert np.abs(np.subtract(present, whole))[size:].min() > 1e-4


def test_scores_equal_transformers(folders: Folders, one: Results) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    theirs = Qwen2ForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    for row, step in enumerate(random_steps(ranks.ROWS)):
        ids = torch.from_numpy(np.concatenate([step.prompt_ids, step.response_ids]).astype(np.int64))
        with torch.no_grad():
            logprobs = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, ids[1:, None])[len(step.prompt_ids) - 1 :, 0].tolist()
        assert one["score"]["scores"][str(row)] == pytest.approx(expected, abs=5e-6)
