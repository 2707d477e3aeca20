"""The whole policy update once more, written from the paper's equations alone, in float64.

Nothing here calls gigpo_mega: advantages are loops over episodes (Eq. 3 and 5-8), log-probabilities come from
transformers, one row at a time, and the steps from torch's AdamW. Of gigpo_mega it reads the episodes and the
settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from gigpo_mega.config import AdvantageConfig, Config
from gigpo_mega.types import Group, Step


@dataclass(frozen=True, slots=True)
class Row:
    """One model call and what the policy loss reads of it."""

    step: Step
    advantage: float
    old: Tensor  # [R] log-probabilities in the denominator of the ratio
    reference: Tensor  # [R] log-probabilities of the reference policy


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer update measured; `tokens` and what follows it are counts of response tokens."""

    loss: float
    surrogate: float  # the loss without KL and entropy
    grad_norm: float  # before clipping
    lr: float
    kl: float  # mean over tokens that are not masked
    entropy: float  # likewise
    rollout_is: float  # likewise, of the truncated importance weight
    gap: float  # mean over all tokens of |log-probability - as sampled|
    tokens: int
    masked: int  # of responses that are not learned from
    clipped_low: int
    clipped_high: int
    dual_clipped: int


def advantages(groups: Sequence[Group], cfg: AdvantageConfig) -> list[tuple[float, float, float]]:
    """(A, A_E, A_S) of every step, episode after episode; a reward includes an invalid action's penalty."""
    found: list[tuple[float, float, float]] = []
    for group in groups:
        rewards = [
            [step.reward - (0.0 if step.valid else cfg.invalid_penalty) for step in episode.steps]
            for episode in group.trajectories
        ]
        returns = [  # Eq. 5
            [sum(cfg.gamma**k * reward for k, reward in enumerate(of_one[t:])) for t in range(len(of_one))]
            for of_one in rewards
        ]
        for i, episode in enumerate(group.trajectories):
            at_episode = _relative(sum(rewards[i]), [sum(of_one) for of_one in rewards], cfg)  # Eq. 3
            for t, step in enumerate(episode.steps):
                same_state = [  # Eq. 6
                    returns[j][u]
                    for j, other in enumerate(group.trajectories)
                    for u, one in enumerate(other.steps)
                    if one.anchor == step.anchor
                ]
                at_step = _relative(returns[i][t], same_state, cfg)  # Eq. 7
                found.append((at_episode + cfg.omega * at_step, at_episode, at_step))  # Eq. 8
    return found


def _relative(value: float, group: Sequence[float], cfg: AdvantageConfig) -> float:
    mean = sum(group) / len(group)
    if cfg.normalization == "mean":
        return value - mean
    variance = sum((other - mean) ** 2 for other in group) / max(len(group) - 1, 1)
    return (value - mean) / (math.sqrt(variance) + cfg.epsilon)


