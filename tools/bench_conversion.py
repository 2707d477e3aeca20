"""Convert models of real shapes there and back; hold bits, logits, seconds and peak memory.

    python tools/bench_conversion.py --folder DIR                       # all cases; 47 GB of disk for the 7B
    python tools/bench_conversion.py --folder DIR --case Qwen2.5-7B     # one anew, the others as they were

Weights are random, except SmolLM2's own. Every conversion runs in a process of its own, whose peak resident
memory is the system's count, mapped file pages included. Writes docs/benchmarks/conversion.json, and its
table into docs/conversion.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gigpo_mega.errors import UserError, run_main
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.weights.huggingface import HFReader, HFWriter
from gigpo_mega.weights.names import entries
from gigpo_mega.weights.verify import same_bits

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = ROOT / "docs/benchmarks/conversion.json", ROOT / "docs/conversion.md"
BEGIN, END = "<!-- cases: tools/bench_conversion.py -->", "<!-- end of cases -->"


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the layout that its checkpoint is cut for."""

    name: str
    tensor: int
    pipeline: int
    virtual_pipeline: int = 1
    config: dict[str, Any] = field(default_factory=dict)  # empty: the real SmolLM2
    logits: bool = True


def _qwen(model_type: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int,
          tied: bool, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocab, "tie_word_embeddings": tied, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "use_sliding_window": False,
        "dtype": "bfloat16",
    } | more  # fmt: skip


CASES = (
    Case("SmolLM2-135M-Instruct", tensor=3, pipeline=2),
    Case("Qwen2.5-0.5B", 2, 2, config=_qwen("qwen2", 896, 4864, 24, 14, 2, 151936, True)),
    Case("Qwen3-0.6B", 2, 2, 2, config=_qwen("qwen3", 1024, 3072, 28, 16, 8, 151936, True, head_dim=128)),
    Case("Qwen2.5-1.5B", 2, 2, config=_qwen("qwen2", 1536, 8960, 28, 12, 2, 151936, True)),
    Case("Qwen2.5-7B", 4, 2, config=_qwen("qwen2", 3584, 18944, 28, 28, 4, 152064, False), logits=False),
)


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Make the model in `folder`, convert it there and back, compare; the folder goes afterwards."""
    hf, checkpoint, back = folder / "hf", folder / "checkpoint", folder / "back"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if case.config:
            _child("tools/bench_conversion.py", "--make", case.name, "--folder", hf)
        else:
            _child("tools/make_smollm2.py", "--output", hf)
        cut = ("--tensor", case.tensor, "--pipeline", case.pipeline,
               "--virtual-pipeline", case.virtual_pipeline)  # fmt: skip
        imported = _child("tools/convert.py", "import", "--hf", hf, "--out", checkpoint, *cut)
        extra = () if case.logits else ("--bits-only",)
        verified = _child("tools/convert.py", "verify", "--hf", hf, "--checkpoint", checkpoint, *extra)
        exported = _child("tools/convert.py", "export", "--checkpoint", checkpoint, "--hf-config", hf,
                          "--out", back)  # fmt: skip
        return _compare(hf, back) | {
            "tensor": case.tensor,
            "pipeline": case.pipeline,
            "virtual_pipeline": case.virtual_pipeline,
            "weights": "random" if case.config else "its own",
            "logits": _logits(verified.output) if case.logits else None,
            "import": imported.measured,
            "verify": verified.measured,
            "export": exported.measured,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make(config: dict[str, Any], directory: Path, seed: int = 0) -> None:
    """Write a random bfloat16 model of `config`, a tensor at a time: norms about 1, all else about 0."""
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
class _Done:
    output: str
    measured: dict[str, float]


def _child(script: str, *arguments: object) -> _Done:
    """Run one of our programs by itself; its output, seconds and peak memory."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", str(ROOT / script), *map(str, arguments)]
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
    return _Done(output, {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
                          "peak_mib": round(usage.ru_maxrss / 1024)})  # fmt: skip


def _compare(hf: Path, back: Path) -> dict[str, Any]:
    """Every tensor of the two directories, and what config.json says of the model."""
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


def _logits(output: str) -> dict[str, float]:
    found = re.search(r"logits: (\S+) at most .* (\S+) where .* largest logit ([^)]+)\)", output)
    assert found is not None, output
    return {"max_gap": float(found[1]), "max_gap_biases_last": float(found[2]), "largest": float(found[3])}


def table(record: dict[str, Any]) -> str:
    """The cases as a Markdown table."""
    lines = [
        "| model | weights | cut for | there and back | logits | biases last | import | export |",
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


def _record(results: dict[str, Any]) -> None:
    """Put the cases that ran into the record and its page, among those that did not run."""
    before = json.loads(RECORD.read_text())["cases"] if RECORD.exists() else {}
    cases = before | results
    packages = ("torch", "megatron-core", "transformers", "safetensors")
    record = {
        "command": "python tools/bench_conversion.py --folder DIR",
        "device": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "versions": {name: version(name) for name in packages},
        "cases": {case.name: cases[case.name] for case in CASES if case.name in cases},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(record)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Run the cases that are asked for."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--folder", type=Path, required=True, help="where models may be made; emptied")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="this one alone")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.make:
        make(next(case.config for case in CASES if case.name == options.make), options.folder)
        return
    for case in CASES:
        if options.case in (None, case.name):
            _record({case.name: run(case, options.folder / "conversion")})
            print(case.name, "done")


if __name__ == "__main__":
    run_main(main)
