"""Plays episodes over adversarial text in every kind of context, and audits what would be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from envs.base import SeedTasks
from envs.dialogue import GENERIC
from gigpo_mega.coldstart.scratch import CHAT
from gigpo_mega.coldstart.vocabulary import train_tokenizer
from gigpo_mega.config import (
    BatchConfig,
    Config,
    EngineConfig,
    EnvironmentConfig,
    ObjectiveConfig,
    PromptConfig,
)
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.learner import Learner
from gigpo_mega.rollout.collector import Collector
from gigpo_mega.rollout.engines.base import Sampling
from gigpo_mega.rollout.engines.fleet import Fleet
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.rollout.episode import Player
from gigpo_mega.rollout.gateway.player import AgentPlayer
from gigpo_mega.rollout.gateway.server import Gateway
from gigpo_mega.rollout.gateway.session import Policy
from gigpo_mega.rollout.group_player import EpisodePlayer, LocalGroupPlayer
from gigpo_mega.rollout.pools.process import ProcessPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Group
from tools.bench.fuzz.audit import WRONG, History, audit
from tools.bench.fuzz.policy import CALLS, SENSE, TAGS, FakeFuzzer, NotedSGLang
from tools.bench.fuzz.world import NAME, STEPS, converse

GROUP, AT_ONCE, PORTION = 8, 16, 200
UNCUT, CUT = 8192, 200  # tokens of a prompt at most; the world's are below the first
FAILING = 0.002  # of the calls of engine and environment; an episode is begun again
RETRIES = 20
ITERATION = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """How prompts come about."""

    context: Literal["window", "append", "gateway"]
    dialogue: Literal["chat", "compact"]
    longest: int

    @property
    def name(self) -> str:
        """What a record calls it."""
        return f"{self.context}, {self.dialogue}, {'cut' if self.longest == CUT else 'uncut'}"

    @property
    def history(self) -> History:
        """Which prompts continue others; where they are cut, none can be held to it."""
        if self.longest == CUT or self.context == "window":
            return None
        return "append" if self.context == "append" else "agent"


KINDS = tuple(
    Kind(context, dialogue, longest)
    for context in ("window", "append", "gateway")
    for dialogue in ("chat", "compact")
    for longest in (UNCUT, CUT)
    if (context, dialogue) != ("gateway", "compact")
)
SERVED = tuple(kind for kind in KINDS if kind.longest == UNCUT and kind.context != "window")


class Fuzz:
    """A policy's files, an environment and learners, with which any kind is played; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.model = folder, write_policy(folder / "policy")
        self._tokenizer = Tokenizer(self.model)
        self._stack = ExitStack()
        self._collections = 0

    def __enter__(self) -> Fuzz:
        cfg = Config()
        self._stack.callback(layouts.shutdown)
        layout = layouts.initialize(cfg.parallel, cfg.seed)
        shape = ModelShape.from_hf(self.model)
        self._learners = {packed: Learner(_config(packed), shape, layout) for packed in (True, False)}
        pool = ProcessPool(NAME, {"failing": FAILING, "max_steps": STEPS}, workers=1)
        self._pool = self._stack.enter_context(closing(pool))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, kind: Kind, episodes: int, seed: int, url: str | None = None) -> dict[str, int]:
        """The counts of one collection, whose policy is that of the server at `url`, or else fuzzed."""
        if url is None:
            more = (*TAGS, *CALLS) if kind.context == "gateway" else ()
            engine = FakeFuzzer(self._tokenizer, more, seed, ITERATION, FAILING)
        else:
            engine = NotedSGLang(url)
        groups, again = self._played(kind, engine, episodes, seed)
        packed = seed % 2 == 0
        return audit(
            self._learners[packed], _config(packed), groups, engine.calls, again, ITERATION, kind.history
        )

    def _played(
        self, kind: Kind, engine: FakeFuzzer | NotedSGLang, episodes: int, seed: int
    ) -> tuple[Sequence[Group], int]:
        """The groups as they come back from disk, and how many episodes were begun again."""
        fleet = Fleet([engine], patience=120)
        player = self._player(kind, fleet)
        collector = Collector(LocalGroupPlayer(player, fleet, AT_ONCE, RETRIES))
        journal, number = Journal(self._folder / "groups"), self._collections
        self._collections += 1
        tasks = Random(seed).sample(SeedTasks(train=2**12).tasks("train"), -(-episodes // GROUP))
        quota = Quota(len(tasks), enumerate(tasks), keep=partial(journal.keep, number))
        stops = player.prompts.stop_token_ids
        collector.collect(quota, GROUP, Sampling(max_new_tokens=64, stop_token_ids=stops))
        journal.finish(number)
        groups = journal.read(number)
        journal.forget(number + 1)
        return groups, collector.stats.retries

    def _player(self, kind: Kind, fleet: Fleet) -> EpisodePlayer:
        dialogue, config = GENERIC[kind.dialogue], EnvironmentConfig(name=NAME, max_steps=STEPS)
        if kind.context == "gateway":
            prompts = PromptBuilder(PromptConfig(), dialogue, self._tokenizer, kind.longest)
            gateway = Gateway(Policy(fleet, self._tokenizer, prompts), limit=100)
            return AgentPlayer(gateway, converse, {}, config)
        shown = PromptConfig(context=kind.context, dialogue=kind.dialogue)
        prompts = PromptBuilder(shown, dialogue, self._tokenizer, kind.longest)
        return Player(fleet, self._pool, prompts, dialogue, self._tokenizer, config)


def fuzz(
    folder: Path, episodes: int, served: int, seed: int, say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Counts by kind of context, and their sums, of `episodes`, and of about `served` with a real server."""
    kinds: dict[str, dict[str, int]] = {}
    with Fuzz(folder) as made, ExitStack() as stack:
        plan: list[tuple[str, Kind, str | None, int]] = []
        plan += ((kind.name, kind, None, part) for kind, part in _portions(KINDS, episodes))
        if served:
            config = EngineConfig(max_total_tokens=4 * UNCUT)
            server = stack.enter_context(SGLangServer(made.model, config, folder / "sglang.log"))
            portions = _portions(SERVED, served)
            plan += ((f"{kind.name}, SGLang", kind, server.url, part) for kind, part in portions)
        for number, (name, kind, url, part) in enumerate(plan):
            found = made.run(kind, part, seed + number, url)
            kinds[name] = _sum([kinds[name], found] if name in kinds else [found])
            wrong = {name: found[name] for name in WRONG if found[name]}
            say(f"seed {seed + number}: {found['episodes']} episodes, {name}: {wrong or 'as sampled'}")
    return {"seeds": [seed, seed + len(plan) - 1], "total": _sum(kinds.values()), "kinds": kinds}


def _portions(kinds: Sequence[Kind], episodes: int) -> Iterator[tuple[Kind, int]]:
    """Collections of PORTION episodes at most, as many of each kind, `episodes` in all or a few more."""
    each = -(-episodes // len(kinds))
    for kind in kinds:
        for start in range(0, each, PORTION):
            yield kind, min(PORTION, each - start)


def _sum(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums of counts that all have."""
    first, *others = parts
    return {name: value + sum(part[name] for part in others) for name, value in first.items()}


def _config(packed: bool) -> Config:
    """Every row once, in several updates, shuffled."""
    return Config(
        objective=ObjectiveConfig(kl_coef=0.0, entropy_coef=0.0, old_logprob="engine"),
        batch=BatchConfig(rows_per_update=64, shuffle=True, microbatch_tokens=4096, packed=packed),
    )


def write_policy(directory: Path) -> Path:
    """A tiny random Qwen2, and a tokenizer with control tokens and a chat template that shows tools."""
    size = train_tokenizer([" ".join((*TAGS, *SENSE))] * 3, 400, directory, CHAT)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=-(-size // 64) * 64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2 * UNCUT, eos_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    return directory
