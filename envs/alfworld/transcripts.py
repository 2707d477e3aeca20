"""Recorded episodes of the official engine, and their exact replay in ours.

A transcript is one gzipped JSON file per game: `{task_type, task, pddl_problem, intro: {feedback,
admissible}, steps: [{command, feedback, admissible, won, done}]}`; domain and grammar are those of the
alfworld package, with `task` in place of UNKNOWN GOAL.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Game, Play, compile_game
from envs.alfworld.wheel import load_wheel
from envs.base import EnvError
from envs.transcripts import Replay


def read_transcript(path: str | Path) -> dict[str, Any]:
    """The content of a transcript file; raises EnvError if it is not one."""
    try:
        content = json.loads(gzip.decompress(Path(path).read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise EnvError(f"{path}: not a gzipped JSON transcript ({error}); record it again") from None
    missing = {"task", "pddl_problem", "intro", "steps"} - set(content)
    if missing:
        raise EnvError(f"{path}: no {sorted(missing)[0]!r} in the transcript; record it again")
    return content


def game_of(transcript: Mapping[str, Any]) -> Game:
    """The game that a transcript was recorded on."""
    wheel = load_wheel()
    grammar = wheel.grammar.replace("UNKNOWN GOAL", transcript["task"])
    return compile_game(wheel.domain, grammar, transcript["pddl_problem"])


def replay(transcript: Mapping[str, Any]) -> Replay:
    """Plays a transcript's commands and compares everything that the official engine returned."""
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
    found: list[str] = []
    for field, actual in ours.items():
        expected = official.get(field, actual)
        if isinstance(expected, list) and isinstance(actual, list) and expected != actual:
            missing = [one for one in expected if one not in actual]
            unexpected = [one for one in actual if one not in expected]
            found.append(f"{field}: missing {missing[:3]}, unexpected {unexpected[:3]}")
        elif expected != actual:
            found.append(f"{field}: official {expected!r}, here {actual!r}")
    return found
