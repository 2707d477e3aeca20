"""Recorded walks of the official engine, and their replay here: every string, list and flag must be the same.

A transcript is one gzipped JSON file a game: `{task_type, task, pddl_problem, intro: {feedback, admissible},
steps: [{command, feedback, admissible, won, done}]}`; domain and grammar are the alfworld wheel's, with
`task` in the place of UNKNOWN GOAL.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Game, Play, compile_game
from envs.alfworld.wheel import load_wheel
from envs.base import EnvironmentError


@dataclass(frozen=True, slots=True)
class Replay:
    """What replaying one transcript showed; `first` describes the first difference."""

    steps: int
    differences: int
    first: str = ""


def read_transcript(path: str | Path) -> dict[str, Any]:
    """The content of a transcript file; raises EnvironmentError where it is not one."""
    try:
        content = json.loads(gzip.decompress(Path(path).read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise EnvironmentError(f"{path}: not a gzipped JSON transcript ({error}); record it again") from None
    missing = {"task", "pddl_problem", "intro", "steps"} - set(content)
    if missing:
        raise EnvironmentError(f"{path}: no {sorted(missing)[0]!r} in the transcript; record it again")
    return content


def game_of(transcript: Mapping[str, Any]) -> Game:
    """The game a transcript was recorded on."""
    wheel = load_wheel()
    grammar = wheel.grammar.replace("UNKNOWN GOAL", transcript["task"])
    return compile_game(wheel.domain, grammar, transcript["pddl_problem"])


def replay(transcript: Mapping[str, Any]) -> Replay:
    """Plays a transcript's commands and compares everything the official engine said."""
    play = game_of(transcript).play()
    found = [("the introduction", differences(transcript["intro"], play))]
    for number, step in enumerate(transcript["steps"], start=1):
        play.step(step["command"])
        found.append((f"step {number}, {step['command']!r}", differences(step, play)))
    wrong = [(where, what) for where, what in found if what]
    first = f"{wrong[0][0]}: {wrong[0][1][0]}" if wrong else ""
    return Replay(len(found) - 1, sum(len(what) for _, what in wrong), first)


def differences(official: Mapping[str, Any], play: Play) -> list[str]:
    """How the state of `play` differs from what the official engine showed: one line for each field."""
    ours = {"feedback": play.feedback, "admissible": list(play.admissible), "won": play.won, "done": play.won}
    return [
        _difference(field, official[field], ours[field])
        for field in ours
        if field in official and official[field] != ours[field]
    ]


def _difference(field: str, official: Any, ours: Any) -> str:
    if isinstance(official, list) and isinstance(ours, list):
        less, more = [x for x in official if x not in ours], [x for x in ours if x not in official]
        return f"{field}: missing {less[:3]}, unexpected {more[:3]}"
    return f"{field}: official {official!r}, here {ours!r}"
