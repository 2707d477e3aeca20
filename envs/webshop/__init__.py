"""WebShop's text mode, natively: reads the published files, needs neither Java, Flask nor torch."""

from __future__ import annotations

from envs.base import EnvironmentKind, register
from envs.webshop.dialogue import DIALOGUES
from envs.webshop.environment import WebShopEnvironment
from envs.webshop.expert import demonstrate
from envs.webshop.sources import WebShopTasks, task_source

register("webshop", EnvironmentKind(WebShopEnvironment, task_source, demonstrate, DIALOGUES))

__all__ = ["WebShopEnvironment", "WebShopTasks", "demonstrate", "task_source"]
