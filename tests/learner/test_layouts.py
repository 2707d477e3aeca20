"""One process, DP2 and TP2 from one policy and the same rows: the same losses, gradients and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import random_steps, write_policy

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
Results = dict[str, dict[str, Any]]


def launch(world: int, *arguments: str) -> Results:
    """Results by case of tests/learner/ranks.py in `world` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [sys.executable, "-W", "ignore", *(torchrun if world > 1 else ()),
               str(ROOT / "tests/learner/ranks.py"), *arguments]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {row["case"]: row for row in rows}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The shared policy, and where checkpoints go."""
    return str(write_policy(tmp_path_factory.mktemp("policy"))), str(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def one(folders: tuple[str, str]) -> Results:
    return launch(1, *folders, "score:1", "train:1", "train:1:plain", "resume:1", "resume:1:plain")


@pytest.fixture(scope="module")
def two(folders: tuple[str, str], one: Results) -> Results:
    data = ["train:1", "resume:1", "train:1:plain"]
    return launch(2, *folders, *data, "train:2", "resume:2", "reshard:2", "full:2", "train:2:sp", "logprob:2")


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    for a, b in zip(left["metrics"], right["metrics"], strict=True):
        assert a.keys() == b.keys()
        assert a["loss/total"] == pytest.approx(b["loss/total"], abs=1e-6)
        assert a["optimizer/grad_norm"] == pytest.approx(b["optimizer/grad_norm"], abs=1e-5)
        assert a["optimizer/lr"] == b["optimizer/lr"]
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=2e-6), name
    assert left["weights"].keys() == right["weights"].keys()
    for name, (total, magnitude) in left["weights"].items():
        assert right["weights"][name] == pytest.approx([total, magnitude], abs=2e-5 * magnitude), name


@pytest.mark.parametrize("case", ["train:1", "train:1:plain", "train:2", "train:2:sp"])
def test_two_processes_equal_one(case: str, one: Results, two: Results) -> None:
    same(one["train:1"], two[case])


def test_optimizer_kinds_agree(one: Results) -> None:
    same(one["train:1"], one["train:1:plain"])


@pytest.mark.parametrize(("world", "case"), [(1, "1"), (1, "1:plain"), (2, "1"), (2, "2")])
def test_resume_is_bit_equal(world: int, case: str, one: Results, two: Results) -> None:
    results = one if world == 1 else two
    assert results[f"resume:{case}"]["metrics"] == results[f"train:{case}"]["metrics"][1:]
    assert results[f"resume:{case}"]["weights"] == results[f"train:{case}"]["weights"]


def test_checkpoint_resumes_under_another_layout(one: Results, two: Results) -> None:
    same(one["resume:1"], two["reshard:2"])


def test_one_rank_without_space_stops_every_rank(two: Results) -> None:
    first, second = two["full:2"]["errors"]
    assert first == second
    assert first.startswith("checkpoint: cannot write ")
    assert two["full:2"]["left"] == ["iteration_000001"]


def test_logprob_of_a_split_vocabulary(two: Results) -> None:
    for name, error in two["logprob:2"]["errors"].items():
        assert error < 5e-6, name


def test_scores_equal_transformers(folders: tuple[str, str], one: Results) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    theirs = Qwen2ForCausalLM.from_pretrained(folders[0], dtype=torch.float32).eval()
    for row, step in enumerate(random_steps(24)):
        ids = torch.from_numpy(np.concatenate([step.prompt_ids, step.response_ids]).astype(np.int64))
        with torch.no_grad():
            logprobs = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, ids[1:, None])[len(step.prompt_ids) - 1 :, 0].tolist()
        assert one["score:1"]["scores"][str(row)] == pytest.approx(expected, abs=5e-6)
