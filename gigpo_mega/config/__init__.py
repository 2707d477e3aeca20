"""Run configuration as frozen dataclasses; `gigpo_mega.config.load` reads YAML and flags into them.

Each field's docstring is its `--help` text. Checks that need two fields name both values, and run before any
process group, engine or GPU is touched.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.algorithm import (
    AdvantageConfig,
    Aggregation,
    BatchConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from gigpo_mega.config.checks import STRICT, require
from gigpo_mega.config.coldstart import ColdstartConfig
from gigpo_mega.config.policy import Linear, LoraConfig, ModelConfig, ScratchConfig
from gigpo_mega.config.prompt import PromptConfig
from gigpo_mega.config.rollout import (
    EngineConfig,
    EnvironmentConfig,
    EvaluationConfig,
    RolloutConfig,
    WeightsConfig,
)
from gigpo_mega.config.runtime import CheckpointConfig, KernelConfig, ParallelConfig
from gigpo_mega.config.telemetry import TelemetryConfig

__all__ = [
    "AdvantageConfig",
    "Aggregation",
    "BatchConfig",
    "CheckpointConfig",
    "ColdstartConfig",
    "Config",
    "EngineConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "KernelConfig",
    "Linear",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PromptConfig",
    "RolloutConfig",
    "ScratchConfig",
    "TelemetryConfig",
    "WeightsConfig",
]


@dataclass(frozen=True, config=STRICT)
class Config:
    """One runnable experiment."""

    iterations: int = 150
    """Iterations, each of them a rollout and an update."""
    output: Path = Path("runs/run")
    """Folder that receives metrics, checkpoints, groups and the report."""
    seed: int = 0
    """Seed of task order, initialization and shuffling."""
    resume: bool | Literal["auto"] = False
    """Continue the run in `output` from its newest good checkpoint and groups; `auto` starts one if there is
    none, as a batch system's script needs it."""
    stack: Literal["auto", "cpu", "cuda"] = "auto"
    """What learner and engine compute with; `auto` is CUDA if both can really run on it, and says why not."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)

    @property
    def lends_memory(self) -> bool:
        """Whether a server on a learner's GPU gives it the memory of its KV cache between rollouts."""
        engine = self.engine
        shares = not engine.urls and engine.placement == "colocated"
        return shares and engine.release_memory is not False and not self.rollout.max_staleness

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.iterations >= 0, f"iterations must be >= 0, got {self.iterations}")
        require(0 <= self.seed < 2**32, f"seed must be in 0..{2**32 - 1}, got {self.seed}")
        # The official code of some keeps the score of a lone episode; everything else compares episodes.
        own = ":" in self.advantage.estimator
        lone = self.advantage.preset == "reference" and self.advantage.estimator not in ("rloo", "hgpo")
        require(
            own or lone or self.rollout.group_size >= 2,
            f"advantage.estimator {self.advantage.estimator} compares the episodes of a task: it needs "
            f"rollout.group_size >= 2, got {self.rollout.group_size}",
        )
        agent, held = self.rollout.agent, self.environment
        require(
            agent is None or held.workers == 1,
            f"environment.workers {held.workers} hold environments, and rollout.agent {agent} plays in the "
            "run's process; set it to 1, and raise rollout.workers for more processes",
        )
        require(
            agent is None or held.invalid == "format",
            f"environment.invalid {held.invalid} is about environments, and rollout.agent {agent} has none; "
            "set it to format",
        )
        require(
            self.lora.rank is None or self.model.layers != "te",
            f"lora.rank {self.lora.rank} needs our own layers, but model.layers is te; set it to local",
        )
        stale = self.rollout.max_staleness
        require(
            not stale or self.objective.old_logprob == "engine" or self.objective.rollout_is is not None,
            f"rollout.max_staleness {stale} learns from tokens that older weights sampled: set "
            "objective.old_logprob engine, so that the ratio is to what they gave, or objective.rollout_is",
        )
        require(
            self.engine.placement == "colocated" or self.weights.transport != "tensor",
            "engine.placement separate: weights.transport tensor reaches engines beside the learner alone; "
            "set it to broadcast or disk",
        )
        require(
            not stale or self.engine.release_memory is not True,
            f"engine.release_memory true stops the engines while the learner learns, but "
            f"rollout.max_staleness {stale} lets them go on; set one of them to false or 0",
        )
        return self
