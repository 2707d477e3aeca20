"""The same bits again: of a repeated update, and of one after a checkpoint was saved and loaded."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gigpo_mega.config import Config
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.update import update_policy
from tools.bench.learner import table
from tools.gpu.setup import Setup, Wrong


def repeat(setup: Setup) -> dict[str, Any]:
    """Two learners from one seed score and update alike; raises Wrong with the first that differs."""
    torch.use_deterministic_algorithms(True)  # attention's gradient stays random if it may only warn
    cfg, found = setup.config, []
    with setup.layout() as layout:
        for _ in range(2):
            learner = setup.learner(layout)
            rows, _ = table(setup.work, setup.shape.vocab)
            batches = learner.pack(rows.steps, np.arange(len(rows)))
            scores = np.concatenate(learner.score(batches))
            metrics = _updated(setup, learner, cfg, 0)
            found.append((torch.from_numpy(scores), metrics["optimizer/grad_norm"], _weights(learner)))
    (scores, norm, weights), (scores_again, norm_again, weights_again) = found
    if not torch.equal(scores, scores_again):
        raise Wrong(f"log-probs differ by up to {float((scores - scores_again).abs().max()):.2g}")
    if norm != norm_again:
        raise Wrong(f"gradients differ: their norms are {norm!r} and {norm_again!r}")
    _check_equal(weights, weights_again)
    return {"bitwise": True, "deterministic_algorithms": True}


def checkpoint(setup: Setup) -> dict[str, Any]:
    """Seconds and bytes of a checkpoint; raises Wrong if what follows it has other bits than without it."""
    torch.use_deterministic_algorithms(True)
    cfg, folder = setup.config, setup.folder / "checkpoints"
    with setup.layout() as layout:
        learner = setup.learner(layout)
        _updated(setup, learner, cfg, 0)
        checkpoints = Checkpoints(folder, replace(cfg.checkpoint, background=False))
        begin = time.perf_counter()
        checkpoints.save(learner)
        saved = time.perf_counter() - begin
        loaded, seconds = _load(setup, layout, cfg, checkpoints)
        _check_equal(_weights(learner), _weights(loaded))
        for one in (learner, loaded):
            _updated(setup, one, cfg, 1)
        _check_equal(_weights(learner), _weights(loaded))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"save_seconds": saved, "load_seconds": seconds, "bytes": size}


def _load(setup: Setup, layout: Layout, cfg: Config, checkpoints: Checkpoints) -> tuple[Learner, float]:
    """Another learner from the newest checkpoint, and the seconds that loading took."""
    learner = Learner(cfg, setup.shape, layout, empty=True)
    begin = time.perf_counter()
    checkpoints.load(learner, checkpoints.resumable(layout))
    return learner, time.perf_counter() - begin


def _updated(setup: Setup, learner: Learner, cfg: Config, iteration: int) -> dict[str, float]:
    return update_policy(learner, *table(setup.work, setup.shape.vocab), cfg, iteration).metrics


def _weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten().float().cpu() for p in learner.policy.parameters()])


def _check_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    if not torch.equal(one, other):
        differ = one != other
        largest = float((one - other).abs().max())
        raise Wrong(f"{int(differ.sum())} of {len(one)} weights differ, by up to {largest:.2g}")
