"""The policy loss in plain torch, differentiable by autograd: what the Triton kernel must agree with."""

from __future__ import annotations

from typing import Literal, get_args

Divergence = Literal["k1", "abs", "k2", "k3"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)

# Where exp() overflows, the zero gradient of a clip becomes 0 * inf = NaN. No clip is anywhere near e^20.
MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0
