"""Text environments, and the types that a new one needs."""

from envs.agent import Connection, Outcome
from envs.base import (
    Demonstration,
    EnvError,
    Environment,
    EnvironmentKind,
    EnvUnavailable,
    Observation,
    SeedTasks,
    Task,
    TaskSource,
    Transition,
)
from envs.dialogue import Answer, Dialogue, Situation, Turn
from envs.registry import register

__all__ = [
    "Answer",
    "Connection",
    "Demonstration",
    "Dialogue",
    "EnvError",
    "EnvUnavailable",
    "Environment",
    "EnvironmentKind",
    "Observation",
    "Outcome",
    "SeedTasks",
    "Situation",
    "Task",
    "TaskSource",
    "Transition",
    "Turn",
    "register",
]
