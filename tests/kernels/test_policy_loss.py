"""kernels.policy_loss, torch and Triton, against float64: values, metrics and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import policy_loss as op
from kernels.policy_loss import reference, triton
from tests.kernels import exact

Columns = dict[str, Tensor]
Result = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
BLOCK = 32  # small, for the interpreter
BACKENDS = [
    pytest.param(reference.policy_loss, id="reference"),
    pytest.param(partial(triton.policy_loss, block=BLOCK), id="triton", marks=pytest.mark.interpret),
]
both = pytest.mark.parametrize("backend", BACKENDS)
COMPARED = ("clipped_tokens", "dual_clipped_tokens", "approx_kl_sum", "reference_kl_sum")
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
TERMS = {"ref_logprob": {"kl_coef": 0.1}, "entropy": {"entropy_coef": 0.01}, "row_log_ratio": {}}


def columns(tokens: int, device: torch.device, *optional: str, spread: float = 1.0) -> Columns:
    """Random tokens, a quarter of them padding; log-ratios are `spread` wide."""
    generator = torch.Generator().manual_seed(tokens)
    noise = torch.randn(7, tokens, generator=generator)
    found = {
        "logprob": noise[0] * spread - 5,
        "old_logprob": noise[1] * spread - 5,
        "advantage": noise[2],
        "weight": noise[3].abs() * (torch.rand(tokens, generator=generator) > 0.25),
        "ref_logprob": noise[4] * spread - 5,
        "entropy": noise[5].abs(),
        "row_log_ratio": noise[6] * spread,
    }
    return {name: c.to(device) for name, c in found.items() if name not in TERMS or name in optional}


def run(backend: Loss, given: Columns, **options: Any) -> Result:
    slopes = {n: c.detach().clone().requires_grad_() for n, c in given.items() if n in ("logprob", "entropy")}
    loss, metrics = backend(**(given | slopes), **options)
    loss.backward()
    found = {name: column.grad for name, column in slopes.items() if column.grad is not None}
    return loss.detach(), metrics, found


def agree(found: Result, expected: Result, tolerance: float = 2e-6) -> None:
    """To `tolerance` of the largest token's share; counts exactly."""
    for one, other in zip(found, expected, strict=True):
        ours = {"loss": one} if isinstance(one, Tensor) else one
        theirs = {"loss": other} if isinstance(other, Tensor) else other
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            error = (value.cpu().double() - theirs[name].cpu()).abs()
            limit = (
                0.0 if name.endswith("clipped_tokens") else tolerance * (1 + theirs[name].abs().max().item())
            )
            assert error.max() <= limit, (name, error.max().item(), limit)


def check(backend: Loss, given: Columns, tolerance: float = 2e-6, **options: Any) -> Result:
    options = CLIP | options
    found = run(backend, given, **options)
    agree(found, exact.policy_loss({n: c.cpu() for n, c in given.items()}, **options), tolerance)
    return found


SOME = [(), ("entropy",), ("ref_logprob", "entropy"), ("ref_logprob", "row_log_ratio"), tuple(TERMS)]


@both
@pytest.mark.parametrize("optional", SOME, ids="+".join)
def test_values_and_gradients(backend: Loss, optional: tuple[str, ...], device: torch.device) -> None:
    options = {key: value for name in optional for key, value in TERMS[name].items()}
    found = check(backend, columns(70, device, *optional), **options)
    assert 0 < found[1]["clipped_tokens"] < 70
    assert 0 < found[1]["dual_clipped_tokens"] < 70


@both
@pytest.mark.parametrize("optional", SOME, ids="+".join)
def test_cispo(backend: Loss, optional: tuple[str, ...], device: torch.device) -> None:
    """The loss holds log-probs of -5 beside the ratios, so values are larger than of ppo."""
    options = {key: value for name in optional for key, value in TERMS[name].items()}
    found = check(backend, columns(70, device, *optional), surrogate="cispo", **options)
    assert 10 < found[1]["clipped_tokens"] < 60
    assert found[1]["dual_clipped_tokens"] == 0
    assert (found[2]["logprob"] != 0).sum() > 50  # clipped tokens have a gradient too


@both
def test_cispo_without_a_lower_clip(backend: Loss, device: torch.device) -> None:
    found = check(backend, columns(70, device), surrogate="cispo", clip_low=1.0, clip_high=0.3)
    ratio = (columns(70, device)["logprob"] - columns(70, device)["old_logprob"]).exp()
    shown = columns(70, device)["weight"] > 0
    assert found[1]["clipped_tokens"] == (shown & (ratio > 1.3)).sum()


