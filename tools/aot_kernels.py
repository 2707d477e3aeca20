"""Compile every kernel as production launches it, without a GPU, and compare it with the record.

`python tools/aot_kernels.py` prints registers, spills, shared memory and instruction classes of each variant
in `kernels/*/triton.py` for sm_80, sm_90 and sm_100. The exit status is 1 if one spills on sm_90, has lost
its tensor-core instructions, or has grown beyond docs/benchmarks/kernels_aot.csv; `--record` writes that
file.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from gigpo_mega.arguments import COUNT
from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.provenance import provenance
from tools.bench.aot import RECORD, compile_all, complaints, operations, read_record, show, write_record
from tools.records import parser, publish


def main() -> int:
    """Print the table and what is wrong, and publish both."""
    options = parser(__doc__)
    options.add_argument("--op", choices=operations(), help="only this operation")
    options.add_argument("--record", action="store_true", help="write the record, do not compare")
    options.add_argument("--baseline", type=Path, default=RECORD, help="compare with another record")
    options.add_argument("--processes", type=COUNT, default=2, help="concurrent compilations")
    given = options.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise UserError("TRITON_INTERPRET is set, so nothing can be compiled: unset it")
    ops = [given.op] if given.op else operations()
    found = compile_all(ops, given.processes)
    show(found)
    record = read_record(given.baseline)
    if given.record:
        write_record(given.baseline, [*(r for r in record if r.op not in ops), *found])
    wrong = complaints(found, found if given.record else [r for r in record if r.op in ops])
    for line in wrong:
        print(line)
    if wrong and not given.record:
        print("if this is intended: python tools/aot_kernels.py --record, and commit the record")
    publish({**provenance("triton"), "kernels": [asdict(row) for row in found], "complaints": wrong}, given)
    return int(bool(wrong))


if __name__ == "__main__":
    run_main(main)
