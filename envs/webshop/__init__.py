"""WebShop's text mode in pure Python: reads the published files, needs neither Java, Flask nor torch."""

from __future__ import annotations

from envs.base import EnvironmentKind
from envs.webshop.dialogue import DIALOGUES
from envs.webshop.environment import WebShopEnvironment
from envs.webshop.expert import demonstrate
from envs.webshop.sources import WebShopTasks, task_source

KIND = EnvironmentKind(WebShopEnvironment, task_source, demonstrate, DIALOGUES)

__all__ = ["KIND", "WebShopEnvironment", "WebShopTasks", "demonstrate", "task_source"]
