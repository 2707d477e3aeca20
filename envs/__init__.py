"""Environments, and all that a new one needs."""

from envs.base import (
    Demonstration,
    Environment,
    EnvironmentError,
    EnvironmentKind,
    Observation,
    SeedTasks,
    Task,
    TaskSource,
    Transition,
    register,
)
from envs.dialogue import Answer, Dialogue, Situation, Turn

__all__ = [
    "Answer",
    "Demonstration",
    "Dialogue",
    "Environment",
    "EnvironmentError",
    "EnvironmentKind",
    "Observation",
    "SeedTasks",
    "Situation",
    "Task",
    "TaskSource",
    "Transition",
    "Turn",
    "register",
]
