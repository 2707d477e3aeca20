"""Recorded sessions: the pages and rewards of a shop after every action, and their replay in ours."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.base import EnvError
from envs.transcripts import Replay
from envs.webshop.session import Session
from envs.webshop.shop import Shop, ShopFiles, load_shop

FILES = ("items", "attributes", "instructions")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is observable before any action or after one."""

    action: str  # empty before the first
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


def show(session: Session, action: str = "") -> Seen:
    """What is observable in a session after `action`."""
    reward = session.score.reward if session.score else 0.0
    page = session.page
    return Seen(action, page.text, page.clickables, page.search_bar, reward, session.score is not None)


def play(shop: Shop, goal: int, actions: Sequence[str]) -> Iterator[Seen]:
    """What is observable in our shop at the start and after each action."""
    session = Session(shop, shop.goals[goal])
    yield show(session)
    for action in actions:
        session.act(action)
        yield show(session, action)


def compare(ours: Sequence[Seen], theirs: Sequence[Seen]) -> list[str]:
    """The differences between two records of the same session, one line each."""
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
        raise EnvError(f"{path}: not a transcript ({error}); record it again") from None
    paths = [str(scratch / f"{name}.json") for name in FILES]
    for name, path_of_file in zip(FILES, paths, strict=True):
        Path(path_of_file).write_text(json.dumps(data["files"][name]))
    files = ShopFiles(*paths, goals=data["goals"], seed=data["seed"], nouns=data["nouns"])
    visits: list[Visit] = []
    for visit in data["visits"]:
        seen = (Seen(**{**fields, "clickables": tuple(fields["clickables"])}) for fields in visit["seen"])
        visits.append(Visit(visit["goal"], tuple(seen)))
    return files, tuple(visits)


def replay(files: ShopFiles, visits: Sequence[Visit]) -> Replay:
    """Plays the visits again and compares everything observable."""
    shop, steps, found = load_shop(files), 0, list[str]()
    for visit in visits:
        actions = [seen.action for seen in visit.seen[1:]]
        found += compare(list(play(shop, visit.goal, actions)), visit.seen)
        steps += len(actions)
    return Replay(steps, len(found), found[0] if found else "")
