"""One optimizer update with and without a [T, V] tensor: head, policy loss, backward pass and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernels.bench.case import Case, Outputs, Setting
from kernels.logprob import linear_logprob
from kernels.policy_loss import policy_loss


def train_step(setting: Setting) -> Iterator[Case]:
    """An update of a model whose body is one MLP layer, so that most of the work is in the head."""
    tokens, width, vocab = (16384, 3584, 152064) if setting.cuda else (1024, 64, 8192)
    if setting.quick and setting.cuda:
        tokens = 4096
    dtype = torch.bfloat16 if setting.cuda else torch.float32
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    parts = nn.ModuleDict({"embedding": nn.Embedding(vocab, width), "body": body})
    model = parts.to(setting.device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, target = torch.randint(0, vocab, (2, tokens), device=setting.device)
    size = 2.0 * tokens * width * vocab
    element = 2 if setting.cuda else 4
    yield Case(
        op="train step",
        shape=f"T{tokens}-H{width}-V{vocab}",
        flops=4 * size + 12.0 * tokens * width**2,
        moved=4.0 * element * vocab * width,
        floor="4 products of the head, 6 of the body",
        exact=dict[str, Tensor],
        runs={
            "ours (fused)": partial(_update, model, optimizer, inputs, target, "auto"),
            "logits": partial(_update, model, optimizer, inputs, target, "reference"),
        },
    )


def _update(model: Any, optimizer: Any, inputs: Tensor, target: Tensor, backend: Any) -> Outputs:
    hidden = model["body"](model["embedding"](inputs))
    logprob, entropy = linear_logprob(hidden, model["embedding"].weight, target, backend=backend)
    advantage = torch.linspace(-1, 1, len(target), device=target.device)
    loss, _ = policy_loss(
        logprob, logprob.detach(), advantage, torch.full_like(advantage, 1 / len(target)),
        clip_low=0.2, clip_high=0.2, entropy=entropy, entropy_coef=1e-3,
    )  # fmt: skip
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {}