@both
@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_each_kl_estimator(backend: Loss, kind: str, device: torch.device) -> None:
    found = check(backend, columns(33, device, "ref_logprob"), kl_coef=0.5, kl_estimator=kind)
    assert found[1]["reference_kl_sum"].abs() > 0.1


@both
def test_without_dual_clip(backend: Loss, device: torch.device) -> None:
    found = check(backend, columns(40, device), dual_clip=None)
    assert found[1]["dual_clipped_tokens"] == 0


@both
@pytest.mark.parametrize("tokens", [1, 31, 32, 33])
def test_sizes_around_a_block(backend: Loss, tokens: int, device: torch.device) -> None:
    check(backend, columns(tokens, device) | {"weight": torch.ones(tokens, device=device)})


@both
def test_no_tokens_have_no_loss_and_no_metrics(backend: Loss, device: torch.device) -> None:
    loss, metrics, slopes = run(backend, columns(0, device, *TERMS), **CLIP, kl_coef=0.1, entropy_coef=0.1)
    assert loss == 0
    assert [float(value) for value in metrics.values()] == [0.0] * 6
    assert slopes["logprob"].shape == slopes["entropy"].shape == (0,)


@both
def test_equal_policies_give_the_plain_policy_gradient(backend: Loss, device: torch.device) -> None:
    """Every ratio is 1: no clip, no KL."""
    given = columns(70, device, "ref_logprob")
    given |= {"old_logprob": given["logprob"], "ref_logprob": given["logprob"]}
    loss, metrics, slopes = run(backend, given, **CLIP, kl_coef=1.0)
    assert loss.item() == pytest.approx(-(given["weight"] * given["advantage"]).sum().item(), abs=1e-5)
    assert torch.equal(slopes["logprob"], -given["weight"] * given["advantage"])
    assert all(metrics[n] == 0 for n in COMPARED)


@both
@pytest.mark.parametrize("gap", [40.0, -40.0, 200.0, -200.0])
def test_extreme_ratios(backend: Loss, gap: float, device: torch.device) -> None:
    """exp overflows at 88: values are those of the bounds, and gradients 0 rather than 0 * inf."""
    advantage = torch.tensor([1.0, -1.0, 0.0], device=device)
    zero = torch.zeros(3, device=device)
    given = {"logprob": zero + gap, "old_logprob": zero, "advantage": advantage, "weight": zero + 1}
    loss, metrics, slopes = run(backend, given, **CLIP)
    assert loss.item() == pytest.approx(-1.28 + 3.0 if gap > 0 else 0.8, rel=1e-6)
    assert slopes["logprob"].tolist() == [0.0, 0.0, 0.0]
    assert metrics["clipped_tokens"] == 1
    referred, _, slopes = run(backend, given | {"ref_logprob": zero}, **CLIP, kl_coef=1.0)
    assert referred.item() == pytest.approx(loss.item() + 30.0)  # k3 is at most 10
    assert slopes["logprob"].tolist() == [0.0, 0.0, 0.0]


@both
def test_extreme_ratios_of_cispo_weigh_as_its_bounds(backend: Loss, device: torch.device) -> None:
    zero = torch.zeros(2, device=device)
    gap = torch.tensor([200.0, -200.0], device=device)
    given = {"logprob": zero - 2, "old_logprob": zero - 2 - gap, "advantage": zero + 1, "weight": zero + 1}
    loss, metrics, slopes = run(backend, given, **CLIP, surrogate="cispo")
    assert loss.item() == pytest.approx(2 * 1.28 + 2 * 0.8)
    assert slopes["logprob"].tolist() == pytest.approx([-1.28, -0.8])
    assert metrics["clipped_tokens"] == 2


@both
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_may_hold_anything(
    backend: Loss, garbage: float, surrogate: str, device: torch.device
) -> None:
    given = columns(40, device, *TERMS)
    padding = given["weight"] == 0
    dirty = {name: c.masked_fill(padding, garbage) if name != "weight" else c for name, c in given.items()}
    options = CLIP | {"kl_coef": 0.1, "entropy_coef": 0.01, "surrogate": surrogate}
    clean, found = run(backend, given, **options), run(backend, dirty, **options)
    assert found[0] == clean[0]
    assert found[1] == clean[1]
    assert all(torch.equal(found[2][name], clean[2][name]) for name in clean[2])


