"""ALFWorld, natively: reads official `game.tw-pddl` files, needs no compiled dependency."""

from __future__ import annotations

from envs.alfworld.environment import AlfworldEnvironment
from envs.alfworld.games import AlfworldTasks
from envs.base import EnvironmentKind, register

register("alfworld", EnvironmentKind(AlfworldEnvironment, AlfworldTasks))

__all__ = ["AlfworldEnvironment", "AlfworldTasks"]
