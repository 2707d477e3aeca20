"""Expert episodes, rendered exactly as a rollout would, as sequences whose tokens have weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import Demonstration
from envs.dialogue import choose
from envs.registry import lookup
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.pools.base import naming
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.tasks import TaskStream, load_tasks
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.types import Bool, Float32, Int32


@dataclass(frozen=True, slots=True)
class ClonedStep:
    """One expert action after the prompt that a rollout would have shown."""

    prompt_ids: Int32  # [P]
    response_ids: Int32  # [R] what is cloned; with a prompt weight all of the prompt but its first token too
    weight: Float32  # [R] of each token's log-likelihood; 1 for the action's
    action: Bool  # [R] whether it is the action's, not the prompt's

    @classmethod
    def of(cls, prompt: list[int], action: list[int], prompt_weight: float) -> ClonedStep:
        """The ids of `action` after `prompt`, whose tokens have `prompt_weight`."""
        start = 1 if prompt_weight else len(prompt)
        ids = np.array([*prompt, *action], dtype=np.int32)
        weight = np.full(len(ids) - start, prompt_weight, dtype=np.float32)
        weight[-len(action) :] = 1.0
        said = np.arange(start, len(ids)) >= len(prompt)
        return cls(ids[:start], ids[start:], weight, said)


def demonstrate(cfg: Config) -> tuple[Demonstration, ...]:
    """The successes among `coldstart.games` expert episodes on training tasks, or, if asked, all of them.

    Raises UserError if there is no expert, or none to clone; EnvError, with environment and task, from it.
    """
    expert = lookup(cfg.environment.name).demonstrate
    if expert is None:
        raise UserError(f"environment.name {cfg.environment.name}: there is no expert to clone for it")
    training, settings = load_tasks(cfg).training, cfg.coldstart
    games = settings.games
    played: list[Demonstration] = []
    with stage("expert", games, "games") as bar:
        for i, task in enumerate(TaskStream(training, cfg.seed).draw(0, games)):
            with naming(cfg.environment.name, task, "expert"):
                played.append(
                    expert(
                        task,
                        seed=cfg.seed + i,
                        detour=settings.detour,
                        max_steps=cfg.environment.max_steps,
                        options=cfg.environment.options,
                    )
                )
            bar.advance()
    kept = tuple(episode for episode in played if episode.success or settings.failures)
    if not kept:
        raise UserError(
            f"coldstart.games {games}: no expert episode succeeded; raise environment.max_steps, lower "
            f"coldstart.detour {settings.detour}, or set coldstart.failures to clone them anyway"
        )
    if failed := games - len(kept):
        sys.stderr.write(
            f"{failed} of {games} expert episodes failed and are not cloned (coldstart.failures)\n"
        )
    return kept


def cloned_steps(
    cfg: Config, demonstrations: Sequence[Demonstration], tokenizer: Tokenizer
) -> tuple[ClonedStep, ...]:
    """One sequence per expert action; raises UserError if no demonstration has any."""
    dialogue = choose(lookup(cfg.environment.name), cfg.prompt.dialogue)
    prompts = PromptBuilder(cfg.prompt, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
    found: list[ClonedStep] = []
    for demonstration in demonstrations:
        if not demonstration.turns:
            continue
        episode = prompts.start(demonstration.turns[0][0])
        following = [observation for observation, _ in demonstration.turns[1:]]
        for (_, action), observation in zip(demonstration.turns, [*following, None], strict=True):
            said = prompts.answer(action)
            found.append(ClonedStep.of(episode.ids(), said, cfg.coldstart.prompt_weight))
            if observation is not None:
                episode.advance(action, observation, said)
    if not found:
        raise UserError(
            f"coldstart.games {cfg.coldstart.games}: {len(demonstrations)} expert episodes have no action to "
            "clone; play more games or check environment.tasks"
        )
    return tuple(found)
