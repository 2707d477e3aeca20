"""Everything a run can be told, as frozen dataclasses; `gigpo_mega.options` reads YAML and flags into them.

Each field's docstring is its `--help` text. Checks that need two fields name both values, and run before any
process group, engine or GPU is touched.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.acting import (
    EngineConfig,
    EnvironmentConfig,
    EvaluationConfig,
    RolloutConfig,
)
from gigpo_mega.config.checks import STRICT, require
from gigpo_mega.config.learning import (
    AdvantageConfig,
    Aggregation,
    BatchConfig,
    ColdstartConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from gigpo_mega.config.running import (
    CheckpointConfig,
    KernelConfig,
    ParallelConfig,
)

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
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RolloutConfig",
]


@dataclass(frozen=True, config=STRICT)
class Config:
    """One runnable experiment."""

    steps: int = 150
    """Iterations."""
    output: Path = Path("runs/run")
    """Folder that receives metrics, checkpoints, groups and the report."""
    seed: int = 0
    """Seed of task order, initialisation and shuffling."""
    resume: bool = False
    """Go on from the newest good checkpoint and groups in `output`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.steps >= 0, f"steps must be >= 0, got {self.steps}")
        require(
            self.advantage.estimator != "rloo" or self.rollout.group_size >= 2,
            f"advantage.estimator rloo needs rollout.group_size >= 2, got {self.rollout.group_size}",
        )
        require(
            self.lora.rank is None or self.model.layers != "te",
            f"lora.rank {self.lora.rank} needs our own layers, but model.layers is te; set it to local",
        )
        return self
