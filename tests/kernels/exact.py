"""What kernels are measured against: log-probs in float64, advantages in rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor, Tensor, Tensor]
Group = tuple[Fraction, list[Fraction]]  # a value, and the members it is compared with


def linear_logprob(
    hidden: Tensor, weight: Tensor, target: Tensor, d_logprob: Tensor, d_entropy: Tensor,
    *, temperature: float | Tensor = 1.0, vocab_size: int | None = None,
) -> Result:  # fmt: skip
    """(log-prob [T], entropy [T], gradient of hidden, gradient of weight), all float64.

    The gradients are those of (d_logprob * log-prob + d_entropy * entropy).sum().
    """
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.T
    logits = logits / (temperature.double()[:, None] if isinstance(temperature, Tensor) else temperature)
    log_probability = logits[:, :vocab_size].log_softmax(1)
    logprob = log_probability.gather(1, target[:, None])[:, 0]
    entropy = -(log_probability.exp() * log_probability).sum(1)
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logprob.detach(), entropy.detach(), hidden.grad, weight.grad


def inputs(
    tokens: int = 7, width: int = 16, vocab: int = 29, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random (hidden, weight, target, d_logprob, d_entropy) in float32; targets reach both ends."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator) * scale
    weight = torch.randn(vocab, width, generator=generator) / width**0.5
    target = torch.randint(0, vocab, (tokens,), generator=generator)
    target[0], target[-1] = 0, vocab - 1
    d_logprob, d_entropy = torch.randn(2, tokens, generator=generator)
    return hidden, weight, target, d_logprob, d_entropy


def policy_loss(
    columns: dict[str, Tensor], *, clip_low: float, clip_high: float, dual_clip: float | None = None,
    kl_coef: float = 0.0, kl_estimator: str = "k3", entropy_coef: float = 0.0, surrogate: str = "ppo",
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """(loss, metrics, gradients of logprob and entropy) in float64, from the definition by cases."""
    shown = columns["weight"] > 0
    c = {name: column.detach().double()[shown].requires_grad_() for name, column in columns.items()}
    weight, advantage = c["weight"], c["advantage"]
    difference = c["logprob"] - c["old_logprob"]
    log_ratio = difference.clamp(-20, 20)
    if "row_log_ratio" in c:
        log_ratio = (c["logprob"] - c["logprob"].detach() + c["row_log_ratio"]).clamp(-20, 10)
    ratio, low, high = log_ratio.exp(), 1 - clip_low, 1 + clip_high
    bound = torch.inf if dual_clip is None else dual_clip
    rising = -advantage * ratio.clamp(max=high)
    falling = -advantage * ratio.clamp(min=low).clamp(max=bound)
    losses = torch.where(advantage >= 0, rising, falling)
    clipped = (advantage > 0) & (ratio > high) | (advantage < 0) & (ratio < low)
    if surrogate == "cispo":
        within = torch.where(ratio > high, high, torch.where(ratio < low, low, ratio)).detach()
        losses, clipped, bound = -advantage * within * c["logprob"], within != ratio, torch.inf
    loss = (weight * losses).sum()
    metrics = {
        "surrogate_sum": loss,
        "clipped_tokens": clipped.sum(),
        "dual_clipped_tokens": ((advantage < 0) & (ratio > bound)).sum(),
        "approx_kl_sum": -difference.sum(),
    }
    if "ref_logprob" in c:
        d = c["ref_logprob"] - c["logprob"]
        kl = {"k1": -d, "abs": d.abs(), "k2": d * d / 2, "k3": (d.exp() - d - 1).clamp(max=10)}[kl_estimator]
        loss = loss + kl_coef * (weight * kl).sum()
        metrics["reference_kl_sum"] = kl.sum()
    if "entropy" in c:
        loss = loss - entropy_coef * (weight * c["entropy"]).sum()
        metrics["entropy_sum"] = c["entropy"].sum()
    slopes: dict[str, Tensor] = {}
    for name in columns.keys() & {"logprob", "entropy"}:
        [slope] = torch.autograd.grad(loss, c[name], retain_graph=True)
        slopes[name] = torch.zeros_like(shown, dtype=torch.float64).masked_scatter(shown, slope)
    return loss.detach(), {name: value.detach() for name, value in metrics.items()}, slopes


def advantages(
    rows: list[tuple[int, int, int, float, float]], gamma: Fraction, penalized: bool, by_row: bool
) -> tuple[list[Group], list[Group]]:
    """Both levels of rows (task, trajectory, state, reward, penalty) in time order, in rational arithmetic.

    Of every row its value, and the values that it is compared with: scores of its task, one a trajectory or
    `by_row`; returns of its task and state. `penalized`: rewards feel the penalty, else the row's values do.
    """
    score: dict[int, Fraction] = {}
    returns: list[Fraction] = []
    following: dict[int, Fraction] = {}
    for _, trajectory, _, reward, penalty in reversed(rows):
        r = Fraction(reward) - (Fraction(penalty) if penalized else 0)
        score[trajectory] = score.get(trajectory, Fraction(0)) + r
        following[trajectory] = r + gamma * following.get(trajectory, Fraction(0))
        returns.insert(0, following[trajectory])
    late = [Fraction(0) if penalized else Fraction(row[4]) for row in rows]
    scores = [score[row[1]] - p for row, p in zip(rows, late, strict=True)]
    returns = [value - p for value, p in zip(returns, late, strict=True)]
    first = [by_row or row[1] not in {r[1] for r in rows[:i]} for i, row in enumerate(rows)]
    tasks: dict[int, list[Fraction]] = {}
    states: dict[tuple[int, int], list[Fraction]] = {}
    for (task, _, state, _, _), s, value, one in zip(rows, scores, returns, first, strict=True):
        tasks.setdefault(task, []).extend([s] if one else [])
        states.setdefault((task, state), []).append(value)
    episode = [(s, tasks[row[0]]) for row, s in zip(rows, scores, strict=True)]
    step = [(value, states[row[0], row[2]]) for row, value in zip(rows, returns, strict=True)]
    return episode, step


def relative(
    group: Group, scale: bool, epsilon: float, ddof: int, leave_one_out: bool, keep_lone: bool
) -> float:
    """A value relative to its group: exact up to the square root."""
    value, members = group
    count = len(members)
    mean = Fraction(0) if keep_lone and count == 1 else sum(members, Fraction(0)) / count
    variance = sum(((x - mean) ** 2 for x in members), Fraction(0)) / max(count - ddof, 1)
    deviation = 1.0 if keep_lone and count == 1 else math.sqrt(variance)
    centered = (value - mean) * (Fraction(count, max(count - 1, 1)) if leave_one_out else 1)
    return float(centered) / (deviation + epsilon) if scale else float(centered)