class IndependentLearner:
    """A policy in float64 that starts from the Hugging Face directory `start`."""

    def __init__(self, cfg: Config, start: Path, reference: Path) -> None:
        self._cfg = cfg
        self.policy: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
        self._reference: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float64)
        parameters, o = list(self.policy.parameters()), cfg.optimizer
        # Biases and the weights of norms do not decay, as in megatron.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": o.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.epsilon)
        self._updates = 0

    def iterate(self, groups: Sequence[Group], iteration: int) -> list[Update]:
        """All updates of one iteration."""
        cfg = self._cfg
        steps = [step for group in groups for episode in group.trajectories for step in episode.steps]
        rows: list[Row] = []
        for step, (total, _, _) in zip(steps, advantages(groups, cfg.advantage), strict=True):
            with torch.no_grad():
                reference, _ = self._scored(self._reference, step)
                old, _ = self._scored(self.policy, step)
            if cfg.objective.old_logprob == "engine":
                old = torch.from_numpy(step.logprobs).double()
            rows.append(Row(step, total, old, reference))
        rng = np.random.default_rng([cfg.seed, iteration])
        made: list[Update] = []
        for _ in range(cfg.batch.epochs):
            order = rng.permutation(len(rows)) if cfg.batch.shuffle else np.arange(len(rows))
            for piece in np.array_split(order, round(len(rows) / (cfg.batch.rows_per_update or len(rows)))):
                made.append(self._update([rows[index] for index in piece], iteration))
        return made

    def _scored(self, model: Any, step: Step) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every response token of `step`, [R] each."""
        ids = torch.tensor([*step.prompt_ids.tolist(), *step.response_ids.tolist()])
        logits = model(ids[None]).logits[0, len(step.prompt_ids) - 1 : -1]
        every = F.log_softmax(logits / self._cfg.rollout.temperature, dim=-1)
        entropy = -(every.exp() * every).sum(-1)
        return every.gather(1, ids[len(step.prompt_ids) :, None])[:, 0], entropy

    def _update(self, rows: Sequence[Row], iteration: int) -> Update:
        """One step of AdamW on the loss of `rows` (Eq. 9)."""
        o = self._cfg.objective
        surrogate, penalty = torch.zeros(2, dtype=torch.float64)
        kl = entropy = gap = importance = 0.0
        tokens = masked = low = high = dual = 0
        for row in rows:
            logprob, uncertainty = self._scored(self.policy, row.step)
            ratio = (logprob - row.old).exp()
            difference = row.reference - logprob
            k3 = difference.exp() - difference - 1.0
            weight = self._weight(rows, row)
            tokens += len(logprob)
            gap += (logprob - torch.from_numpy(row.step.logprobs)).abs().sum().item()
            if self._is_masked(row):
                masked += len(logprob)
                continue
            rho = self._importance(row)
            importance += rho.sum().item()
            for r, p, factor in zip(ratio, logprob, rho, strict=True):
                surrogate = surrogate + weight * factor * self._surrogate(r, p, row.advantage)
            penalty = penalty + weight * (o.kl_coef * k3 - o.entropy_coef * uncertainty).sum()
            kl, entropy = kl + k3.sum().item(), entropy + uncertainty.sum().item()
            always = o.surrogate == "cispo"
            high += int((ratio > 1 + o.clip_high).sum()) if row.advantage > 0 or always else 0
            low += int((ratio < 1 - o.clip_low).sum()) if row.advantage < 0 or always else 0
            dual += int((ratio > (o.dual_clip or math.inf)).sum()) if row.advantage < 0 else 0
        loss = surrogate + penalty
        self._adam.zero_grad()
        loss.backward()
        lr = self._learning_rate(iteration)
        grad_norm = self._step(lr)
        learned = max(tokens - masked, 1)
        means = kl / learned, entropy / learned, importance / learned, gap / tokens
        return Update(loss.item(), surrogate.item(), grad_norm, lr, *means, tokens, masked, low, high, dual)

    def _is_masked(self, row: Row) -> bool:
        """Whether the geometric mean of the tokens' old over sampled probability is out of bounds."""
        o, sampled = self._cfg.objective, torch.from_numpy(row.step.logprobs).double()
        ratio = (row.old.exp() / sampled.exp()).prod().item() ** (1 / len(sampled))
        return not (o.rollout_mask_low or 0.0) <= ratio <= (o.rollout_mask_high or math.inf)

    def _importance(self, row: Row) -> Tensor:
        """Of every token the old probability over that it was sampled with, within bounds, [R]."""
        o = self._cfg.objective
        if o.rollout_is is None:
            return torch.ones_like(row.old)
        ratio = row.old.exp() / torch.from_numpy(row.step.logprobs).double().exp()
        if o.rollout_is == "sequence":
            ratio = ratio.prod().expand(len(ratio))
        return ratio.clamp(o.rollout_is_low, o.rollout_is_high)

    def _surrogate(self, ratio: Tensor, logprob: Tensor, advantage: float) -> Tensor:
        o = self._cfg.objective
        if o.surrogate == "cispo":
            return -ratio.detach().clamp(1 - o.clip_low, 1 + o.clip_high) * advantage * logprob
        loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - o.clip_low, 1 + o.clip_high) * advantage)
        if advantage < 0 and o.dual_clip is not None:
            loss = torch.minimum(loss, torch.tensor(-advantage * o.dual_clip, dtype=torch.float64))
        return loss

    def _weight(self, rows: Sequence[Row], row: Row) -> float:
        """What a token of `row` counts in the loss of the update's `rows`."""
        match self._cfg.objective.aggregation:
            case "token-mean":
                return 1.0 / sum(len(other.old) for other in rows)
            case "seq-mean-token-sum":
                return 1.0 / len(rows)
            case "seq-mean-token-mean":
                return 1.0 / (len(row.old) * len(rows))
            case "seq-mean-token-sum-norm":
                return 1.0 / (self._cfg.rollout.max_response_tokens * len(rows))

    def _learning_rate(self, iteration: int) -> float:
        """Linear warm-up of the updates, then the decay of the updates that are left.

        Without a number, the run's updates are as many as those until now make it.
        """
        o = self._cfg.optimizer
        if self._updates < o.warmup_updates:
            return o.lr * (self._updates + 1) / (o.warmup_updates + 1)
        end: float = math.inf
        if o.decay_updates is not None:
            end = o.decay_updates
        elif iteration:
            end = self._updates * (self._cfg.iterations - 1) / iteration
        progress = min(1.0, (self._updates - o.warmup_updates) / (end - o.warmup_updates))
        left = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return o.min_lr + (o.lr - o.min_lr) * left[o.schedule]

    def _step(self, lr: float) -> float:
        """Clip the gradient and step; returns the gradient's norm before."""
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, self._cfg.optimizer.grad_clip / (norm + 1e-6)))  # megatron's 1e-6
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self._updates += 1
        return norm