@both
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
@pytest.mark.parametrize("name", ["logprob", "old_logprob", "advantage", "ref_logprob", "entropy"])
def test_nan_in_a_response_is_seen(backend: Loss, name: str, surrogate: str, device: torch.device) -> None:
    """A clip must not turn a broken token into a bound."""
    given = columns(40, device, "ref_logprob", "entropy")
    given["weight"] = torch.ones(40, device=device)
    given[name] = given[name].index_fill(0, torch.tensor([17], device=device), math.nan)
    loss, _, _ = run(backend, given, **CLIP, kl_coef=0.1, entropy_coef=0.01, surrogate=surrogate)
    assert loss.isnan()


@both
def test_splits_add_up(backend: Loss, device: torch.device) -> None:
    given = columns(100, device, *TERMS)
    options = CLIP | {"kl_coef": 0.1, "entropy_coef": 0.01}
    whole = run(backend, given, **options)
    cuts = (slice(0, 7), slice(7, 8), slice(8, 8), slice(8, 75), slice(75, 100))
    parts = [run(backend, {name: column[cut] for name, column in given.items()}, **options) for cut in cuts]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole[0].item(), rel=1e-5)
    for name, value in whole[1].items():
        assert sum(part[1][name].item() for part in parts) == pytest.approx(value.item(), rel=1e-5)
    for name, slope in whole[2].items():
        assert torch.equal(torch.cat([part[2][name] for part in parts]), slope)


@both
def test_every_run_gives_the_same_bits(backend: Loss, device: torch.device) -> None:
    given = columns(100, device, *TERMS)
    first, second = (run(backend, given, **CLIP, kl_coef=0.1, entropy_coef=0.01) for _ in range(2))
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


@both
def test_upstream_gradient_and_bfloat16(backend: Loss, device: torch.device) -> None:
    given = columns(40, device, "entropy")
    single = run(backend, given, **CLIP, entropy_coef=0.01)[2]
    tripled = run(lambda **o: (3 * backend(**o)[0], {}), given, **CLIP, entropy_coef=0.01)[2]
    for name, slope in single.items():
        assert (tripled[name] - 3 * slope).abs().max() <= 3e-7 * slope.abs().max()
    half = {name: column.bfloat16() for name, column in given.items()}
    slopes = run(backend, half, **CLIP, entropy_coef=0.01)[2]
    assert slopes["logprob"].dtype == slopes["entropy"].dtype == torch.bfloat16


def test_dispatch_and_errors(device: torch.device) -> None:
    given = columns(40, device)
    auto, named = (run(partial(op.policy_loss, backend=name), given, **CLIP)
                   for name in ("auto", "triton" if device.type == "cuda" else "reference"))  # fmt: skip
    assert auto[0] == named[0]
    with pytest.raises(ValueError, match=r"weight must be \[40\] as logprob, got \[39\]"):
        op.policy_loss(**(given | {"weight": given["weight"][1:]}), **CLIP)
    with pytest.raises(ValueError, match=r"logprob must be \[T\], got \[2, 20\]: flatten"):
        op.policy_loss(**{name: column.view(2, 20) for name, column in given.items()}, **CLIP)
    with pytest.raises(ValueError, match=r"kl_coef 0\.1 needs ref_logprob"):
        op.policy_loss(**given, **CLIP, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"entropy_coef 0\.1 needs entropy"):
        op.policy_loss(**given, **CLIP, entropy_coef=0.1)
    with pytest.raises(ValueError, match="kl_estimator must be one of k1, abs, k2, k3, got 'k4'"):
        op.policy_loss(**given, **CLIP, kl_estimator="k4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="surrogate must be one of ppo, cispo, got 'gspo'"):
        op.policy_loss(**given, **CLIP, surrogate="gspo")  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
def test_new_coefficients_and_sizes_compile_nothing(device: torch.device) -> None:
    """Liger-Kernel #1366: a coefficient that is a compile-time constant recompiles at every change."""
    from triton import knobs

    compiled: list[Any] = []
    run(triton.policy_loss, columns(64, device), **CLIP)
    knobs.compilation.listener = lambda **event: compiled.append(event["src"])
    try:
        for tokens, low in ((64, 0.1), (1, 0.3), (7, 1.0), (1600, 0.2)):
            for surrogate in reference.SURROGATES:
                run(triton.policy_loss, columns(tokens, device), clip_low=low, clip_high=1.0,
                    surrogate=surrogate)  # fmt: skip
    finally:
        knobs.compilation.listener = None
    assert compiled == []
