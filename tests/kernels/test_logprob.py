"""kernels.logprob against float64: values and gradients of every backend, at sizes that fit no tile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.logprob import LogprobBackend, blocks, chunked, linear_logprob, triton
from kernels.logprob import rows as torch_rows
from kernels.logprob.statistics import Rows, finish, merge, no_statistics, slopes
from kernels.sizes import TRITON_ELEMENTS
from tests.kernels import exact

BACKENDS = ["reference", "chunked", pytest.param("triton", marks=pytest.mark.interpret)]
every = pytest.mark.parametrize("backend", BACKENDS)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(backend: str, device: torch.device, **sizes: Any) -> Inputs:
    """Inputs on `device`; on CUDA the Triton backend multiplies bfloat16."""
    hidden, weight, *rest = (x.to(device) for x in exact.inputs(**sizes))
    if backend == "triton" and device.type == "cuda":
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    return hidden, weight, rest[0], rest[1], rest[2]


def ours(
    hidden: Tensor, weight: Tensor, target: Tensor, d_logprob: Tensor, d_entropy: Tensor, **options: Any
) -> exact.Result:
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    logprob, entropy = linear_logprob(hidden, weight, target, **options)
    assert logprob.dtype == entropy.dtype == torch.float32
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logprob.detach(), entropy.detach(), hidden.grad, weight.grad


def agree(found: exact.Result, expected: exact.Result, atol: float = 5e-6) -> None:
    """To `atol` and rounding of the largest; gradients of 16-bit matrices to their own rounding."""
    for name, one, other in zip(("logprob", "entropy", "d_hidden", "d_weight"), found, expected, strict=True):
        assert one.isfinite().all(), name
        rounding = 2e-6 if one.dtype is torch.float32 else 1e-2
        if found[2].dtype is torch.float32 or one.dtype is not torch.float32:
            assert (one - other).norm() <= (atol + rounding * other.norm()), name
        assert (one - other).abs().max() <= atol + rounding * other.abs().max(), name


TEMPERATURES = [1.0, 0.4, torch.linspace(0.2, 3.0, 7)]


@every
@pytest.mark.parametrize("vocab_size", [None, 29, 23], ids=["whole", "exact", "padded"])
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["1", "0.4", "per-token"])
def test_values_and_gradients(
    backend: LogprobBackend, temperature: float | Tensor, vocab_size: int | None, device: torch.device
) -> None:
    hidden, weight, target, *upstream = inputs(backend, device)
    real = vocab_size or len(weight)
    target = target.clamp(max=real - 1)
    weight[real:] *= 50  # padding would win every softmax
    if isinstance(temperature, Tensor):
        temperature = temperature.to(device)
    case: Any = {"temperature": temperature, "vocab_size": vocab_size}
    found = ours(hidden, weight, target, *upstream, **case, backend=backend)
    agree(found, exact.linear_logprob(hidden, weight, target, *upstream, **case))
    assert not found[3][real:].any()


SHAPES = [(37, 72, 133), (1, 40, 257), (5, 136, 1003), (18, 17, 70)]  # descriptors cannot take width 17


@every
@pytest.mark.parametrize("shape", SHAPES, ids=["T{}-H{}-V{}".format(*shape) for shape in SHAPES])
def test_sizes_that_fit_no_tile(
    backend: LogprobBackend, shape: tuple[int, int, int], device: torch.device
) -> None:
    tokens, width, vocab = shape
    case = inputs(backend, device, tokens=tokens, width=width, vocab=vocab)
    agree(ours(*case, backend=backend), exact.linear_logprob(*case), atol=2e-5)


@every
def test_vocabulary_of_qwen(
    backend: LogprobBackend, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = triton.Tile(16, 16384, 16, 2, 2, 4, tma=True)
    monkeypatch.setattr(triton, "INTERPRETED", wide)  # the interpreter is slow per tile
    case = inputs(backend, device, tokens=3, width=16, vocab=151_936)
    agree(ours(*case, backend=backend), exact.linear_logprob(*case), atol=2e-5)


@every
@pytest.mark.parametrize("which", ["logprob", "entropy"])
def test_each_output_has_its_own_gradient(backend: LogprobBackend, which: str, device: torch.device) -> None:
    """The other one is not even used: its gradient is None, not zeros."""
    hidden, weight, target, d_logprob, d_entropy = inputs(backend, device, seed=1)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy = linear_logprob(h, w, target, backend=backend)
    if which == "logprob":
        d_entropy = d_entropy * 0
        (d_logprob * logprob).sum().backward()
    else:
        d_logprob = d_logprob * 0
        (d_entropy * entropy).sum().backward()
    assert h.grad is not None
    assert w.grad is not None
    assert h.grad.abs().max() > 0.01
    expected = exact.linear_logprob(hidden, weight, target, d_logprob, d_entropy)
    agree((logprob.detach(), entropy.detach(), h.grad, w.grad), expected)


@every
def test_only_what_needs_a_gradient_gets_one(backend: LogprobBackend, device: torch.device) -> None:
    hidden, weight, target, *upstream = inputs(backend, device)
    expected = exact.linear_logprob(hidden, weight, target, *upstream)
    for i in (0, 1):
        matrices = [m.clone().requires_grad_(i == j) for j, m in enumerate((hidden, weight))]
        logprob, entropy = linear_logprob(matrices[0], matrices[1], target, backend=backend)
        (upstream[0] * logprob + upstream[1] * entropy).sum().backward()
        found, other = matrices[i].grad, matrices[1 - i].grad
        assert other is None
        assert found is not None
        rounding = 2e-6 if found.dtype is torch.float32 else 1e-2
        assert (found - expected[2 + i]).norm() <= rounding * expected[2 + i].norm() + 1e-6
    with torch.no_grad():
        result = linear_logprob(hidden, weight, target, backend=backend)
    assert not result[0].requires_grad
    assert (result[0] - expected[0]).abs().max() < 1e-5


@every
def test_one_huge_logit(backend: LogprobBackend, device: torch.device) -> None:
    """exp of it overflows; its token is certain, all others cost its size, and certainty has no entropy."""
    hidden, weight, target, *upstream = inputs(backend, device)
    hidden[:, 0], weight[:, 0] = 1.0, 0.0
    weight[5, 0] = 1e4
    target[1:3] = 5
    found = ours(hidden, weight, target, *upstream, backend=backend)
    expected = exact.linear_logprob(hidden, weight, target, *upstream)
    assert found[0][1:3].abs().max() <= 1e-3
    assert found[0].max() <= 0.0
    assert found[0][0] == pytest.approx(-1e4, rel=1e-2)
    assert found[1].abs().max() == 0.0
    agree(found, expected, atol=5e-3)  # a float32 logit near 1e4 is good to 1e-3


@every
def test_no_tokens_give_empty_values_and_a_zero_weight_gradient(
    backend: LogprobBackend, device: torch.device
) -> None:
    hidden, weight, target, *upstream = inputs(backend, device)
    found = ours(hidden[:0], weight, target[:0], upstream[0][:0], upstream[1][:0], backend=backend)
    assert found[0].shape == found[1].shape == (0,)
    assert not found[3].any()


@every
def test_one_token_in_a_vocabulary_of_one(backend: LogprobBackend, device: torch.device) -> None:
    hidden, weight = torch.ones(1, 16, device=device), torch.ones(1, 16, device=device)
    if backend == "triton" and device.type == "cuda":
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    one = torch.ones(1, device=device)
    found = ours(hidden, weight, torch.zeros(1, dtype=torch.int64, device=device), one, one, backend=backend)
    assert [float(x.abs().max()) for x in found] == [0.0] * 4


@every
def test_targets_outside_the_shard(backend: LogprobBackend, device: torch.device) -> None:
    """A shard alone gives them probability 0, and their logit's share of the gradient is dropped."""
    hidden, weight, _, d_logprob, _ = inputs(backend, device)
    target = torch.tensor([40, 45, 68, 39, 69, 0, 200], device=device)  # the shard holds [40, 69)
    options: Any = {"vocab_start": 40, "backend": backend}
    with torch.no_grad():
        logprob, entropy = linear_logprob(hidden, weight, target, **options)
    assert logprob[3:].tolist() == [-math.inf] * 4
    expected = exact.linear_logprob(hidden[:3], weight, target[:3] - 40, d_logprob[:3], d_logprob[:3])
    assert (logprob[:3] - expected[0]).abs().max() < 1e-5
    assert entropy.isfinite().all()
    found = ours(hidden, weight, target, d_logprob, d_logprob * 0, **options)
    log_probability = (hidden.double() @ weight.double().T).log_softmax(1)
    d_logits = -d_logprob[:, None] * log_probability.exp()
    d_logits[range(3), target[:3] - 40] += d_logprob[:3]
    expected_weight = d_logits.T @ hidden.double()
    tolerance = 5e-6 if hidden.dtype is torch.float32 else 1e-2 * float(expected_weight.abs().max())
    assert (found[3] - expected_weight).abs().max() < tolerance


