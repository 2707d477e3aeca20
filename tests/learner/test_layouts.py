"""One process, DP2 and TP2 from one checkpoint and the same rows: the same losses, gradients and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_policy

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


def launch(world: int, policy: Path, output: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """Results by case of a launch of `world` processes."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(world),
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
               str(ROOT / "tests/learner/ranks.py"), str(policy), str(output), *cases]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {row["case"]: row for row in rows}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def single(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return launch(1, policy, tmp_path_factory.mktemp("one"), "score:1", "improve:1", "improve:1:plain",
    "save:1", "resume:1",
                  "save:1:plain", "resume:1:plain")  # fmt: skip


@pytest.fixture(scope="module")
def data2(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return launch(
        2, policy, tmp_path_factory.mktemp("dp"), "improve:1", "improve:1:plain", "save:1", "resume:1"
    )


@pytest.fixture(scope="module")
def tensor2(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return launch(2, policy, tmp_path_factory.mktemp("tp"), "improve:2", "improve:2:sp", "save:2", "resume:2")


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


@pytest.mark.parametrize("case", ["improve:1", "improve:1:plain"])
def test_data_parallel_2_equals_one_process(case: str, single: dict[str, Any], data2: dict[str, Any]) -> None:
    same(single["improve:1"], data2[case])


@pytest.mark.parametrize("case", ["improve:2", "improve:2:sp"])
def test_tensor_parallel_2_equals_one_process(
    case: str, single: dict[str, Any], tensor2: dict[str, Any]
) -> None:
    same(single["improve:1"], tensor2[case])


def test_optimizer_kinds_agree(single: dict[str, Any]) -> None:
    same(single["improve:1"], single["improve:1:plain"])


@pytest.mark.parametrize("flags", ["1", "1:plain"])
def test_resume_is_bit_equal(flags: str, single: dict[str, Any]) -> None:
    for key in ("metrics", "weights"):
        assert single[f"resume:{flags}"][key] == single[f"save:{flags}"][key]


def test_resume_is_bit_equal_on_two_ranks(data2: dict[str, Any], tensor2: dict[str, Any]) -> None:
    for results, tensor in ((data2, 1), (tensor2, 2)):
        for key in ("metrics", "weights"):
            assert results[f"resume:{tensor}"][key] == results[f"save:{tensor}"][key]


def test_checkpoint_resumes_under_another_layout(
    policy: Path, single: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.mktemp("reshard")
    launch(1, policy, output, "save:1")
    same(single["save:1"], launch(2, policy, output, "resume:2")["resume:2"])


def test_scores_equal_transformers(policy: Path, single: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from transformers import Qwen2ForCausalLM

    from tests.tiny import random_steps

    theirs = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    for row, step in enumerate(random_steps(24)):
        ids = torch.from_numpy(np.concatenate([step.prompt_ids, step.response_ids]).astype(np.int64))
        with torch.no_grad():
            logprobs = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, ids[1:, None])[len(step.prompt_ids) - 1 :, 0].tolist()
        assert single["score:1"]["scores"][str(row)] == pytest.approx(expected, abs=5e-6)
