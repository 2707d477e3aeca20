"""Linear log-prob with the product and the softmax statistics in one Triton kernel.

Forward leaves three numbers per token and tile of the vocabulary, 12 bytes for 256 logits, and merges them.
Backward computes a block of logits again, turns it into its gradient before it leaves the chip, and lets
cuBLAS multiply that into both gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.aot import Variant
from kernels.logprob import blocks
from kernels.logprob.row_kernels import META as ROW
from kernels.logprob.row_kernels import row_gradients, row_statistics
from kernels.logprob.statistics import Rows
from kernels.logprob.tiles import label_logits, merge_tiles, tile_gradients, tile_statistics
from kernels.sizes import TRITON_ELEMENTS


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is cut up on an architecture."""

    rows: int  # tokens
    columns: int  # of the vocabulary
    depth: int  # of hidden, per step
    stages: int  # steps in flight
    group: int  # rows of tiles that advance through the vocabulary together
    warps: int
    tma: bool  # load and store by tensor descriptors, not pointers


FORWARD = {
    80: Tile(128, 256, 32, 3, 8, 8, tma=False),
    90: Tile(128, 256, 64, 4, 8, 8, tma=True),
    100: Tile(128, 256, 64, 4, 8, 8, tma=True),
}
BACKWARD = {
    80: Tile(128, 128, 32, 4, 8, 8, tma=False),  # of 256 columns its registers spill
    90: Tile(128, 256, 64, 3, 8, 8, tma=True),
    100: Tile(128, 256, 64, 3, 8, 8, tma=True),
}
INTERPRETED = Tile(16, 64, 32, 2, 2, 4, tma=True)  # tests only: the interpreter is slow per element
INTERPRETED_PROGRAMS = 3

MERGE: dict[str, int] = {"TOKENS": 32, "PARTS": 32, "num_warps": 4}
LABEL: dict[str, int] = {"DEPTH": 1024, "num_warps": 4}


def statistics(hidden: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, T] of hidden [T, H] @ weight [V, H].T."""
    _check(hidden)
    tokens, width = hidden.shape
    result = hidden.new_empty(4, tokens, dtype=torch.float32)
    if not tokens:
        return result
    tile = _tile(FORWARD, hidden, weight)
    parts = result.new_empty(3, _pieces(rows.columns, tile.columns), tokens)
    if rows.columns:
        _launch(
            tile_statistics, _programs(tokens, rows.columns, tile, hidden.device),
            _source(hidden, tile.rows, tile.depth, tile),
            _source(weight[: rows.columns], tile.columns, tile.depth, tile),
            rows.scale, parts, tokens, rows.columns, width, **_meta(tile), ENTROPY=rows.entropy,
        )  # fmt: skip
    _launch(
        merge_tiles, (_pieces(tokens, MERGE["TOKENS"]),),
        parts, result, tokens, parts.shape[1], **MERGE, ENTROPY=rows.entropy,
    )  # fmt: skip
    _launch(
        label_logits, (tokens,),
        hidden, weight, rows.scale, rows.target, result[3], rows.columns, width, **LABEL,
    )  # fmt: skip
    return result


def gradients(
    hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
    d_hidden: Tensor | None, d_weight: Tensor | None,
) -> None:  # fmt: skip
    """Write d_hidden [T, H] and add to d_weight [V, H], if they are given."""
    blocks.gradients(
        hidden, weight, rows, slopes, d_hidden, d_weight, elements=TRITON_ELEMENTS, d_logits=_d_logits
    )


def _d_logits(hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor) -> Tensor:
    (tokens, width), columns = hidden.shape, len(weight)
    tile = _tile(BACKWARD, hidden, weight)
    # Its row pitch is a multiple of 16 bytes, whatever the number of columns.
    out = hidden.new_empty(tokens, _pieces(columns, blocks.ALIGN) * blocks.ALIGN)[:, :columns]
    _launch(
        tile_gradients, _programs(tokens, columns, tile, hidden.device),
        _source(hidden, tile.rows, tile.depth, tile), _source(weight, tile.columns, tile.depth, tile),
        rows.scale, rows.target, slopes, _source(out, tile.rows, tile.columns // 2, tile),
        tokens, columns, width, slopes.stride(0), out.stride(0), **_meta(tile), ENTROPY=rows.entropy,
    )  # fmt: skip
    return out


def _check(matrix: Tensor) -> None:
    if not matrix.is_cuda and not knobs.runtime.interpret:
        raise ValueError(f"backend triton runs on CUDA, not on {matrix.device}; use chunked or auto")
    if matrix.is_cuda and matrix.dtype is not torch.bfloat16:
        raise ValueError(f"backend triton multiplies bfloat16, not {matrix.dtype}; use chunked or auto")


def _tile(table: dict[int, Tile], hidden: Tensor, weight: Tensor) -> Tile:
    """This device's tile; without descriptors if rows are not aligned to 16 bytes."""
    tile = INTERPRETED
    if hidden.is_cuda:
        major = torch.cuda.get_device_capability(hidden.device)[0]
        tile = table.get(10 * major, table[80])
    aligned = all((m.stride(0) * m.element_size()) % 16 == m.data_ptr() % 16 == 0 for m in (hidden, weight))
    if tile.tma and not aligned:
        return replace(tile, tma=False) if tile is INTERPRETED else table[80]
    return tile


