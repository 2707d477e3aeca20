"""Log-probabilities of the vocabulary head: our kernels, torch, and other libraries.

The upstream gradient is 1 for every log-prob; entropies have none, so that the summed cross entropy of
another library computes the same. Our kernels compute entropies forward and no gradient of them: what
training does with objective.entropy_coef 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kernels.bench.case import Case, Missing, Outputs, Setting, needs_cuda, needs_time
from kernels.logprob import linear_logprob

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(hidden [T, H], weight [V, H], target [T]) -> (log-prob [T] or its sum, entropy [T])."""

# Qwen2.5-7B and -1.5B; on a CPU a shape of the tests.
CUDA_SHAPES = ((8192, 3584, 152064), (32768, 3584, 152064), (8192, 1536, 151936))
CPU_SHAPES = ((256, 256, 4096),)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Random tensors of one shape."""

    hidden: Tensor  # [T, H], bfloat16 on a GPU, else float32
    weight: Tensor  # [V, H], of the same type
    target: Tensor  # [T], int64

    @classmethod
    def random(cls, tokens: int, width: int, vocab: int, device: torch.device) -> Inputs:
        """Draw them with seed 0."""
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        hidden = torch.randn(tokens, width, generator=generator, device=device).to(dtype)
        weight = (torch.randn(vocab, width, generator=generator, device=device) / width**0.5).to(dtype)
        target = torch.randint(0, vocab, (tokens,), generator=generator, device=device)
        return cls(hidden.requires_grad_(), weight.requires_grad_(), target)

    def exact(self, backward: bool, rows: int = 512) -> Outputs:
        """Outputs in float64, computed `rows` tokens at a time."""
        weight = self.weight.detach().double()
        found: dict[str, list[Tensor]] = {"logprob": [], "entropy": [], "d_hidden": []}
        d_weight = torch.zeros_like(weight)
        for hidden, target in zip(self.hidden.detach().split(rows), self.target.split(rows), strict=True):
            hidden = hidden.double()
            logp = (hidden @ weight.T).log_softmax(1)
            found["logprob"].append(logp.gather(1, target[:, None])[:, 0])
            slope = logp.exp()
            found["entropy"].append(-(slope * logp).sum(1))
            if backward:
                slope = slope.neg_().scatter_add_(1, target[:, None], torch.ones_like(hidden[:, :1]))
                found["d_hidden"].append(slope @ weight)
                d_weight.addmm_(slope.T, hidden)
        values = {name: torch.cat(parts) for name, parts in found.items() if parts}
        return values | {"d_weight": d_weight} if backward else values

    def run(self, make: Callable[[Setting], Head], setting: Setting, backward: bool) -> Outputs:
        """Outputs of one call of a head, with both gradients if `backward`; raises Missing as `make` does."""
        head = make(setting)
        with torch.set_grad_enabled(backward):
            logprob, entropy = head(self.hidden, self.weight, self.target)
        found = {} if logprob.dim() == 0 else {"logprob": logprob.detach()}
        if entropy is not None:
            found["entropy"] = entropy.detach()
        if backward:
            slopes = torch.autograd.grad(logprob.sum(), (self.hidden, self.weight))
            found |= dict(zip(("d_hidden", "d_weight"), slopes, strict=True))
        return found


def logprob(setting: Setting) -> Iterator[Case]:
    """The forward pass alone (old and reference policy), and with the backward pass."""
    shapes = CUDA_SHAPES if setting.cuda else CPU_SHAPES
    for tokens, width, vocab in shapes[:1] if setting.quick else shapes:
        inputs = Inputs.random(tokens, width, vocab, setting.device)
        size, element = 2.0 * tokens * width * vocab, inputs.weight.element_size()
        operands = element * (tokens + vocab) * width
        for backward in (False, True):
            yield Case(
                op="logprob fwd+bwd" if backward else "logprob fwd",
                shape=f"T{tokens}-H{width}-V{vocab}",
                flops=size * (4 if backward else 1),
                moved=operands * (2 if backward else 1),
                floor="4 products: logits are recomputed" if backward else "1 product",
                exact=partial(inputs.exact, backward),
                runs={name: partial(inputs.run, make, setting, backward) for name, make in HEADS.items()},
                notes=dict.fromkeys(("liger FLCE", "apple CCE"), "no entropy"),
            )


def ours(backend: Any, setting: Setting) -> Head:
    """Our kernel with one backend."""
    if backend == "triton":
        needs_cuda(setting)
    return partial(linear_logprob, backend=backend)


def statistics(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once, in float32."""
    logp = functional.linear(hidden, weight).float().log_softmax(1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def torch_chunked(setting: Setting) -> Head:
    """torch with checkpointed blocks of tokens."""
    rows = 1024 if setting.cuda else 64

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(hidden.split(rows), target.split(rows), strict=True)
        parts = [checkpoint(statistics, h, weight, t, use_reentrant=False) for h, t in pairs]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    return head


@cache
def torch_compile(setting: Setting) -> Head:
    """torch.compile of `statistics`."""
    needs_time(setting)
    return torch.compile(statistics)


def liger(setting: Setting) -> Head:
    """Liger's CuTe kernel on sm_90, its torch fallback elsewhere."""
    function = imported("liger_kernel.ops.fused_linear_scaled_cross_entropy",
                         "LigerFusedLinearScaledCrossEntropyFunction")  # fmt: skip

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, entropy = function.apply(hidden, weight, target, return_entropy=True)
        return -loss, entropy

    return head


def liger_flce(setting: Setting) -> Head:
    """Liger's fused linear cross entropy, without entropies."""
    function = imported("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    needs_cuda(setting)
    return lambda hidden, weight, target: (-function(hidden, weight, target, reduction="sum"), None)


def apple(setting: Setting) -> Head:
    """Apple's cut cross entropy without gradient filtering, which would make it inexact."""
    function = imported("cut_cross_entropy", "linear_cross_entropy")
    needs_cuda(setting)

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return -function(hidden, weight, target, reduction="none", filter_eps=None), None

    return head


def verl(setting: Setting) -> Head:
    """verl's fused linear cross entropy."""
    function = imported("verl.utils.kernel.linear_cross_entropy", "LinearCrossEntropy")
    needs_cuda(setting)
    names = list(inspect.signature(function.forward).parameters)[4:]  # their order changed between versions
    values: dict[str, Any] = {"reduction": "none", "temperature": 1.0, "dist_process_group": None}
    return lambda *tensors: function.apply(*tensors, *(values[name] for name in names))


def imported(module: str, name: str) -> Any:
    """An attribute of a module of another library; raises Missing if that is not installed."""
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except ImportError as missing:
        raise Missing(f"not installed: {missing}") from None


HEADS: dict[str, Callable[[Setting], Head]] = {
    "ours (triton)": partial(ours, "triton"),
    "ours (chunked)": partial(ours, "chunked"),
    "ours (reference)": partial(ours, "reference"),
    "torch": lambda setting: statistics,
    "torch chunked": torch_chunked,
    "torch.compile": torch_compile,
    "liger": liger,
    "liger FLCE": liger_flce,
    "apple CCE": apple,
    "verl": verl,
}