@every
def test_without_entropy(backend: LogprobBackend, device: torch.device) -> None:
    hidden, weight, target, d_logprob, d_entropy = inputs(backend, device)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy = linear_logprob(h, w, target, entropy=False, backend=backend)
    assert entropy.shape == (0,)  # nothing to be mistaken for an entropy
    (d_logprob * logprob).sum().backward()
    assert h.grad is not None
    assert w.grad is not None
    expected = exact.linear_logprob(hidden, weight, target, d_logprob, d_entropy * 0)
    agree((logprob.detach(), expected[1].float(), h.grad, w.grad), expected)


@every
def test_bfloat16(backend: LogprobBackend, device: torch.device) -> None:
    """Products are summed in float32: values are as exact as of float32 matrices."""
    hidden, weight, target, *upstream = inputs(backend, device, tokens=20, width=64, vocab=100)
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    found = ours(hidden, weight, target, *upstream, backend=backend)
    expected = exact.linear_logprob(hidden, weight, target, *upstream)
    assert found[2].dtype == found[3].dtype == torch.bfloat16
    for value, truth in zip(found[:2], expected[:2], strict=True):
        assert (value - truth).abs().max() < 1e-5
    for gradient, truth in zip(found[2:], expected[2:], strict=True):
        assert (gradient - truth).norm() < 0.004 * truth.norm()