def _source(matrix: Tensor, rows: int, columns: int, tile: Tile) -> Any:
    """`matrix` as the kernels take it."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns]) if tile.tma else matrix


def _programs(tokens: int, columns: int, tile: Tile, device: torch.device) -> tuple[int]:
    """One program per multiprocessor, or per tile if there are fewer."""
    tiles = _pieces(tokens, tile.rows) * _pieces(columns, tile.columns)
    if device.type != "cuda":
        return (min(tiles, INTERPRETED_PROGRAMS),)
    return (min(tiles, torch.cuda.get_device_properties(device).multi_processor_count),)


def _pieces(size: int, step: int) -> int:
    return -(-size // step)


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """`kernel[grid](...)`, which type checkers do not know of Triton's kernels."""
    kernel[grid](*arguments, **meta)


def _meta(tile: Tile) -> dict[str, Any]:
    """The meta-parameters of a launch."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "GROUP": tile.group,
        "STAGES": tile.stages,
        "TMA": tile.tma,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


_TILE_SIGNATURE: dict[str, str] = {
    "hidden": "*bf16", "weight": "*bf16", "out": "*bf16", "scale": "*fp32", "slopes": "*fp32",
    "parts": "*fp32", "target": "*i64", "n_tokens": "i32", "n_columns": "i32", "width": "i32",
    "slopes_stride": "i32", "out_stride": "i32",
}  # fmt: skip


def _tile_variants(kernel: Any, table: dict[int, Tile]) -> Iterator[Variant]:
    """A product kernel for each architecture, and with pointers for rows that are not aligned."""
    cases: list[tuple[str, Tile, tuple[int, ...], tuple[str, ...]]] = [
        (f"sm_{sm}", tile, (sm,), ("width", "out_stride")) for sm, tile in table.items()
    ]
    cases.append(("unaligned", table[80], (80, 90, 100), ("out_stride",)))
    for entropy, (name, tile, targets, divisible) in product((True, False), cases):
        signature = dict(_TILE_SIGNATURE)
        if tile.tma:
            signature["hidden"] = f"tensordesc<bf16[{tile.rows}, {tile.depth}]>"
            signature["weight"] = f"tensordesc<bf16[{tile.columns}, {tile.depth}]>"
            signature["out"] = f"tensordesc<bf16[{tile.rows}, {tile.columns // 2}]>"
        yield _variant(
            f"{kernel.__name__} {name}{' entropy' if entropy else ''}", kernel, signature,
            _meta(tile) | {"ENTROPY": entropy}, divisible, product=True, targets=targets,
        )  # fmt: skip


def _variant(
    name: str, kernel: Any, signature: dict[str, str], meta: dict[str, Any], divisible: tuple[str, ...],
    **options: Any,
) -> Variant:  # fmt: skip
    """A variant of `kernel` from all that is known of its arguments."""
    constants = {k: v for k, v in meta.items() if k in kernel.arg_names}
    kept = {k: signature[k] for k in kernel.arg_names if k not in constants}
    return Variant(
        name, kernel, kept, constants, meta["num_warps"], meta.get("num_stages", 3),
        divisible=tuple(d for d in divisible if d in kept), **options,
    )  # fmt: skip


def variants() -> Iterator[Variant]:
    """Every kernel as production launches it: bfloat16 products, and rows of float32 logits."""
    yield from _tile_variants(tile_statistics, FORWARD)
    yield from _tile_variants(tile_gradients, BACKWARD)
    shared = _TILE_SIGNATURE | dict.fromkeys(("statistics", "label", "logits"), "*fp32")
    shared |= dict.fromkeys(("n_parts", "end", "stride"), "i32")
    yield _variant("label_logits", label_logits, shared, LABEL, ("width",))
    for entropy in (True, False):
        name, meta = " entropy" if entropy else "", {"ENTROPY": entropy}
        yield _variant("merge_tiles" + name, merge_tiles, shared, MERGE | meta, ())
        yield _variant(f"row_statistics fp32{name}", row_statistics, shared, ROW | meta, ("stride",))
        for out in ("bf16", "fp32"):
            signature, strides = shared | {"out": f"*{out}"}, ("stride", "out_stride")
            yield _variant(
                f"row_gradients fp32 to {out}{name}", row_gradients, signature, ROW | meta, strides
            )
