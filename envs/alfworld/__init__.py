"""ALFWorld in pure Python: reads official `game.tw-pddl` files, needs no compiled dependency."""

from __future__ import annotations

from envs.alfworld.dialogue import DIALOGUES
from envs.alfworld.environment import AlfworldEnvironment
from envs.alfworld.expert import demonstrate
from envs.alfworld.games import AlfworldTasks
from envs.alfworld.sources import task_source
from envs.base import EnvironmentKind

COLUMNS = {
    "pick_and_place_simple": "Pick",
    "look_at_obj_in_light": "Look",
    "pick_clean_then_place_in_recep": "Clean",
    "pick_heat_then_place_in_recep": "Heat",
    "pick_cool_then_place_in_recep": "Cool",
    "pick_two_obj_and_place": "Pick2",
}  # the paper's names of the six task types, in its order

KIND = EnvironmentKind(AlfworldEnvironment, task_source, demonstrate, DIALOGUES, COLUMNS)

__all__ = ["COLUMNS", "KIND", "AlfworldEnvironment", "AlfworldTasks", "demonstrate", "task_source"]
