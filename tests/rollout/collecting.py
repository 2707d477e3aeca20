"""Collectors and collections as most tests want them: a group of each task, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from fake_engine import WORDS
from word_tokenizer import write_tokenizer

from envs.base import Task
from envs.dialogue import GENERIC
from gigpo_mega.config import EnvironmentConfig, PromptConfig
from gigpo_mega.rollout.collector import Collector, OnCollected
from gigpo_mega.rollout.engines.base import Engine, Sampling
from gigpo_mega.rollout.engines.fleet import Fleet
from gigpo_mega.rollout.episode import Player
from gigpo_mega.rollout.group_player import EpisodePlayer, LocalGroupPlayer
from gigpo_mega.rollout.pools.base import EnvironmentPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import Group


def collector(engine: Engine, pool: EnvironmentPool, folder: Path, **fields: Any) -> Collector:
    """A collector of compact dialogues over `pool`; `fields` are those of Collector and EnvironmentConfig."""
    concurrency, retries = fields.pop("concurrency", 8), fields.pop("retries", 0)
    dialogue, tokenizer = GENERIC["compact"], Tokenizer(write_tokenizer(folder / "model", WORDS))
    prompts = PromptBuilder(PromptConfig(), dialogue, tokenizer, 64)
    config = EnvironmentConfig(max_steps=9, **fields)
    return by(Player(engine, pool, prompts, dialogue, tokenizer, config), concurrency, retries)


def by(player: EpisodePlayer, concurrency: int, retries: int = 0) -> Collector:
    """A collector whose groups are played by `player` in this process."""
    engine = player.engine
    fleet = engine if isinstance(engine, Fleet) else Fleet([engine], patience=120)
    return Collector(LocalGroupPlayer(player, fleet, concurrency, retries))


def collect(
    collector: Collector,
    tasks: Sequence[Task],
    size: int,
    sampling: Sampling | None = None,
    on_progress: OnCollected | None = None,
    spare: Iterable[Task] = (),
) -> tuple[Group, ...]:
    """A group of each of `tasks`; those that fail are replaced while there are `spare` tasks."""
    quota = Quota(len(tasks), enumerate(chain(tasks, spare)))
    return tuple(collector.collect(quota, size, sampling or Sampling(), on_progress).values())
