"""kernels.anchor: keys as computed in Python's integers, no collisions, groups by first appearance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.anchor import digest, group_ids, hash_tokens, reference
from kernels.anchor.digest import DIGEST_SIZE
from kernels.anchor.reference import CODE_FACTORS, Int32, Int64

KEYS = st.lists(st.tuples(st.integers(-2, 3), st.integers(-3, 3), st.integers(0, 2)), max_size=60)
LENGTHS = (0, 1, 2, 7, 0, 33, 100, 5, 0)
MASK = 2**64 - 1


def segments(lengths: Sequence[int], seed: int = 0) -> tuple[Int32, Int64]:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.random.default_rng(seed).integers(0, 152_064, offsets[-1]).astype(np.int32), offsets


def first_appearance(items: Sequence[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(item, len(seen)) for item in items]


def on_triton(task: Int64, keys: Int64, device: torch.device) -> list[int]:
    """Programs of a size for the interpreter."""
    from kernels.anchor import triton

    tensors = (torch.from_numpy(task).to(device), torch.from_numpy(keys).to(device))
    return triton.group_ids(*tensors, block=16).tolist()


def plain_key(tokens: list[int]) -> tuple[int, int]:
    """The definition, in integers without bounds."""
    lanes = []
    padded = [*tokens, 0]
    keys = (reference.WORD_KEYS, reference.PLACE_FACTORS, reference.PLACE_KEYS, reference.LENGTH_FACTORS)
    for word_key, factor, place_key, length_factor in zip(*keys, strict=True):
        total = len(tokens) * length_factor
        for pair in range((len(tokens) + 1) // 2):
            word = padded[2 * pair] | padded[2 * pair + 1] << 32
            product = (word ^ word_key) * (((pair + 1) * factor + place_key) & MASK)
            total += (product ^ product >> 64) & MASK
        x = total & MASK
        for _ in range(2):
            x = (x ^ x >> 32) * reference.FINAL_FACTOR & MASK
        lanes.append(x ^ x >> 32)
    return lanes[0], lanes[1]


def test_keys_are_those_of_the_definition() -> None:
    tokens, offsets = segments(LENGTHS)
    expected = [plain_key(tokens[a:b].tolist()) for a, b in pairwise(offsets)]
    found = hash_tokens(tokens, offsets)
    assert found.dtype == np.int64
    assert [tuple(row) for row in found.view(np.uint64).tolist()] == expected


def test_chunks_of_the_work_change_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, offsets = segments(LENGTHS)
    expected = hash_tokens(tokens, offsets)
    monkeypatch.setattr(reference, "CHUNK", 3)
    assert (hash_tokens(tokens, offsets) == expected).all()


@pytest.mark.interpret
@pytest.mark.parametrize("programs", [1, 4, 37])
def test_triton_gives_the_bits_of_numpy_however_tokens_are_split(programs: int, device: torch.device) -> None:
    from kernels.anchor import triton

    tokens, offsets = segments(LENGTHS)
    tensors = (torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device))
    found = triton.hash_tokens(*tensors, pairs=8, programs=programs, share=1, block=16)
    assert found.tolist() == hash_tokens(tokens, offsets).tolist()


@pytest.mark.interpret
def test_segments_may_begin_and_end_inside_the_tokens(device: torch.device) -> None:
    from kernels.anchor import triton

    tokens, _ = segments([40])
    offsets = np.array([3, 10, 10, 31], dtype=np.int64)
    expected = [list(plain_key(tokens[a:b].tolist())) for a, b in ((3, 10), (10, 10), (10, 31))]
    tensors = (torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device))
    found = triton.hash_tokens(*tensors, pairs=8, programs=3, share=1, block=16)
    assert found.cpu().numpy().view(np.uint64).tolist() == expected
    assert hash_tokens(tokens, offsets).view(np.uint64).tolist() == expected


@pytest.mark.interpret
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=len)
def test_segments_without_tokens_have_the_key_zero(lengths: list[int], device: torch.device) -> None:
    tokens, offsets = segments(lengths)
    tensors = (torch.from_numpy(tokens).to(device), torch.from_numpy(offsets).to(device))
    assert hash_tokens(tokens, offsets).tolist() == [[0, 0] for _ in lengths]
    assert hash_tokens(*tensors).tolist() == [[0, 0] for _ in lengths]


def near_duplicates(count: int) -> Int32:
    """Distinct rows of 24 tokens that differ from one row in one token or two."""
    rng = np.random.default_rng(0)
    rows, row = np.tile(rng.integers(0, 152_064, 24), (count, 1)), np.arange(count)
    rows[row, rng.integers(0, 24, count)] = rng.integers(0, 152_064, count)
    rows[row, rng.integers(0, 24, count)] += rng.integers(0, 3, count)
    return np.unique(rows, axis=0).astype(np.int32)


def test_near_duplicates_collide_in_neither_lane() -> None:
    rows = near_duplicates(100_000)
    keys = hash_tokens(rows.ravel(), 24 * np.arange(len(rows) + 1))
    assert len(rows) > 95_000
    assert [len(np.unique(keys[:, lane])) for lane in (0, 1)] == [len(rows), len(rows)]
    low = len(np.unique(keys[:, 0] & 0xFFFFFFFF))  # n^2 / 2^33 of random 32-bit keys collide: about 1
    assert len(rows) - low < 10


def test_one_bit_of_a_token_flips_half_of_the_key() -> None:
    rows = np.random.default_rng(0).integers(0, 152_064, (4000, 16)).astype(np.int32)
    offsets = 16 * np.arange(4001)
    for place, bit in ((0, 0), (5, 3), (15, 16)):
        other = rows.copy()
        other[:, place] ^= 1 << bit
        flipped = hash_tokens(rows.ravel(), offsets) ^ hash_tokens(other.ravel(), offsets)
        for lane in (0, 1):
            share = np.unpackbits(np.ascontiguousarray(flipped[:, lane]).view(np.uint8)).mean()
            assert share == pytest.approx(0.5, abs=0.005)  # 4 deviations of 256,000 fair coins


def test_order_and_length_of_tokens_matter() -> None:
    rows = [[5], [5, 0], [5, 0, 0], [0, 5], [0], [0, 0], [], [5, 6], [6, 5], [5, 6, 7, 8], [7, 8, 5, 6]]
    offsets = np.cumsum([0, *map(len, rows)])
    keys = hash_tokens(np.array([*chain.from_iterable(rows)], dtype=np.int32), offsets)
    assert len({tuple(key) for key in keys.tolist()}) == len(rows)


def test_wrong_tokens_and_offsets_are_refused() -> None:
    tokens, offsets = segments([2, 3])
    with pytest.raises(ValueError, match=r"tokens must be int32\[5\], got int64\[5\]"):
        hash_tokens(tokens.astype(np.int64), offsets)
    for wrong in ([0, 3, 2], [0, 6], [-1, 5]):
        with pytest.raises(ValueError, match=r"offsets must ascend within 0\.\.5, the number of tokens"):
            hash_tokens(tokens, np.array(wrong))


@given(KEYS)
def test_groups_are_numbered_in_order_of_first_appearance(keys: list[tuple[int, int, int]]) -> None:
    columns = np.array(keys, dtype=np.int64).reshape(-1, 3)
    assert group_ids(columns[:, 0], columns[:, 1:]).tolist() == first_appearance(keys)
    assert group_ids(columns[:, 0], columns[:, 1:].astype(np.uint64)).tolist() == first_appearance(keys)


def test_both_halves_of_the_key_count() -> None:
    top = 2**64 - 1
    keys = np.array([[top, 0], [0, top], [top, 0], [top, 1], [0, top]], dtype=np.uint64)
    assert group_ids(np.zeros(5, dtype=np.int64), keys).tolist() == [0, 1, 0, 2, 1]


def same_code() -> tuple[Int64, Int64]:
    """Rows of three keys and two tasks, of which all in one task share a 64-bit code, in turns."""
    high = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1])
    low = [(5 - int(h) * CODE_FACTORS[1]) & MASK for h in high]
    keys = np.stack([high.astype(np.uint64), np.array(low, dtype=np.uint64)], axis=1).view(np.int64)
    return np.array([0, 0, 0, 0, 0, 0, 7, 0, 7]), keys


@pytest.mark.interpret
def test_the_whole_key_decides_where_codes_are_equal(device: torch.device) -> None:
    task, keys = same_code()
    columns = (task.view(np.uint64), keys[:, 0].view(np.uint64), keys[:, 1].copy().view(np.uint64))
    assert len(np.unique(reference._code(*columns))) == 2
    assert group_ids(task, keys).tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 4]
    assert on_triton(task, keys, device) == [0, 1, 2, 0, 1, 2, 3, 0, 4]


@pytest.mark.interpret
@pytest.mark.parametrize("rows", [1, 50])
def test_triton_numbers_groups_as_numpy_does(rows: int, device: torch.device) -> None:
    rng = np.random.default_rng(rows)
    task, keys = rng.integers(-3, 3, rows), rng.integers(-(2**63), 2**63 - 1, 12).reshape(-1, 2)
    keys = keys[rng.integers(0, 6, rows)]
    expected = first_appearance(list(map(tuple, np.column_stack([task, keys]).tolist())))
    assert group_ids(task, keys).tolist() == on_triton(task, keys, device) == expected
    assert rows == 1 or 10 < len(set(expected)) < 36


def test_no_rows_have_no_groups() -> None:
    none = np.zeros((0, 2), dtype=np.int64)
    assert group_ids(none[:, 0], none).shape == (0,)
    assert on_triton(none[:, 0], none, torch.device("cpu")) == []


def test_wrong_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keys must be int64\[3, 2\], got int64\[2, 2\]"):
        group_ids(np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.int64))


def test_bytes_are_hashed_by_xxh3_or_keyed_blake2b() -> None:
    assert digest(b"").hex() == "99aa06d3014798d86001c324468d497f"  # from the specification of XXH3-128
    assert digest(b"a b", key=b"k") == blake2b(b"a b", digest_size=16, key=b"k").digest()
    assert len(digest(b"")) == len(digest(b"", key=b"k")) == DIGEST_SIZE


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[10_000_000], [500] * 20_000, [0, 1, 99_999] * 50], ids=len)
def test_long_and_many_segments_on_the_gpu_have_the_bits_of_numpy(lengths: list[int]) -> None:
    tokens, offsets = segments(lengths)
    found = hash_tokens(torch.from_numpy(tokens).cuda(), torch.from_numpy(offsets).cuda())
    assert (found.cpu().numpy() == hash_tokens(tokens, offsets)).all()


@pytest.mark.gpu
def test_409600_rows_on_the_gpu_have_the_groups_of_numpy() -> None:
    rng = np.random.default_rng(0)
    task, states = rng.integers(0, 2048, 409_600), rng.integers(-(2**63), 2**63 - 1, (60, 2))
    keys = states[np.minimum(rng.geometric(0.05, 409_600), 59)]
    found = group_ids(torch.from_numpy(task).cuda(), torch.from_numpy(keys).cuda())
    assert (found.cpu().numpy() == group_ids(task, keys)).all()
