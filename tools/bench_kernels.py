"""Benchmark every kernel beside what else is installed: `python tools/bench_kernels.py [--quick]`.

Per operation, shape and implementation: median, 5% and 95% quantiles, FLOP/s or bytes/s, the fraction of the
floor that a matrix product and a copy, measured in the same run, set for it, extra memory at the peak, and
the error against float64. The record goes to docs/benchmarks/kernels_<device>.json, a picture beside it.
Peers (liger-kernel, cut-cross-entropy, verl) are taken where they are installed. On a CPU shapes are small,
times are CPU seconds of one thread, and nothing is said about a GPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gigpo_mega.errors import run_main  # noqa: E402
from tools.kernel_bench.measure import Roofline, Seconds, extra_memory, roofline, seconds  # noqa: E402
from tools.kernel_bench.record import commit, device_name, installed  # noqa: E402
from tools.kernel_bench.registry import OPERATIONS, Case, Missing, Setting, error  # noqa: E402

FOLDER = ROOT / "docs" / "benchmarks"
for _name in ("head", "rows", "step"):
    importlib.import_module(f"tools.kernel_bench.{_name}")  # each registers its operations


@dataclass(frozen=True, slots=True)
class Result:
    """One implementation on one shape; without `seconds` it did not run, and `note` says why."""

    op: str
    shape: str
    implementation: str
    note: str = ""
    seconds: Seconds | None = None
    flops: float = 0.0  # that cannot be avoided
    moved: float = 0.0  # bytes that cannot be avoided
    fraction: float = 0.0  # of the measured floor
    extra_bytes: int | None = None
    errors: dict[str, float] | None = None


def measure(case: Case, setting: Setting, roof: Roofline, budget: float) -> Iterator[Result]:
    """Run each implementation of `case`; one that fails does not lose the others."""
    exact = case.exact()
    for name, run in case.runs.items():
        try:
            found = error(run(), exact)
            extra = extra_memory(run, setting.device)
            taken = seconds(run, setting.device, budget)
        except Missing as why:
            yield Result(case.op, case.shape, name, str(why))
        except Exception as broken:
            lines = str(broken).strip().splitlines() or [""]
            yield Result(case.op, case.shape, name, f"{type(broken).__name__}: {lines[0][:200]}")
        else:
            yield Result(
                case.op, case.shape, name, case.notes.get(name, ""), taken, case.flops, case.moved,
                roof.floor(case.flops, case.moved) / taken.median, extra, found,
            )  # fmt: skip
        gc.collect()
        if setting.cuda:
            torch.cuda.empty_cache()


def benchmark(setting: Setting, ops: list[str], budget: float) -> dict[str, Any]:
    """The whole record; the table is printed as it grows."""
    from rich.console import Console

    console = Console(width=150)
    roof = roofline(setting.device, budget)
    product = f"{roof.flops / 1e9:,.0f} GFLOP/s in a {roof.product} product"
    copy = f"{roof.bytes / 1e9:,.1f} GB/s in a copy of {roof.copy}"
    console.print(f"{device_name(setting.device)}: {product}, {copy}")
    results: list[Result] = []
    for op in ops:
        for case in OPERATIONS[op](setting):
            found = list(measure(case, setting, roof, budget))
            console.print(table(case, found, roof))
            results += found
    return {
        "benchmark": "kernels",
        "device": device_name(setting.device),
        "kind": setting.device.type,
        "commit": commit(),
        "quick": setting.quick,
        "clock": "wall" if setting.cuda else "CPU time of one thread",
        "packages": dict(installed()),
        "roofline": asdict(roof),
        "results": [asdict(result) for result in results],
    }


def table(case: Case, results: list[Result], roof: Roofline) -> Any:
    from rich.table import Table

    floor = 1e3 * roof.floor(case.flops, case.moved)
    title = f"{case.op}  {case.shape}   floor {floor:.3g} ms ({case.floor})"
    shown = Table(title=title, title_justify="left", expand=False)
    for name in ("implementation", "ms", "5%", "95%", "rate", "of floor", "extra MB", "error", ""):
        shown.add_column(name, justify="left" if name in ("implementation", "") else "right")
    for r in results:
        if r.seconds is None:
            shown.add_row(r.implementation, *[""] * 7, r.note, style="dim")
            continue
        times = (f"{1e3 * s:.3g}" for s in (r.seconds.median, r.seconds.p5, r.seconds.p95))
        extra = "" if r.extra_bytes is None else f"{r.extra_bytes / 1e6:.1f}"
        worst = f"{max(r.errors.values()):.1e}" if r.errors else ""
        cells = (*times, rate(r, roof), f"{r.fraction:.1%}", extra, worst, r.note)
        shown.add_row(r.implementation, *cells, style="bold" if r.implementation.startswith("ours") else None)
    return shown


def rate(result: Result, roof: Roofline) -> str:
    """In the unit of what bounds the operation."""
    assert result.seconds is not None
    if result.flops / roof.flops >= result.moved / roof.bytes:
        return f"{result.flops / result.seconds.median / 1e9:,.3g} GFLOP/s"
    return f"{result.moved / result.seconds.median / 1e9:.3g} GB/s"


def main() -> int:
    """Print tables, write the record and the picture; with --json the record is the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", action="append", choices=list(OPERATIONS), help="only this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="the first shape of each, for less time")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="torch device")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the record and the picture")
    parser.add_argument("--json", action="store_true", help="print the record as the last line")
    options = parser.parse_args()
    setting = Setting(torch.device(options.device), options.quick)
    if not setting.cuda:
        torch.set_num_threads(1)
        print("on a CPU: small shapes, one thread, no Triton kernel; this says nothing about a GPU")
    record = benchmark(setting, options.op or list(OPERATIONS), 0.1 if options.quick else 0.5)
    from tools.kernel_bench.picture import draw

    slug = "cpu" if not setting.cuda else re.sub(r"[^a-z0-9]+", "_", record["device"].lower())
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"kernels_{slug}.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.output / f"kernels_{slug}.png")
    if options.json:
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    run_main(main)