@every
def test_same_bits_every_time(backend: LogprobBackend, device: torch.device) -> None:
    case = inputs(backend, device, tokens=20, width=24, vocab=100)
    one, other = (ours(*case, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("elements", [64, 256, 1 << 14])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_any_blocks_give_the_same(
    backend: LogprobBackend, elements: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 to 30 blocks of tokens x vocabulary, the last of each direction cut short."""
    monkeypatch.setattr(blocks, "ALIGN", 32)
    for module, name in ((chunked, "CPU_ELEMENTS"), (chunked, "CUDA_ELEMENTS"), (triton, "TRITON_ELEMENTS")):
        monkeypatch.setattr(module, name, elements)
    case = inputs(backend, device, tokens=37, width=16, vocab=133)
    agree(ours(*case, backend=backend), exact.linear_logprob(*case), atol=2e-5)


def test_blocks_cover_all_and_keep_their_size() -> None:
    for tokens in (0, 1, 8192, 32_768, 100_000):
        height, width = blocks.block_shape(tokens, TRITON_ELEMENTS)
        covered = list(blocks.cut(tokens, height))
        assert sum(s.stop - s.start for s in covered) == tokens
        assert height * width <= TRITON_ELEMENTS
        whole, narrow = blocks.block_shape(tokens, TRITON_ELEMENTS, whole=True)
        assert whole >= tokens
        assert narrow >= blocks.ALIGN
    assert blocks.block_shape(32_768, TRITON_ELEMENTS) == (8192, 12_288)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 2**16), st.floats(0.1, 100.0))
def test_merging_parts_gives_the_whole(parts: int, seed: int, scale: float) -> None:
    """However the columns are split into parts, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(4, 23, generator=generator)
    target = torch.randint(0, 23, (4,), generator=generator)
    cuts = sorted(torch.randint(0, 24, (parts - 1,), generator=generator).tolist())
    pieces = no_statistics(parts, logits)
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 23], strict=True)):
        rows = Rows.of(target, 1.0, start, stop - start, None, entropy=True)
        if stop > start:
            pieces[i] = torch_rows.statistics(logits[:, start:stop].clone(), rows)
    logprob, entropy, _ = finish(merge(pieces))
    expected = logits.double().log_softmax(1)
    assert (logprob - expected[range(4), target]).abs().max() < 1e-6 * (1 + scale)
    assert (entropy + (expected.exp() * expected).sum(1)).abs().max() < 1e-5


