"""Resources of every kernel that production launches, compiled without a GPU, and the record of them."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import multiprocessing
import os
import pkgutil
import re
import struct
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import kernels
from kernels.aot import Variant

RECORD = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "kernels_aot.csv"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may use
GROWING = ("registers", "spills", "stack", "shared", "instructions")  # less is better


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one variant on one architecture; memory in bytes."""

    op: str
    variant: str
    sm: int
    registers: int  # of a thread
    spills: int  # stored and loaded by a thread
    stack: int  # of a thread
    shared: int  # of a block
    instructions: int
    products: int  # PTX instructions for the tensor cores
    tma: int  # PTX instructions for bulk copies of tensors
    float_atomics: int  # PTX instructions that add floats in the order of arrival
    triton: str

    @property
    def key(self) -> tuple[str, str, int]:
        return self.op, self.variant, self.sm


def operations() -> list[str]:
    """The operations with Triton kernels."""
    packages = [m.name for m in pkgutil.iter_modules(kernels.__path__) if m.ispkg]
    return [name for name in packages if (Path(kernels.__path__[0]) / name / "triton.py").exists()]


def variants(op: str) -> tuple[Variant, ...]:
    return tuple(importlib.import_module(f"kernels.{op}.triton").variants())


def compile_variant(op: str, index: int, sm: int) -> Resources:
    """Compile one variant for one architecture, without a cache."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = variants(op)[index]
    names = variant.kernel.arg_names
    signature = {n: "constexpr" if n in variant.constants else variant.signature[n] for n in names}
    aligned = [n for n in names if signature[n].startswith("*") or n in variant.divisible]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in variant.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True  # print the output of `ptxas -v`
    with contextlib.redirect_stdout(io.StringIO()) as log:
        options = {"num_warps": variant.warps, "num_stages": variant.stages,
                   "enable_fp_fusion": variant.fusion}  # fmt: skip
        binary = triton.compile(source, GPUTarget("cuda", sm, 32), options)
    if "serialized" in log.getvalue():  # matrix products that wait for each other
        raise RuntimeError(f"{op}/{variant.name} on sm_{sm}: {log.getvalue()}")
    ptx = binary.asm["ptx"]
    return Resources(
        op, variant.name, sm,
        registers=_number(r"Used (\d+) registers", log.getvalue()),
        spills=sum(map(int, re.findall(r"(\d+) bytes spill", log.getvalue()))),
        stack=_number(r"(\d+) bytes stack", log.getvalue()),
        shared=int(binary.metadata.shared),
        instructions=_code_size(binary.asm["cubin"]) // 16,
        products=len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b", ptx)),
        tma=len(re.findall(r"\bcp\.async\.bulk\.tensor\b", ptx)),
        float_atomics=len(re.findall(r"\b(?:atom|red)\.[\w.:]*\.(?:b?f(?:16|32|64)|cas)", ptx)),
        triton=triton.__version__,
    )  # fmt: skip


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in the output of ptxas: {text!r}")
    return int(found.group(1))


def _code_size(cubin: bytes) -> int:
    """Bytes of the executable sections of a 64-bit ELF file; an instruction takes 16."""
    (table,), (size, count) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    return sum(length for _, _, flags, _, _, length in sections if flags & 4)


def compile_all(ops: Sequence[str], processes: int) -> list[Resources]:
    jobs = [(op, index, sm) for op in ops for index, v in enumerate(variants(op)) for sm in v.targets]
    jobs.sort(key=lambda job: not variants(job[0])[job[1]].product)  # the slow ones first
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _use_cache, (cache,)) as pool,
    ):
        found = list(pool.map(compile_variant, *zip(*jobs, strict=True)))
    return sorted(found, key=lambda r: r.key)


def _use_cache(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def complaints(found: Sequence[Resources], record: Sequence[Resources]) -> list[str]:
    """What is wrong with `found`, and what has grown since `record` if the same Triton made that."""
    wrong: list[str] = []
    known = {r.key: r for r in record}
    products = {(op, v.name) for op in {r.op for r in found} for v in variants(op) if v.product}
    for now in found:
        name = f"{now.op}/{now.variant} on sm_{now.sm}"
        if now.sm == 90 and now.spills:
            wrong.append(f"{name} spills {now.spills} bytes of registers")
        if now.shared > SHARED_LIMIT[now.sm]:
            wrong.append(f"{name}: {now.shared} bytes of shared memory exceed {SHARED_LIMIT[now.sm]}")
        if now.float_atomics:
            wrong.append(f"{name} adds floats atomically: its sums differ from run to run")
        if (now.op, now.variant) in products and not now.products:
            wrong.append(f"{name} is a matrix product without tensor-core instructions")
        before = known.pop(now.key, None)
        if before is None:
            wrong.append(f"{name} is not in the record")
        elif before.triton == now.triton:
            grown = [(f, getattr(before, f), getattr(now, f)) for f in GROWING]
            wrong += [f"{name}: {f} grew from {old} to {new}" for f, old, new in grown if new > old]
    return wrong + [f"{op}/{variant} on sm_{sm} is recorded but does not exist" for op, variant, sm in known]


def read_record(path: Path) -> list[Resources]:
    if not path.exists():
        return []
    counts = {f.name for f in fields(Resources) if f.type == "int"}
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = [{k: int(v) if k in counts else v for k, v in r.items()} for r in table]
    return [Resources(**row) for row in rows]


def write_record(path: Path, rows: Sequence[Resources]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Resources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda r: r.key))


def show(rows: Sequence[Resources]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = [f.name for f in fields(Resources) if f.name != "triton"]
    table = Table(title=f"Triton {rows[0].triton}" if rows else None)
    for name in names:
        table.add_column(name, justify="left" if name in ("op", "variant") else "right")
    for row in rows:
        table.add_row(*(str(getattr(row, name)) for name in names), style="red" if row.spills else None)
    Console(width=150).print(table)
