"""What plays: environment, sampling, engine, weights on their way to it, held-out panel."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require
from gigpo_mega.errors import UserError

_TENSOR_FLAGS = ("--tp-size", "--tp", "--tensor-parallel-size")


@dataclass(frozen=True, config=STRICT)
class EnvironmentConfig:
    """The environment, its tasks and the processes that hold it."""

    name: str = "alfworld"
    """Registered environment name."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the environment, e.g. {anchor: observation}."""
    tasks: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of its task source, e.g. {data: path, task_types: [...]}."""
    split: str = "train"
    """Split that training tasks are drawn from."""
    max_steps: int = 50
    """Steps after which an episode ends; an environment with a `max_steps` argument gets this one."""
    workers: int = 1
    """Worker processes that hold the environments."""
    step_timeout: float | None = None
    """Seconds that a reset or a step may take; the process that holds the environment is killed after that.
    null: no limit."""
    invalid: Literal["format", "admissible"] = "format"
    """What counts as an invalid action: a malformed answer (paper), or one the environment refuses too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "environment", self, "max_steps", "workers")
        require(
            "max_steps" not in self.options,
            f"environment.options.max_steps {self.options.get('max_steps')} is a second limit: set "
            "environment.max_steps, which the environment gets too",
        )
        require(
            self.step_timeout is None or self.step_timeout > 0,
            f"environment.step_timeout must be > 0 seconds or null, got {self.step_timeout}",
        )
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
    workers: int = 1
    """Processes that play groups, each with its share of `concurrency` and of the `environment.workers`; 1:
    the leader plays by itself, up to some thousand steps a second."""
    pool: Literal["process", "ray"] = "process"
    """Where they are, or with one worker the `environment.workers`: beside the leader, or on the nodes of a
    Ray cluster (RAY_ADDRESS)."""
    agent: str | None = None
    """`module:function` of a program that plays the episodes instead of the environment, through a chat
    endpoint of OpenAI's form, and returns the score (docs/agents.md); tasks are still the environment's, and
    `environment.options` are its keyword arguments."""
    retries: int = 2
    """Times that an episode is played again if its environment or the engine fails; then its group is
    dropped, and another task is played in its place."""
    equal_returns: Literal["keep", "replace"] = "keep"
    """Groups whose episodes all have the same return: learn from them too, or play another task in place of
    each (DAPO's dynamic sampling)."""
    spare_groups: int = 0
    """Groups that may be played in an iteration in place of those of equal returns; after them it learns
    from fewer than `groups`."""
    oversample: int = 0
    """Groups that are played beyond `groups`; those still under way when `groups` are complete are given up,
    which favors tasks with short episodes."""
    max_staleness: int = 0
    """Iterations that rollouts may run ahead of the learner: engines play the next groups while it learns and
    get weights in the middle of episodes. No token is older when it is learned from. 0: they take turns."""
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
        sizes = ("groups", "group_size", "concurrency", "workers")
        lengths = ("max_prompt_tokens", "max_response_tokens")
        at_least(1, "rollout", self, *sizes, *lengths)
        at_least(0, "rollout", self, "retries", "spare_groups", "oversample", "max_staleness")
        require(
            self.agent is None or self.pool == "process" or self.workers > 1,
            f"rollout.pool ray with rollout.workers 1 is for environments, and rollout.agent {self.agent} "
            "plays in the processes of rollout.workers; raise those, or set rollout.pool to process",
        )
        replaces = self.equal_returns == "replace"
        require(
            replaces == bool(self.spare_groups),
            f"rollout.equal_returns {self.equal_returns} with rollout.spare_groups {self.spare_groups}: "
            + ("nothing replaces such groups; set it to how many may" if replaces else "nothing uses them; "
               "set equal_returns to replace"),
        )
        require(self.temperature > 0, f"rollout.temperature must be > 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"rollout.top_p must be in (0, 1], got {self.top_p}")
        return self


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    """The SGLang server."""

    url: str | list[str] | None = None
    """Use a running server, or several, instead of launching any."""
    replicas: int | None = None
    """Servers that are launched on each node, or in all if they are separate; null: as many as a node's GPUs
    hold, one without GPUs."""
    placement: Literal["colocated", "separate"] = "colocated"
    """Where they run: beside the learner, on its GPUs; or all `replicas` of them on whatever nodes of a Ray
    cluster (RAY_ADDRESS) have `tensor` free GPUs, or without GPUs a free CPU."""
    tensor: int = 1
    """Tensor-parallel size of a server: its GPUs, or without GPUs its processes."""
    port: int | None = None
    """Port of a node's first launched server, the next ones follow; null picks free ones."""
    restarts: int = 3
    """Times in a run that each server is launched again if it dies or hangs."""
    stall_timeout: float = 120.0
    """Seconds without any answer after which a busy server must prove that it is alive."""
    startup_timeout: float | None = None
    """Seconds the server may take to become healthy; null: 300 on a CPU, 1200 with CUDA, which compiles and
    captures first."""
    request_timeout: float = 600.0
    """Seconds a request may take."""
    max_total_tokens: int | None = None
    """Size of the KV cache in tokens; null lets SGLang decide."""
    memory_fraction: float = 0.3
    """SGLang's --mem-fraction-static."""
    threads: int = 1
    """CPU threads of the server if there is no GPU."""
    release_memory: bool | Literal["auto"] = "auto"
    """Give the memory of the server's KV cache to the learner while no episode is played; `auto` does if the
    server shares a GPU with the learner."""
    arguments: list[str] = field(default_factory=list[str])
    """Further flags for the server, passed as they are."""

    @property
    def urls(self) -> list[str]:
        """The running servers to use; empty if the run launches its own."""
        named = [self.url] if isinstance(self.url, str) else self.url or []
        return [url.rstrip("/") for url in named]

    def servers(self, gpus: int) -> int:
        """Servers that a node with `gpus` GPUs launches; raises UserError if they do not hold them."""
        fitting = gpus // self.tensor
        wanted = fitting if self.replicas is None else self.replicas
        if not 1 <= wanted <= fitting:
            raise UserError(
                f"engine.replicas {max(wanted, 1)} x engine.tensor {self.tensor} GPUs exceed the {gpus} of a "
                "node; lower one"
            )
        return wanted

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "engine", self, "threads", "tensor")
        at_least(0, "engine", self, "restarts")
        require(
            self.replicas is None or self.replicas >= 1,
            f"engine.replicas must be >= 1 or null, got {self.replicas}",
        )
        require(
            not self.url or self.replicas is None,
            f"engine.replicas {self.replicas} launches servers, but engine.url names running ones; drop one",
        )
        if self.placement == "separate":
            require(
                self.replicas is not None and not self.url and self.port is None,
                "engine.placement separate needs engine.replicas, the number of servers, and no engine.url "
                f"or engine.port; got {self.replicas}, {self.url} and {self.port}",
            )
        sized = [word for word in self.arguments if word.partition("=")[0] in _TENSOR_FLAGS]
        require(not sized, f"engine.arguments {sized} set a server's GPUs; use engine.tensor")
        require(self.url is None or bool(self.urls), "engine.url names no server; set it to null")
        for url in self.urls:
            require(_is_address(url), f"engine.url {url!r} is no address such as http://gpu07:30000")
        for name in ("startup_timeout", "request_timeout", "stall_timeout"):
            value = getattr(self, name)
            require(value is None or value > 0, f"engine.{name} must be > 0 seconds, got {value}")
        last = 65536 - (self.replicas or 1)
        require(
            self.port is None or 1 <= self.port <= last, f"engine.port must be in 1..{last}, got {self.port}"
        )
        require(
            self.max_total_tokens is None or self.max_total_tokens >= 1,
            f"engine.max_total_tokens must be >= 1 or null, got {self.max_total_tokens}",
        )
        require(
            self.url is None or self.release_memory is not True,
            f"engine.release_memory true needs a server that the run launches, but engine.url is {self.url}",
        )
        require(
            0 < self.memory_fraction < 1,
            f"engine.memory_fraction must be in (0, 1), got {self.memory_fraction}",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class WeightsConfig:
    """Weights on their way from the learner to the engine, and the check that they arrived."""

    transport: Literal["tensor", "broadcast", "disk"] = "tensor"
    """How weights travel: `tensor` through shared memory or CUDA IPC, to engines on the learner's host;
    `broadcast` over the network, by gloo or NCCL; `disk` as files in `weights.folder`."""
    bucket_mib: int = 256
    """Size of a bucket of tensors in a push, in MiB; `disk` has none."""
    folder: Path | None = None
    """Folder of `transport: disk`, under the same path on the engines' hosts; null: `weights` in `output`."""
    checksums: bool = True
    """Compare, after every push, SGLang's checksum of every tensor with the learner's; of engines with one
    process on the same kind of device."""
    max_logprob_gap: float | None = None
    """Mean |log-prob(engine) - log-prob(learner)| of an iteration's first update above which the run stops;
    null: 1e-3 in float32, 0.1 in bfloat16 (an estimate: no gap was measured in bfloat16 yet)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "weights", self, "bucket_mib")
        require(
            self.folder is None or self.transport == "disk",
            f"weights.folder {self.folder} is read by weights.transport disk only, and that is "
            f"{self.transport}; drop one",
        )
        require(
            self.max_logprob_gap is None or self.max_logprob_gap > 0,
            f"weights.max_logprob_gap must be > 0 or null, got {self.max_logprob_gap}",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """The fixed held-out panel."""

    split: str = "valid_unseen"
    """Split the panel is drawn from."""
    episodes: int = 128
    """Episodes on the panel; tasks repeat if the split has fewer."""
    rest: bool = False
    """Play the tasks of the split that this panel leaves out, instead: a second panel, unseen in tuning."""
    before: bool = True
    """Play the panel before the first iteration, too."""
    every: int = 0
    """Iterations between evaluations; 0: none but those before the first and after the last."""
    temperature: float = 0.4
    """Sampling temperature; 0 is greedy."""

    def next_after(self, iteration: int, last: int) -> int:
        """The iteration after `iteration` before which the panel is played next, `last` at the latest."""
        return min(last, (iteration // self.every + 1) * self.every) if self.every else last

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "evaluation", self, "episodes")
        at_least(0, "evaluation", self, "every", "temperature")
        return self


def _is_address(url: str) -> bool:
    """Whether it has the parts of a server's URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
