"""Sokoban: small rooms generated from seeds, shown as symbols or in words."""

from __future__ import annotations

from envs.base import EnvironmentKind
from envs.sokoban.dialogue import DIALOGUES
from envs.sokoban.environment import SokobanEnvironment
from envs.sokoban.expert import demonstrate, solve
from envs.sokoban.rooms import Room, Shape, room_of
from envs.sokoban.sources import SokobanTasks

KIND = EnvironmentKind(SokobanEnvironment, SokobanTasks, demonstrate, DIALOGUES)

__all__ = ["KIND", "Room", "Shape", "SokobanEnvironment", "SokobanTasks", "demonstrate", "room_of", "solve"]
