"""Log-probabilities of the vocabulary head: ours, torch's and the peers'.

The upstream gradient is 1 for every log-prob and 0 for every entropy, so that a peer's summed cross entropy
computes the same; ours computes entropies all the same, as training does.
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

from kernels.logprob import linear_logprob
from tools.kernel_bench.registry import Case, Missing, Outputs, Setting, needs_cuda, operation

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(hidden [T, H], weight [V, H], target [T]) -> (log-prob [T] or its sum, entropy [T])."""

# Qwen2.5-7B and -1.5B; the CPU's numbers are those of the tests.
CUDA_SHAPES = ((8192, 3584, 152064), (32768, 3584, 152064), (8192, 1536, 151936))
CPU_SHAPES = ((256, 256, 4096),)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of one shape."""

    hidden: Tensor
    weight: Tensor
    target: Tensor

    @classmethod
    def random(cls, tokens: int, width: int, vocab: int, device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        hidden = torch.randn(tokens, width, generator=generator, device=device).to(dtype)
        weight = (torch.randn(vocab, width, generator=generator, device=device) / width**0.5).to(dtype)
        target = torch.randint(0, vocab, (tokens,), generator=generator, device=device)
        return cls(hidden.requires_grad_(), weight.requires_grad_(), target)

    def exact(self, backward: bool, rows: int = 512) -> Outputs:
        """In float64, `rows` tokens at a time."""
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

    def run(self, head: Head, backward: bool) -> Outputs:
        """One call, with both gradients if `backward`."""
        with torch.set_grad_enabled(backward):
            logprob, entropy = head(self.hidden, self.weight, self.target)
        found = {} if logprob.dim() == 0 else {"logprob": logprob.detach()}
        if entropy is not None:
            found["entropy"] = entropy.detach()
        if backward:
            slopes = torch.autograd.grad(logprob.sum(), (self.hidden, self.weight))
            found |= dict(zip(("d_hidden", "d_weight"), slopes, strict=True))
        return found


@operation
def logprob(setting: Setting) -> Iterator[Case]:
    """Forward alone (old and reference policy) and with the backward pass."""
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
                runs={name: partial(_run, setting, inputs, name, backward) for name in HEADS},
                notes=dict.fromkeys(("liger FLCE", "apple CCE"), "no entropy"),
            )


def _run(setting: Setting, inputs: Inputs, name: str, backward: bool) -> Outputs:
    return inputs.run(HEADS[name](setting), backward)


def ours(backend: Any, setting: Setting) -> Head:
    if backend == "triton":
        needs_cuda(setting)
    return partial(linear_logprob, backend=backend)


def statistics(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once, in float32."""
    logp = functional.linear(hidden, weight).float().log_softmax(1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def torch_chunked(setting: Setting) -> Head:
    rows = 1024 if setting.cuda else 64

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(hidden.split(rows), target.split(rows), strict=True)
        parts = [checkpoint(statistics, h, weight, t, use_reentrant=False) for h, t in pairs]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    return head


@cache
def torch_compile(setting: Setting) -> Head:
    if setting.quick and not setting.cuda:
        raise Missing("compiles for a minute: not with --quick on a CPU")
    return torch.compile(statistics)


def liger(setting: Setting) -> Head:
    """The CuTe kernel on sm_90, Liger's torch fallback elsewhere."""
    function = _imported("liger_kernel.ops.fused_linear_scaled_cross_entropy",
                         "LigerFusedLinearScaledCrossEntropyFunction")  # fmt: skip

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss, entropy = function.apply(hidden, weight, target, return_entropy=True)
        return -loss, entropy

    return head


def liger_flce(setting: Setting) -> Head:
    function = _imported("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    needs_cuda(setting)
    return lambda hidden, weight, target: (-function(hidden, weight, target, reduction="sum"), None)


def apple(setting: Setting) -> Head:
    """Exact: no gradient is filtered away."""
    function = _imported("cut_cross_entropy", "linear_cross_entropy")
    needs_cuda(setting)

    def head(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return -function(hidden, weight, target, reduction="none", filter_eps=None), None

    return head


def verl(setting: Setting) -> Head:
    function = _imported("verl.utils.kernel.linear_cross_entropy", "LinearCrossEntropy")
    needs_cuda(setting)
    names = list(inspect.signature(function.forward).parameters)[4:]  # their order changed between versions
    values: dict[str, Any] = {"reduction": "none", "temperature": 1.0, "dist_process_group": None}
    return lambda *tensors: function.apply(*tensors, *(values[name] for name in names))


def _imported(module: str, name: str) -> Any:
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
