"""Behavior cloning with the learner that reinforcement learning uses, in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gigpo_mega import hub
from gigpo_mega.coldstart.demonstrations import ClonedStep, cloned_steps, demonstrate
from gigpo_mega.coldstart.scratch import write_scratch
from gigpo_mega.config import Config
from gigpo_mega.config.load import save_config
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner, Report
from gigpo_mega.learner.transfer import on_device
from gigpo_mega.preflight import check_devices, check_folder, check_tokenizer
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.run.output import claim
from gigpo_mega.run.ranks import agree, leader_only, on_leader
from gigpo_mega.shape import ModelShape
from gigpo_mega.stack import Stack
from gigpo_mega.telemetry.loggers import open_loggers
from gigpo_mega.telemetry.metrics import MetricsWriter, print_summary
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.types import Bool, Float32, Int64
from gigpo_mega.weights import live

_LOG_EVERY = 50


def clone(cfg: Config, stack: Stack) -> Path:
    """Clone the environment's expert; returns the policy's Hugging Face directory. All ranks call this.

    With `model.path` it continues that policy; without, it starts the one that `cfg.scratch` describes.
    Raises UserError if the output holds a run or is in use.
    """
    if cfg.lora.rank and cfg.model.path is None:
        raise UserError(f"lora.rank {cfg.lora.rank} needs a policy to adapt; set model.path")
    check_devices(cfg, stack)
    check_folder("output", cfg.output)
    model = cfg.model.path and hub.directory(cfg.model.path)
    if model is not None:
        check_tokenizer(cfg, model, ModelShape.from_hf(model))
    layout = layouts.initialize(cfg.parallel, cfg.seed)
    agree(layout, stack, model)
    torch.manual_seed(cfg.seed)  # a policy from scratch draws its weights
    with leader_only(layout, claim, cfg.output) or nullcontext():
        on_leader(layout, save_config, cfg, cfg.output / "config.yaml")
        demonstrations = on_leader(layout, demonstrate, cfg)
        source = model or cfg.output / "scratch"
        if model is None:
            on_leader(layout, write_scratch, cfg, demonstrations, source)
            check_tokenizer(cfg, source, ModelShape.from_hf(source))
        shape = ModelShape.from_hf(source)
        steps = cloned_steps(cfg, demonstrations, Tokenizer(source))
        learner = Learner(cfg, shape, layout, empty=model is not None)
        if model is not None:
            live.load(learner.policy, shape, layout, source)
            learner.refresh()
        _fit(cfg, learner, steps, layout)
        policy = cfg.output / "policy"
        live.save(learner.policy, shape, layout, source, policy)
    return policy


def cloning_loss(target: tuple[Float32, Bool], logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Report]:
    """The weighted negative log-likelihood of a micro-batch's tokens, all [n]; a `Loss`.

    `target` is the weight of each token, and whether it is an action's.
    """
    weights, action = (on_device(column.astype(np.float32), logprob.device) for column in target)
    sums = {"loss/action": -(action * logprob.detach()).sum(), "loss/action_tokens": action.sum()}
    return -(weights * logprob).sum(), Report(sums)


def _target(steps: Sequence[ClonedStep]) -> tuple[Float32, Bool]:
    return np.concatenate([s.weight for s in steps]), np.concatenate([s.action for s in steps])


def _fit(cfg: Config, learner: Learner, steps: Sequence[ClonedStep], layout: Layout) -> None:
    """`coldstart.updates` updates on shuffled steps; the loss goes to metrics.jsonl now and then."""
    size, updates = cfg.coldstart.rows_per_update, cfg.coldstart.updates
    rng = np.random.default_rng(cfg.seed)
    writer = MetricsWriter(cfg.output, open_loggers(cfg)) if layout.leader else None
    queue: Int64 = np.zeros(0, dtype=np.int64)
    with stage("clone", updates, "updates", quiet=not layout.leader) as bar:
        for update in range(updates):
            while len(queue) < size:
                queue = np.concatenate([queue, rng.permutation(len(steps))])
            chosen, queue = queue[:size], queue[size:]
            batches = learner.pack(steps, chosen)
            targets = [(batch, _target([steps[row] for row in batch.rows])) for batch in batches]
            stats = learner.update(targets, cloning_loss, progress=update / max(updates - 1, 1))
            if writer and (update % _LOG_EVERY == 0 or update == updates - 1):
                metrics = stats.losses | stats.means
                # Per action token, whatever the tokens of prompts weigh.
                metrics["loss/action"] /= metrics.pop("loss/action_tokens")
                metrics |= {"optimizer/grad_norm": stats.grad_norm, "optimizer/lr": stats.lr}
                writer.write(update, metrics)
                print_summary(f"{update}", metrics)
            bar.advance()
    learner.synchronize()
    if writer:
        writer.close()
