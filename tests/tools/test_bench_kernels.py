"""`gigpo-mega bench-kernels`: what it measures, how it reports failures, and that implementations agree."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gigpo_mega.commands import bench_kernels
from gigpo_mega.errors import UserError
from kernels.bench import OPERATIONS, cases, head
from kernels.bench.case import Case, Missing, Outputs, Setting, error, measure
from kernels.bench.measure import Roofline, extra_memory, seconds

CPU = Setting(torch.device("cpu"), quick=True)
ROOF = Roofline(flops=1e9, bytes=1e9, product="none", copy="none")


def test_errors_are_relative_and_integers_are_counted() -> None:
    exact = {"x": torch.tensor([3.0, 4.0]).double(), "ids": torch.tensor([0, 1, 2, 3]), "more": torch.ones(1)}
    found = {"x": torch.tensor([3.0, 4.5]), "ids": torch.tensor([0, 1, 9, 3])}
    assert error(found, exact) == {"ids": 0.25, "x": pytest.approx(0.1)}


def test_extra_memory_is_the_peak() -> None:
    """Linux counts resident pages in batches per core: exact to about 1 MiB."""

    def work() -> Tensor:
        return torch.ones(64 << 20).sum()  # 256 MiB

    extra = extra_memory(work, CPU.device)
    assert extra == pytest.approx(256 << 20, rel=0.02)


def test_quantiles_are_in_order() -> None:
    taken = seconds(lambda: torch.ones(1000).sum(), CPU.device, 0.01)
    assert 0 < taken.p5 <= taken.median <= taken.p95 < 1


def test_a_failure_loses_no_other_implementation() -> None:
    def broken() -> Outputs:
        raise RuntimeError("out of luck\nand more")

    def absent() -> Outputs:
        raise Missing("not installed: nothing")

    def works() -> Outputs:
        return {"x": torch.full((1,), 2.0)}

    runs: dict[str, Callable[[], Outputs]] = {"broken": broken, "absent": absent, "works": works}
    case = Case("op", "T1", 2e6, 1e6, "none", lambda: {"x": torch.ones(1).double()}, runs)
    results = list(measure(case, CPU, ROOF, 0.01))
    assert [r.note for r in results] == ["RuntimeError: out of luck", "not installed: nothing", ""]
    assert [r.seconds is None for r in results] == [True, True, False]
    done = results[-1]
    assert done.seconds is not None
    assert done.errors == {"x": 1.0}
    assert done.fraction == pytest.approx(2e-3 / done.seconds.median)  # 2e6 operations outweigh 1e6 bytes


@pytest.mark.parametrize("name", ["ours (chunked)", "ours (reference)", "torch", "torch chunked", "liger"])
def test_heads_compute_the_same(name: str) -> None:
    inputs = head.Inputs.random(100, 16, 64, CPU.device)
    exact = inputs.exact(backward=True, rows=32)
    try:
        found = error(inputs.run(head.HEADS[name], CPU, backward=True), exact)
    except Missing as why:
        pytest.skip(str(why))
    assert found.keys() == {"logprob", "entropy", "d_hidden", "d_weight"}
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize("name", ["ours (triton)", "torch.compile", "liger FLCE", "apple CCE", "verl"])
def test_what_cannot_run_here_says_why(name: str) -> None:
    with pytest.raises(Missing, match=r"needs a CUDA device|not installed|not with --quick"):
        head.HEADS[name](CPU)


@pytest.mark.parametrize("order", ["temperature, reduction", "reduction, temperature"])
def test_verl_takes_its_arguments_by_name(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their order changed between versions, and apply() takes no keywords."""
    seen: dict[str, Any] = {}

    class FakeLinearCrossEntropy:
        exec(f"def forward(ctx, hidden, weight, labels, {order}, dist_process_group=None): pass")

        @staticmethod
        def apply(hidden: Tensor, weight: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            seen.update(zip([*order.split(", "), "dist_process_group"], rest, strict=True))
            return labels, labels

    module = types.ModuleType("linear_cross_entropy")
    module.__dict__["LinearCrossEntropy"] = FakeLinearCrossEntropy
    monkeypatch.setitem(sys.modules, "verl.utils.kernel.linear_cross_entropy", module)
    for parent in ("verl", "verl.utils", "verl.utils.kernel"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setattr(head, "needs_cuda", lambda setting: None)
    one = torch.ones(1)
    head.HEADS["verl"](CPU)(one, one, one)
    assert seen == {"temperature": 1.0, "reduction": "none", "dist_process_group": None}


def test_record_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--device", "cpu", "--op", "policy_loss", "--output", str(tmp_path), "--json"]
    bench_kernels.main(arguments)
    output = capsys.readouterr().out
    record: dict[str, Any] = json.loads((tmp_path / "kernels_cpu.json").read_text())
    assert json.loads(output.splitlines()[-1]) == record
    assert "this says nothing about a GPU" in output
    assert {"command", "commit", "device", "load_average", "versions"} <= record.keys()
    assert record["versions"]["torch"] == torch.__version__
    results = {r["implementation"]: r for r in record["results"]}
    assert results["ours (triton)"]["note"] == "needs a CUDA device"
    assert max(results["torch"]["errors"].values()) < 1e-6
    assert results["torch"]["fraction"] > 0
    assert (tmp_path / "kernels_cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_kernels.main(["--device", "tpu"])
    assert "argument --device: invalid choice: 'tpu'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda: torch finds no GPU here"):
            bench_kernels.main(["--device", "cuda"])


def test_every_kernel_is_benchmarked() -> None:
    assert OPERATIONS.keys() == {
        "logprob", "hash_states", "group_states", "advantage", "policy_loss", "train_step"
    }  # fmt: skip


def test_the_fused_step_keeps_no_logits() -> None:
    [case] = cases("train_step", CPU)
    fused, logits = (extra_memory(case.runs[name], CPU.device) for name in ("ours (fused)", "logits"))
    tokens, _, vocab = (int(part[1:]) for part in case.shape.split("-"))
    assert fused is not None
    assert logits is not None
    assert fused < 4 * tokens * vocab < logits  # bytes of one float32 [T, V]
