"""The algorithm: advantage, loss, optimizer, and how rows become updates."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, config=STRICT)
class AdvantageConfig:
    """The estimator."""

    estimator: str = "gigpo"
    """Advantage estimator: gigpo, grpo, rloo, reinforce_plus_plus_baseline, hgpo, g2po, graphgpo, gagpo, or
    your own as `module:function` (docs/estimators.md). A field without effect on it is refused."""
    preset: Literal["paper", "reference"] = "paper"
    """`paper`: the equations (statistics over trajectories); `reference`: the official code (over rows)."""
    backend: Literal["auto", "numpy", "triton"] = "auto"
    """Where anchor groups and advantages are computed: on the host in numpy, on the GPU in Triton, or on the
    GPU if there is one and an iteration has enough rows to gain from it (auto); values are the same. hgpo,
    g2po, graphgpo and gagpo run on the host only."""
    gamma: float = 0.95
    """Discount of the step returns (Eq. 5). graphgpo discounts by the distance to the goal instead."""
    omega: float = 1.0
    """Weight of the step-level advantage (Eq. 8)."""
    episode_weight: float = 1.0
    """Weight of the episode-level advantage; 1 in Eq. 8."""
    normalization: Literal["mean_std", "mean"] = "mean_std"
    """F_norm of Eq. 3 and 7: the standard deviation, or 1."""
    epsilon: float = 1e-6
    """Added to the standard deviation."""
    invalid_penalty: float = 0.1
    """Subtracted from the reward of a step whose action was invalid. While most groups of a new environment
    fail, prefer normalization mean: mean_std blows the penalty up to the size of a success."""
    similarity: float | None = None
    """Group anchor states whose text similarity is at least this, instead of equal ones."""
    history_length: int = 2
    """hgpo: earlier states that must agree too in its finest group; the coarser ones ask for fewer."""
    history_alpha: float = 1.0
    """hgpo: a group of steps that agree in k states weighs k^alpha (reference: (k + 1)^alpha)."""
    gae_lambda: float = 0.8
    """gagpo: lambda of the generalized advantage; 0 takes the temporal difference alone, 1 the return."""
    distance: Literal["absolute", "relative"] = "absolute"
    """graphgpo: a step is worth more the closer it ends to the goal, or the more it comes closer."""
    goal_reward: float = 10.0
    """graphgpo: the reward of a success, which the distance to the goal discounts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(0 < self.gamma <= 1, f"advantage.gamma must be in (0, 1], got {self.gamma}")
        at_least(0, "advantage", self, "omega", "episode_weight", "invalid_penalty")
        at_least(0, "advantage", self, "history_length", "history_alpha")
        require(0 <= self.gae_lambda <= 1, f"advantage.gae_lambda must be in [0, 1], got {self.gae_lambda}")
        for name in ("epsilon", "goal_reward"):
            require(getattr(self, name) > 0, f"advantage.{name} must be > 0, got {getattr(self, name)}")
        require(
            self.similarity is None or 0 < self.similarity <= 1,
            f"advantage.similarity must be in (0, 1], got {self.similarity}",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """The policy loss (Eq. 9)."""

    surrogate: Literal["ppo", "cispo"] = "ppo"
    """What is made of the clipped ratio: the pessimistic surrogate (ppo), or a weight of the log-probability,
    which keeps every token's gradient (cispo, MiniMax-M1)."""
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low; 1 does not clip it."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = 3.0
    """Bound of ppo's loss for negative advantages (dual clip); null turns it off."""
    kl_coef: float = 0.01
    """Weight of the KL divergence to the reference policy; 0 needs no reference policy."""
    kl_estimator: Literal["k1", "abs", "k2", "k3"] = "k3"
    """A sampled token's KL: -d, |d|, d^2 / 2 or exp(d) - d - 1 of d = log(reference / policy); k1 gives no
    gradient on average."""
    entropy_coef: float = 0.001
    """Weight of the entropy bonus."""
    old_logprob: Literal["learner", "engine"] = "learner"
    """Denominator of the ratio: scored by the learner before the update, or as the engine sampled it."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio that is clipped: each token's own, or its response's geometric mean (GSPO)."""
    rollout_is: Literal["token", "sequence"] | None = None
    """Truncated importance sampling: weigh the surrogate by the probability of each token, or of its whole
    response, as the learner scores it before the update, over that as the engine sampled it; null: do not."""
    rollout_is_low: float = 0.0
    """Weights of rollout_is are raised to this."""
    rollout_is_high: float = 2.0
    """Weights of rollout_is are lowered to this."""
    rollout_mask_low: float | None = None
    """Responses are not learned from if the geometric mean of their tokens' probabilities, as the learner
    scores them before the update, over those as the engine sampled them is below this; null: all are."""
    rollout_mask_high: float | None = None
    """Responses are not learned from if it is above this; null: all are."""
    aggregation: Aggregation = "token-mean"
    """How token losses become one: the mean over all tokens, or over all responses the mean of their sums, of
    their means (GRPO, GSPO), or of their sums divided by rollout.max_response_tokens (Dr. GRPO)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(0 < self.clip_low <= 1, f"objective.clip_low must be in (0, 1], got {self.clip_low}")
        require(self.clip_high > 0, f"objective.clip_high must be > 0, got {self.clip_high}")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            f"objective.dual_clip must be > 1, got {self.dual_clip}",
        )
        at_least(0, "objective", self, "kl_coef", "entropy_coef", "rollout_is_low")
        require(
            0 < self.rollout_is_high >= self.rollout_is_low,
            f"objective.rollout_is_high must be > 0 and >= objective.rollout_is_low {self.rollout_is_low}, "
            f"got {self.rollout_is_high}",
        )
        for switch, on, names in (
            ("surrogate ppo", self.surrogate == "ppo", ("dual_clip",)),
            ("rollout_is", self.rollout_is is not None, ("rollout_is_low", "rollout_is_high")),
        ):
            for name in names:
                value, default = getattr(self, name), getattr(ObjectiveConfig, name)
                require(
                    on or value in (None, default),
                    f"objective.{name} {value} has no effect without objective.{switch}; leave it at "
                    f"{default}",
                )
        low, high = self.rollout_mask_low, self.rollout_mask_high
        require(
            (0 if low is None else low) < (math.inf if high is None else high) and (low is None or low >= 0),
            f"objective.rollout_mask_low must be >= 0 and below rollout_mask_high {high}, got {low}",
        )
        for name in ("rollout_is", "rollout_mask_low", "rollout_mask_high"):
            value = getattr(self, name)
            require(
                value is None or self.old_logprob == "learner",
                f"objective.{name} {value} compares the learner's log-probabilities with the engine's, but "
                f"objective.old_logprob is {self.old_logprob}; set it to learner",
            )
        return self

    @property
    def compares_sampling(self) -> bool:
        """Whether the loss depends on the log-probabilities as sampled, apart from the ratio."""
        return (self.rollout_is, self.rollout_mask_low, self.rollout_mask_high) != (None, None, None)


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """Adam with warm-up and decay."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup_updates: int = 0
    """Optimizer updates of linear warm-up, the first of which has lr / (warmup_updates + 1)."""
    decay_updates: int | None = None
    """Optimizer updates, those of the warm-up among them, after which a decaying schedule has reached min_lr;
    null: it reaches min_lr in the last iteration of the run. It begins at lr where the warm-up ends, as
    megatron's."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Adam's first moment decay."""
    beta2: float = 0.999
    """Adam's second moment decay."""
    epsilon: float = 1e-8
    """Adam's epsilon."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What happens after an update whose loss or gradient is not finite, which never changes the policy: the
    run stops, or goes on with the next update (skip)."""
    max_skips: int = 3
    """Updates in a row that may be skipped before the run stops after all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("lr", "epsilon", "grad_clip"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name} must be > 0, got {value}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} must be in [0, 1), got {value}")
        at_least(0, "optimizer", self, "min_lr", "warmup_updates", "weight_decay", "max_skips")
        require(self.min_lr <= self.lr, f"optimizer.min_lr {self.min_lr} exceeds optimizer.lr {self.lr}")
        require(
            self.decay_updates is None or self.decay_updates > self.warmup_updates,
            f"optimizer.decay_updates {self.decay_updates} must exceed "
            f"optimizer.warmup_updates {self.warmup_updates}",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """How rows become updates."""

    rows_per_update: int | None = 256
    """Rows per optimizer update; null uses all rows of an iteration in one."""
    microbatch_tokens: int = 16384
    """Tokens in a micro-batch at most, with padding or alignment; over all context-parallel ranks."""
    packed: bool = True
    """Sequences side by side without padding, or each in a row as wide as the longest."""
    epochs: int = 1
    """Passes over the rows of an iteration."""
    shuffle: bool = False
    """Shuffle the rows before they are cut into updates."""
    skip_zero: bool = False
    """Do not compute rows whose advantage is 0 if neither KL nor entropy needs them. Updates and their
    denominators stay the same; metrics that are token means, and the gap, are over computed tokens alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.rows_per_update is None or self.rows_per_update >= 1,
            f"batch.rows_per_update must be >= 1 or null, got {self.rows_per_update}",
        )
        at_least(1, "batch", self, "epochs", "microbatch_tokens")
        return self
