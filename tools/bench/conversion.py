"""Conversion of models of real shapes there and back: equal bits and logits, seconds and peak memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gigpo_mega.errors import UserError
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.weights.families.mapping import entries
from gigpo_mega.weights.huggingface import HFReader, HFWriter
from gigpo_mega.weights.verify import same_bits
from tools.bench.conversion_cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
RECORD, PAGE = ROOT / "docs/benchmarks/conversion.json", ROOT / "docs/conversion.md"
PACKAGES = ("torch", "megatron-core", "transformers", "safetensors")
BEGIN, END = "<!-- cases: tools/bench_conversion.py -->", "<!-- end of cases -->"


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Make the model in `folder`, convert it there and back, compare."""
    hf, checkpoint, back = folder / "hf", folder / "checkpoint", folder / "back"
    if case.config:
        run_program("tools.bench_conversion", "--case", case.name, "--make", hf)
    else:
        run_program("tools.make_smollm2", "--output", hf)
    cut = ("--tensor", case.tensor, "--pipeline", case.pipeline,
           "--virtual-pipeline", case.virtual_pipeline)  # fmt: skip
    imported = run_program("gigpo_mega", "convert", "import", "--hf", hf, "--out", checkpoint, *cut)
    extra = () if case.logits else ("--bits-only",)
    verified = run_program("gigpo_mega", "convert", "verify", "--hf", hf, "--checkpoint", checkpoint, *extra)
    exported = run_program("gigpo_mega", "convert", "export", "--checkpoint", checkpoint, "--hf-config", hf,
                      "--out", back)  # fmt: skip
    return compare(hf, back) | {
        "tensor": case.tensor,
        "pipeline": case.pipeline,
        "virtual_pipeline": case.virtual_pipeline,
        "weights": "random" if case.config else "its own",
        "logits": parse_logits(verified.output) if case.logits else None,
        "import": imported.measured,
        "verify": verified.measured,
        "export": exported.measured,
    }


def make(config: dict[str, Any], directory: Path, seed: int = 0) -> None:
    """Write a random bfloat16 model of `config`, one tensor at a time: norms near 1, all others near 0."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator().manual_seed(seed)
    writer = HFWriter(directory)
    for entry in entries(ModelShape.from_hf(directory)):
        for name, dims in entry.hf.items():
            tensor = torch.empty(dims, dtype=torch.bfloat16)
            if name.endswith("norm.weight"):
                tensor.normal_(1.0, 0.1, generator=generator)
            else:
                tensor.normal_(0.0, 0.02, generator=generator)
            writer.add(name, tensor)
    writer.close()


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended with status 0."""

    output: str
    measured: dict[str, float]  # seconds, cpu_seconds, peak_mib


def run_program(module: str, *arguments: object) -> Done:
    """Run a program of this checkout in a process of its own; raises UserError if it fails."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise UserError(f"{' '.join(command)} ended with status {child.returncode}")
    seconds = time.perf_counter() - start
    cpu = usage.ru_utime + usage.ru_stime
    return Done(output, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
                          "peak_mib": round(usage.ru_maxrss / 1024)})  # fmt: skip


def compare(hf: Path, back: Path) -> dict[str, Any]:
    """How many tensors of two directories are equal, and what config.json says of the model."""
    shape = ModelShape.from_hf(hf)
    assert ModelShape.from_hf(back) == shape
    one, other = HFReader(hf), HFReader(back)
    other.check(shape)
    names = [name for entry in entries(shape) for name in entry.hf]
    equal = sum(same_bits(one.tensor(name), other.tensor(name)) for name in names)
    parameters = sum(one.tensor(name).numel() for name in names)
    return {
        "family": shape.family,
        "tied": shape.tied,
        "dtype": str(one.dtype(names[0])).removeprefix("torch."),
        "parameters": parameters,
        "bytes": one.nbytes,
        "tensors": len(names),
        "tensors_equal": equal,
    }


def parse_logits(output: str) -> dict[str, float]:
    """The numbers that `gigpo-mega convert verify` prints about logits."""
    found = re.search(r"from transformers (\S+), .* added last (\S+) .*largest logit ([^)]+)\)", output)
    assert found is not None, output
    return {"max_gap": float(found[1]), "max_gap_biases_last": float(found[2]), "largest": float(found[3])}


def bench(cases: Sequence[Case]) -> dict[str, Any]:
    """The record of some cases, run one after another on one thread each."""
    made = provenance(*PACKAGES)
    results: dict[str, Any] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            results[case.name] = run(case, Path(folder)) | made
        print(case.name, "done")
    return {**made, "cases": results}


def table(record: dict[str, Any]) -> str:
    """The cases as a Markdown table."""
    lines = [
        "| model | weights | cut for | round trip | logits | biases last | import | export |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in record["cases"].items():
        virtual = f" x VPP{case['virtual_pipeline']}" if case["virtual_pipeline"] > 1 else ""
        logits = case["logits"]
        seen = ("not compared (memory)", "")
        if logits:
            largest, last = f"{logits['largest']:.3g}", f"{logits['max_gap_biases_last']:.2g}"
            seen = (f"{logits['max_gap']:.2g} of {largest}", last)
        cells = [
            f"{name} ({case['family']}, {'tied' if case['tied'] else 'untied'})",
            f"{case['weights']}, {case['dtype']}, {case['bytes'] / 2**30:.2f} GiB",
            f"TP{case['tensor']} x PP{case['pipeline']}{virtual}",
            f"{case['tensors_equal']} of {case['tensors']} tensors bit-equal",
            *seen,
            *(f"{case[way]['peak_mib'] / 1024:.2f} GiB, {case[way]['cpu_seconds']:.0f} s"
              for way in ("import", "export")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def update_record(results: dict[str, Any]) -> None:
    """Replace the cases that ran in the record and in its page; the other cases stay.

    A case without a command of its own has that of the record.
    """
    record = json.loads(RECORD.read_text())
    cases = record["cases"] | results
    record["cases"] = {case.name: cases[case.name] for case in CASES if case.name in cases}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(record)}\n{END}{rest.split(END)[1]}")
