"""Vectors recorded from the official implementation (`golden/README.md`): one JSON file, one test.

GIGPO_GOLDEN_DIR names another folder of the same format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from gigpo_mega.algorithms.objective import Aggregation, aggregation, policy_loss
from gigpo_mega.config import ObjectiveConfig
from kernels.policy_loss.reference import Divergence, kl_divergence
from tests.golden_advantages import ADVANTAGES, Case, close, single

FOLDER = Path(os.environ.get("GIGPO_GOLDEN_DIR", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.json"))
ESTIMATORS: dict[str, Divergence] = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}


def tensor(values: ArrayLike, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(single(values), requires_grad=requires_grad)


def weights(mode: Aggregation, mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Weights of the response tokens of `mask` [B, T], and what their sum is divided by."""
    weight, count = aggregation(mode, mask.sum(1).long().numpy(), mask.shape[1])
    # The reference sums over rows here; later versions of verl take their mean.
    return torch.from_numpy(weight), 1 if mode == "seq-mean-token-sum-norm" else count


def objective_config(inputs: Case, **options: Any) -> ObjectiveConfig:
    return ObjectiveConfig(
        **options,
        clip_low=inputs["cliprange_low"],
        clip_high=inputs["cliprange_high"],
        dual_clip=inputs.get("clip_ratio_c"),
        kl_coef=inputs.get("kl_loss_coef", 0.0),
        entropy_coef=inputs.get("entropy_coeff", 0.0),
    )


def ppo_loss(case: Case) -> None:
    for mode, expected in case["outputs"].items():
        surrogate_loss(case["inputs"], mode, objective_config(case["inputs"]), expected)


def gspo_loss(case: Case) -> None:
    """The reference aggregates GSPO by seq-mean-token-mean whatever the mode says, and has no dual clip."""
    inputs = {name: value for name, value in case["inputs"].items() if name != "clip_ratio_c"}
    for expected in case["outputs"].values():
        surrogate_loss(inputs, "seq-mean-token-mean", objective_config(inputs, ratio="sequence"), expected)


def surrogate_loss(inputs: Case, mode: Aggregation, cfg: ObjectiveConfig, expected: Case) -> None:
    mask = tensor(inputs["response_mask"])
    response, tokens = mask > 0, mask.sum()
    weight, count = weights(mode, mask)
    logprob = tensor(inputs["log_prob"], requires_grad=True)
    old, advantage = (tensor(inputs[name])[response] for name in ("old_log_prob", "advantages"))
    lengths = mask.sum(1).long()
    loss, metrics = policy_loss(logprob[response], old, advantage, weight, cfg, lengths=lengths)
    (loss / count).backward()
    close((loss / count).detach(), expected["pg_loss"])
    close(metrics["clipped_tokens"] / tokens, expected["pg_clipfrac"])
    close(metrics["dual_clipped_tokens"] / tokens, expected["pg_clipfrac_lower"])
    close(metrics["approx_kl_sum"] / tokens, expected["ppo_kl"])
    assert logprob.grad is not None
    close(logprob.grad, expected["grad_log_prob"])


def head(logits: torch.Tensor, labels: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of `labels` and entropies, [B, T] each."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(np.asarray(labels))[..., None])[..., 0]
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


def kl_and_entropy(case: Case) -> None:
    inputs, expected = case["inputs"], case["outputs"]
    mask, ref = tensor(inputs["response_mask"]), tensor(inputs["ref_log_prob"])
    response = mask > 0
    logprobs, entropy = head(tensor(inputs["logits"]), inputs["labels"])
    close(logprobs, expected["logprobs"])
    close(entropy, expected["token_entropy"])
    for kind, values in expected["kl"].items():
        close(kl_divergence(tensor(inputs["log_prob"]), ref, ESTIMATORS[kind]), values)
    for mode, values in expected["kl_loss"].items():
        weight, count = weights(mode, mask)
        logprob = tensor(inputs["log_prob"], requires_grad=True)
        loss = (kl_divergence(logprob, ref, "k3")[response] * weight).sum() / count
        loss.backward()
        close(loss.detach(), values["loss"])
        assert logprob.grad is not None
        close(logprob.grad, values["grad_log_prob"])
        close((entropy[response] * weight).sum() / count, expected["entropy_loss"][mode])


def actor_loss(case: Case) -> None:
    inputs, expected = case["inputs"], case["outputs"]
    mask = tensor(inputs["response_mask"])
    response, tokens = mask > 0, mask.sum()
    weight, count = weights(inputs["loss_agg_mode"], mask)
    logits = tensor(inputs["logits"], requires_grad=True)
    logprob, entropy = (values[response] for values in head(logits, inputs["labels"]))
    old, ref, advantage = (
        tensor(inputs[name])[response] for name in ("old_log_prob", "ref_log_prob", "advantages")
    )
    loss, metrics = policy_loss(logprob, old, advantage, weight, objective_config(inputs), ref, entropy)
    (loss / count).backward()
    close((loss / count).detach(), expected["loss"])
    close(metrics["surrogate_sum"] / count, expected["pg_loss"])
    close(metrics["clipped_tokens"] / tokens, expected["pg_clipfrac"])
    close(metrics["dual_clipped_tokens"] / tokens, expected["pg_clipfrac_lower"])
    close(metrics["approx_kl_sum"] / tokens, expected["ppo_kl"])
    close(metrics["reference_kl_sum"] / tokens, expected["kl_loss"])  # its mode is token-mean
    close(metrics["entropy_sum"] / tokens, expected["entropy"])
    assert logits.grad is not None
    close(logits.grad, expected["grad_logits"])


KINDS: dict[str, Callable[[Case], None]] = {
    **ADVANTAGES,
    "policy_loss": ppo_loss,
    "policy_loss_gspo": gspo_loss,
    "kl_entropy": kl_and_entropy,
    "actor_loss": actor_loss,
}


def test_golden_folder_has_vectors() -> None:
    assert FILES, f"no *.json in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = json.loads(path.read_text())
    assert case["kind"] in KINDS, f"{path.name}: unknown kind {case['kind']}"
    KINDS[case["kind"]](case)