@pytest.mark.interpret
@pytest.mark.parametrize("entropy", [True, False], ids=["entropy", "no-entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_triton_reads_rows_as_torch_does(
    dtype: torch.dtype, entropy: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chunked` takes the Triton rows on CUDA: 41 real columns of 45, in blocks that do not divide them."""
    from kernels.logprob import row_kernels

    monkeypatch.setitem(row_kernels.META, "BLOCK", 16)
    logits = 3 * torch.randn(9, 45, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.tensor([0, 40, 5, 5, 41, -1, 7, 39, 20], device=device)  # two of them elsewhere
    split = Rows.of(target, 0.7, 0, 45, 41, entropy)
    expected = torch_rows.statistics(logits[:, :41].clone(), split)
    found = row_kernels.statistics(logits, split)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).to(device)
    _, h, log_sum = finish(expected)
    backward, table = slopes(split, log_sum, h, upstream[0], upstream[1] if entropy else None)
    gradient = row_kernels.gradients(logits, backward, table, dtype)
    truth = torch_rows.gradients(logits[:, :41].clone(), backward, table, dtype)
    assert gradient.dtype is dtype
    rounding = 2e-6 if dtype is torch.float32 else 4e-3
    assert (gradient[:, :41] - truth).abs().max() <= 1e-6 + rounding * truth.abs().max()
    assert not gradient[:, 41:].any()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_weight_gradient_goes_to_main_grad(backend: LogprobBackend, device: torch.device) -> None:
    """Two micro-batches add up there; a tied embedding's own gradient takes autograd's way."""
    hidden, weight, target, *upstream = inputs(backend, device)
    head = torch.nn.Parameter(weight.clone())
    main_grad = torch.full(head.shape, 0.5, device=device)
    head.main_grad = main_grad  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        logprob, entropy = linear_logprob(
            hidden + torch.nn.functional.embedding(target, head) * 0, head, target, backend=backend
        )
        embedded = torch.nn.functional.embedding(target[:2], head)
        ((upstream[0] * logprob + upstream[1] * entropy).sum() + embedded.sum()).backward()
    expected = exact.linear_logprob(hidden, weight, target, *upstream)[3]
    found = main_grad - 0.5
    assert found.dtype is torch.float32
    rounding = 4e-6 if hidden.dtype is torch.float32 else 1e-2
    assert (found - 2 * expected).norm() <= rounding * (2 * expected).norm()
    lookups = torch.zeros_like(weight).index_add_(0, target[:2], torch.ones_like(weight[:2]))
    assert head.grad is not None
    assert torch.equal(head.grad, 2 * lookups)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, target, *_ = exact.inputs()
    wrong: list[tuple[str, tuple[Tensor, ...], dict[str, Any]]] = [
        (r"weight must be torch.float32 \[V, 16\]", (hidden, weight[:, :8], target), {}),
        ("got torch.float64", (hidden, weight.double(), target), {}),
        (r"target must be int64 \[7\], got torch.int32", (hidden, weight, target.int()), {}),
        (r"target must be int64 \[7\]", (hidden, weight, target[:3]), {}),
        ("hidden must be a float matrix", (hidden[0], weight, target[:1]), {}),
        (r"temperature must be a number or \[7\]", (hidden, weight, target), {"temperature": torch.ones(3)}),
        ("temperature must be > 0, got 0", (hidden, weight, target), {"temperature": 0.0}),
        ("vocab_size must be >= 1, got 0", (hidden, weight, target), {"vocab_size": 0}),
        ("'cuda' is none of auto, triton, chunked, reference", (hidden, weight, target), {"backend": "cuda"}),
    ]
    for message, arguments, options in wrong:
        with pytest.raises(ValueError, match=message):
            linear_logprob(*arguments, **options)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="backend triton runs on CUDA, not on cpu; use chunked or auto"):
        linear_logprob(hidden, weight, target, backend="triton")
