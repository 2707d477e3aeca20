"""What plays: environment, sampling, engine, held-out panel."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require


@dataclass(frozen=True, config=STRICT)
class EnvironmentConfig:
    """The environment and how its text becomes prompts and actions."""

    name: str = "alfworld"
    """Registered environment name."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the environment, e.g. {max_steps: 50, anchor: observation}."""
    tasks: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of its task source, e.g. {data: path, task_types: [...]}."""
    split: str = "train"
    """Split that training tasks are drawn from."""
    max_steps: int = 50
    """Steps after which an episode ends."""
    workers: int = 1
    """Worker processes that hold the environments."""
    dialogue: str = "chat"
    """How the policy is talked to and answers: `chat` is the paper's message with <think> and <action> tags,
    `compact` plain text for small policies; an environment may bring more."""
    context: Literal["window", "append"] = "window"
    """Every step a fresh message with the last turns (window, the paper's), or one growing conversation."""
    history: int = 2
    """Number of past turns shown in a fresh message."""
    invalid: Literal["format", "admissible"] = "format"
    """What counts as an invalid action: a malformed answer (paper), or one the environment refuses too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "environment", self, "max_steps", "workers")
        at_least(0, "environment", self, "history")
        return self


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """How much is sampled in an iteration, and how."""

    groups: int = 16
    """Tasks per iteration."""
    group_size: int = 8
    """Episodes per task (the paper's N)."""
    concurrency: int = 128
    """Episodes in flight at once."""
    max_prompt_tokens: int = 2048
    """Longest prompt; a longer one loses its oldest tokens."""
    max_response_tokens: int = 512
    """Tokens sampled per step at most."""
    temperature: float = 1.0
    """Sampling temperature of training episodes."""
    top_p: float = 1.0
    """Nucleus mass of training episodes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = ("groups", "group_size", "concurrency", "max_prompt_tokens", "max_response_tokens")
        at_least(1, "rollout", self, *sizes)
        require(self.temperature > 0, f"rollout.temperature must be > 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"rollout.top_p must be in (0, 1], got {self.top_p}")
        return self


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    """The SGLang server."""

    url: str | None = None
    """Use a running server instead of launching one."""
    port: int | None = None
    """Port of the launched server; none picks a free one."""
    startup_timeout: float = 300.0
    """Seconds the server may take to become healthy."""
    request_timeout: float = 600.0
    """Seconds a request may take."""
    max_total_tokens: int | None = None
    """Size of the KV cache in tokens; none lets SGLang decide."""
    memory_fraction: float = 0.3
    """SGLang's --mem-fraction-static."""
    threads: int = 1
    """CPU threads of the server where there is no GPU."""
    max_logprob_gap: float | None = None
    """Mean |log-prob(engine) - log-prob(learner)| of an iteration's first update above which the run stops;
    none: 1e-3 in float32, 0.1 in bfloat16."""
    bucket_mib: int = 256
    """Size of a weight bucket in a push, in MiB."""
    arguments: list[str] = field(default_factory=list[str])
    """Further flags for the server, passed as they are."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """The fixed held-out panel."""

    split: str = "valid_unseen"
    """Split the panel is drawn from."""
    episodes: int = 128
    """Episodes on the panel; tasks repeat where the split has fewer."""
    every: int = 0
    """Iterations between evaluations; 0: only before the first and after the last."""
    temperature: float = 0.4
    """Sampling temperature; 0 is greedy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "evaluation", self, "episodes")
        at_least(0, "evaluation", self, "every", "temperature")
        return self
