"""Where the numbers of a run go."""

from __future__ import annotations

from dataclasses import field
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, require

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, config=STRICT)
class TelemetryConfig:
    """Where metrics go besides metrics.jsonl, and under which names (docs/metrics.md)."""

    loggers: list[LoggerName] = field(default_factory=lambda: ["tensorboard"])
    """Any of tensorboard, wandb and mlflow. Nothing leaves the machine unless WANDB_MODE, WANDB_API_KEY or
    MLFLOW_TRACKING_URI is set: W&B then writes offline, MLflow to mlflow.db, both in `output`."""
    project: str = "gigpo-mega"
    """W&B's project, MLflow's experiment."""
    name: str | None = None
    """The run's name there; null for the name of the folder `output`."""

    timeline: bool = False
    """Write what ran when, in each iteration, into the folder `timeline` (docs/traces.md)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.project != "", "telemetry.project must not be empty")
        twice = {name for name in self.loggers if self.loggers.count(name) > 1}
        require(not twice, f"telemetry.loggers names {', '.join(sorted(twice))} twice")
        return self
