"""The learning rate of every optimizer update."""

from __future__ import annotations

import math

from gigpo_mega.config import OptimizerConfig


def learning_rate(cfg: OptimizerConfig, update: int, progress: float) -> float:
    """The learning rate of optimizer update `update`, counted from 0; never 0 in the warm-up.

    Warm-up is linear in updates and reaches `cfg.lr` at update `cfg.warmup_updates`. From there the rate
    decays to `cfg.min_lr` as in megatron's `OptimizerParamScheduler`: at update `cfg.decay_updates` or, if
    that is null, in the last iteration of a run, along `progress`, which goes from 0 in the first to 1 there.
    """
    past = update - cfg.warmup_updates
    if past < 0:
        return cfg.lr * (update + 1) / (cfg.warmup_updates + 1)
    if cfg.decay_updates is not None:
        progress = past / (cfg.decay_updates - cfg.warmup_updates)
    elif cfg.warmup_updates:
        # past / (all - warm-up) of a run whose updates go on as until now: update / progress in all.
        progress *= past / max(past + (1.0 - progress) * cfg.warmup_updates, 1e-9)
    progress = min(progress, 1.0)
    if cfg.schedule == "constant":
        share = 1.0
    elif cfg.schedule == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return cfg.min_lr + share * (cfg.lr - cfg.min_lr)
