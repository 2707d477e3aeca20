"""Recorded visits: what a shop showed and paid, action by action, and replaying them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError
from envs.webshop.session import Session
from envs.webshop.shop import Shop, ShopFiles, load_shop

FILES = ("items", "attributes", "instructions")


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to see before any action or after one."""

    action: str  # empty before any
    text: str
    clickables: tuple[str, ...]
    search_bar: bool
    reward: float
    done: bool


@dataclass(frozen=True, slots=True)
class Visit:
    """One recorded episode."""

    goal: int
    seen: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """How a replay went."""

    steps: int
    differences: int
    first: str = ""  # the first difference


def show(session: Session, action: str = "") -> Seen:
    """What a session shows after `action`."""
    reward = session.score.reward if session.score else 0.0
    page = session.page
    return Seen(action, page.text, page.clickables, page.search_bar, reward, session.score is not None)


def play(shop: Shop, goal: int, actions: Sequence[str]) -> Iterator[Seen]:
    """What our shop shows at the start and after each action."""
    session = Session(shop, shop.goals[goal])
    yield show(session)
    for action in actions:
        session.act(action)
        yield show(session, action)


def compare(ours: Sequence[Seen], theirs: Sequence[Seen]) -> list[str]:
    """The differences of two accounts of the same visit, each in a line."""
    return [
        f"after {b.action!r}: {name} {getattr(a, name)!r}, expected {getattr(b, name)!r}"
        for a, b in zip(ours, theirs, strict=True)
        for name in Seen.__slots__
        if getattr(a, name) != getattr(b, name)
    ]


def write_transcript(path: Path, files: ShopFiles, visits: Sequence[Visit]) -> None:
    """Writes visits together with the content of the shop's files."""
    content = {name: json.loads(Path(getattr(files, name)).read_text()) for name in FILES}
    shop = {"goals": files.goals, "seed": files.seed, "nouns": files.nouns}
    data = json.dumps({**shop, "files": content, "visits": [asdict(visit) for visit in visits]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data.encode(), mtime=0))  # the same visits give the same bytes


def read_transcript(path: Path, scratch: Path) -> tuple[ShopFiles, tuple[Visit, ...]]:
    """The shop of a transcript, its files unpacked into `scratch`, and the visits."""
    try:
        data: Mapping[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise EnvironmentError(f"{path}: no transcript ({error}); record it again") from None
    paths = [str(scratch / f"{name}.json") for name in FILES]
    for name, path_of_file in zip(FILES, paths, strict=True):
        Path(path_of_file).write_text(json.dumps(data["files"][name]))
    files = ShopFiles(*paths, goals=data["goals"], seed=data["seed"], nouns=data["nouns"])
    return files, tuple(_visit(visit) for visit in data["visits"])


def _visit(data: Mapping[str, Any]) -> Visit:
    seen = [{**seen, "clickables": tuple(seen["clickables"])} for seen in data["seen"]]
    return Visit(data["goal"], tuple(Seen(**fields) for fields in seen))


def replay(files: ShopFiles, visits: Sequence[Visit]) -> Replay:
    """Plays the visits anew and compares everything shown."""
    shop, steps, found = load_shop(files), 0, list[str]()
    for visit in visits:
        actions = [seen.action for seen in visit.seen[1:]]
        found += compare(list(play(shop, visit.goal, actions)), visit.seen)
        steps += len(actions)
    return Replay(steps, len(found), found[0] if found else "")
