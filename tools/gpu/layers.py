"""Transformer Engine's layers against ours: log-probabilities and gradients of the same weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner import stack
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Report
from gigpo_mega.types import Float32
from gigpo_mega.weights import live
from tools.bench.learner import table
from tools.gpu.setup import Setup, Wrong

_MOST = 2.0  # times the error of our layers


@dataclass(frozen=True, slots=True)
class _Found:
    """What one learner made of the rows."""

    logprobs: Float32  # [n] in the order of the rows
    gradients: dict[tuple[str, ...], Tensor]  # by Hugging Face names

    def distance(self, truth: _Found) -> dict[str, float]:
        """|this - truth| / |truth| (2-norms) of log-probabilities and of all gradients."""
        pairs = [(self.gradients[name], gradient) for name, gradient in truth.gradients.items()]
        apart = sum(float((one - other).double().square().sum()) for one, other in pairs)
        whole = sum(float(other.double().square().sum()) for _, other in pairs)
        gap = np.linalg.norm(self.logprobs - truth.logprobs) / np.linalg.norm(truth.logprobs)
        return {"logprobs": float(gap), "gradients": (apart / whole) ** 0.5}


def layers(setup: Setup) -> dict[str, Any]:
    """Distances in bfloat16 from our layers in float32: of ours, and of Transformer Engine's.

    Where that cannot be used the second are ours again, on padded rows. Raises Wrong if they are more than
    twice as far off as ours.
    """
    cfg = setup.config
    exact = replace(cfg, model=replace(cfg.model, dtype="float32", layers="local"))
    ours = replace(cfg, model=replace(cfg.model, dtype="bfloat16", layers="local"))
    theirs, why = _theirs(ours)
    with setup.layout() as layout:
        policy = _write(setup, layout)
        truth = _run(setup, layout, exact, policy)
        expected = _run(setup, layout, ours, policy).distance(truth)
        found = _run(setup, layout, theirs, policy).distance(truth)
    for name, error in found.items():
        if not error <= _MOST * expected[name]:
            raise Wrong(f"{name} of {why} are {error:.2g} off, ours {expected[name]:.2g}")
    return {"ours": expected, "theirs": found, "what": why}


def _theirs(ours: Config) -> tuple[Config, str]:
    te = replace(ours, model=replace(ours.model, layers="te"))
    try:
        stack.stack(te)
    except UserError as error:
        return replace(ours, batch=replace(ours.batch, packed=False)), f"padded rows, as {error}"
    return te, "Transformer Engine"


def _write(setup: Setup, layout: Layout) -> Any:
    learner = setup.learner(layout)
    directory = setup.folder / "policy"
    source = setup.describe(setup.folder / "model")
    live.save(learner.policy, learner.shape, layout, source, directory)
    return directory


def _run(setup: Setup, layout: Layout, cfg: Config, policy: Any) -> _Found:
    learner = setup.learner(layout, cfg)
    live.load(learner.policy, learner.shape, layout, policy)
    learner.refresh()
    rows, _ = table(setup.work, setup.shape.vocab)
    batches = learner.pack(rows.steps, np.arange(len(rows)))
    scores = learner.score(batches)
    by_row: dict[int, Float32] = {}
    for batch, values in zip(batches, scores, strict=True):
        by_row |= zip(batch.rows.tolist(), np.split(values, np.cumsum(batch.lengths)[:-1]), strict=True)
    learner.accumulate([(batch, None) for batch in batches], _likelihood)
    gradients = {
        tuple(place.hf): _gradient(parameter).float().cpu().clone()
        for place, parameter in live.parameters(learner.policy, learner.shape)
    }
    return _Found(np.concatenate([by_row[row] for row in sorted(by_row)]), gradients)


def _likelihood(target: None, logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Report]:
    return -logprob.sum(), Report({})


def _gradient(parameter: Any) -> Tensor:
    """The data-parallel buffer's part of a parameter."""
    gradient = parameter.main_grad
    assert isinstance(gradient, torch.Tensor)
    return gradient
