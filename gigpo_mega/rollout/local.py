"""Playing in this process: engines, environments, prompts, put together from a configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from envs.agent import find_agent
from envs.base import EnvUnavailable, Task
from envs.dialogue import GENERIC, choose
from envs.registry import lookup
from gigpo_mega.config import Config
from gigpo_mega.launch import raise_open_files
from gigpo_mega.rollout.engines.fleet import Fleet
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.episode import Player
from gigpo_mega.rollout.gateway.player import AgentPlayer
from gigpo_mega.rollout.gateway.server import Gateway
from gigpo_mega.rollout.gateway.session import Policy
from gigpo_mega.rollout.group_player import EpisodePlayer, LocalGroupPlayer
from gigpo_mega.rollout.pools.actors import RayPool
from gigpo_mega.rollout.pools.base import EnvironmentLost, EnvironmentPool, naming
from gigpo_mega.rollout.pools.process import ProcessPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.tasks import environment_options
from gigpo_mega.telemetry.timeline import Timeline


@contextmanager
def local_player(
    cfg: Config, model: Path, urls: Sequence[str], near: Collection[int] = (), place: str = ""
) -> Iterator[LocalGroupPlayer]:
    """Plays in this process, with the engines at `urls`, first with those that are `near`.

    `model` is the policy's Hugging Face directory; timelines call this process `place`.
    """
    raise_open_files()
    timeline = Timeline(cfg.telemetry.timeline, place)
    engines = [SGLangEngine(url, timeout=cfg.engine.request_timeout) for url in urls]
    fleet = Fleet(engines, cfg.engine.stall_timeout, near=near, timeline=timeline)
    tokenizer = Tokenizer(model)

    def played_by(player: EpisodePlayer) -> LocalGroupPlayer:
        concurrency, retries = cfg.rollout.concurrency, cfg.rollout.retries
        return LocalGroupPlayer(player, fleet, concurrency, retries, timeline, engines)

    if cfg.rollout.agent is not None:
        prompts = PromptBuilder(cfg.prompt, GENERIC["chat"], tokenizer, cfg.rollout.max_prompt_tokens)
        gateway = Gateway(Policy(fleet, tokenizer, prompts), cfg.environment.max_steps)
        agent = find_agent(cfg.rollout.agent)
        yield played_by(AgentPlayer(gateway, agent, environment_options(cfg), cfg.environment, timeline))
        return
    dialogue = choose(lookup(cfg.environment.name), cfg.prompt.dialogue)
    with closing(_pool(cfg, cfg.environment.workers)) as pool:
        prompts = PromptBuilder(cfg.prompt, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
        player = Player(fleet, pool, prompts, dialogue, tokenizer, cfg.environment, timeline)
        yield played_by(player)


def try_environment(cfg: Config, task: Task) -> None:
    """Start `task`, which costs a moment, in up to 1 + `rollout.retries` tries; an agent is not tried.

    Raises EnvError or UserError if it cannot be played.
    """
    if cfg.rollout.agent is not None:
        return
    with closing(_pool(cfg, workers=1)) as pool:
        for left in reversed(range(cfg.rollout.retries + 1)):
            try:
                with naming(cfg.environment.name, task, "reset"):
                    asyncio.run(_reset(pool, task))
                return
            except (EnvironmentLost, EnvUnavailable):
                if not left:
                    raise


def _pool(cfg: Config, workers: int) -> ProcessPool | RayPool:
    played = cfg.environment
    kind = RayPool if cfg.rollout.pool == "ray" else ProcessPool
    return kind(played.name, environment_options(cfg), workers, step_timeout=played.step_timeout)


async def _reset(pool: EnvironmentPool, task: Task) -> None:
    async with pool:
        await pool.reset(0, task)
