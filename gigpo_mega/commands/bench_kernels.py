"""Benchmark every kernel against torch and the installed libraries that compute the same.

For each operation, shape and implementation: median, 5% and 95% quantiles, FLOP/s or bytes/s, the fraction
of the floor set by a matrix product and a copy that the same run measures, peak extra memory, and the error
against float64. Writes the record OUTPUT/kernels_<device>.json and a picture of it. liger-kernel,
cut-cross-entropy and verl are included if they are installed. On a CPU shapes are small, times are CPU
seconds of one thread, and no result says anything about a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gigpo_mega.errors import UserError
from kernels.bench import OPERATIONS, PACKAGES, cases

if TYPE_CHECKING:
    from rich.table import Table

    from kernels.bench.case import Case, Result, Setting
    from kernels.bench.measure import Roofline


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables, write the record and the picture."""
    parser = argparse.ArgumentParser(
        prog="gigpo-mega bench-kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", action="append", choices=list(OPERATIONS), help="only this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="only the first shape of each operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where (on a GPU if there is one)")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder to write to")
    parser.add_argument("--json", action="store_true", help="print the record as the last line")
    options = parser.parse_args(argv)
    import torch

    from gigpo_mega.telemetry.provenance import device_name
    from kernels.bench.case import Setting
    from kernels.bench.picture import draw

    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no GPU here; install the CUDA packages, or leave it out")
    device = options.device or ("cuda" if cuda else "cpu")
    setting = Setting(torch.device(device), options.quick)
    if not setting.cuda:
        torch.set_num_threads(1)
        print("on a CPU: small shapes, one thread, no Triton kernel; this says nothing about a GPU")
    options.output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "_", device_name(device).lower()) if setting.cuda else "cpu"
    target, record = options.output / f"kernels_{name}.json", dict[str, Any]()
    for record in benchmark(setting, options.op or list(OPERATIONS), 0.1 if options.quick else 0.5):
        target.write_text(json.dumps(record, indent=1) + "\n")  # as far as it goes: it may be ended
    draw(record, target.with_suffix(".png"))
    if options.json:
        print(json.dumps(record))


def benchmark(setting: Setting, operations: Sequence[str], budget: float) -> Iterator[dict[str, Any]]:
    """The record of `operations` so far, after each case, of which it prints a table.

    Each implementation is timed for about `budget` seconds.
    """
    from rich.console import Console

    from gigpo_mega.telemetry.provenance import provenance
    from kernels.bench.case import measure
    from kernels.bench.measure import roofline

    console = Console(width=150)
    roof = roofline(setting.device, budget)
    made = provenance(*PACKAGES, device=setting.device.type)
    console.print(
        f"{made['device']}: {roof.flops / 1e9:,.0f} GFLOP/s in a {roof.product} product, "
        f"{roof.bytes / 1e9:,.1f} GB/s in a copy of {roof.copy}"
    )
    record = {
        "benchmark": "kernels",
        **made,
        "kind": setting.device.type,
        "quick": setting.quick,
        "clock": "wall" if setting.cuda else "CPU time of one thread",
        "roofline": asdict(roof),
    }
    results: list[Result] = []
    for operation in operations:
        for case in cases(operation, setting):
            found = list(measure(case, setting, roof, budget))
            console.print(table(case, found, roof))
            results += found
            yield {**record, "results": [asdict(result) for result in results]}


def table(case: Case, results: Sequence[Result], roof: Roofline) -> Table:
    """The results of one case, a row per implementation."""
    from rich.table import Table

    floor = 1e3 * roof.floor(case.flops, case.moved)
    title = f"{case.op}  {case.shape}   floor {floor:.3g} ms ({case.floor})"
    shown = Table(title=title, title_justify="left", expand=False)
    for name in ("implementation", "ms", "5%", "95%", "rate", "of floor", "extra MB", "error", ""):
        shown.add_column(name, justify="left" if name in ("implementation", "") else "right")
    compute_bound = case.flops / roof.flops >= case.moved / roof.bytes
    for r in results:
        if r.seconds is None:
            shown.add_row(r.implementation, *[""] * 7, r.note, style="dim")
            continue
        times = (f"{1e3 * s:.3g}" for s in (r.seconds.median, r.seconds.p5, r.seconds.p95))
        flops, moved = (amount / r.seconds.median / 1e9 for amount in (r.flops, r.moved))
        rate = f"{flops:,.3g} GFLOP/s" if compute_bound else f"{moved:.3g} GB/s"
        extra = "" if r.extra_bytes is None else f"{r.extra_bytes / 1e6:.1f}"
        worst = f"{max(r.errors.values()):.1e}" if r.errors else ""
        cells = (*times, rate, f"{r.fraction:.1%}", extra, worst, r.note)
        shown.add_row(r.implementation, *cells, style="bold" if r.implementation.startswith("ours") else None)
    return shown
