"""The native ALFWorld engine against the official one: every string, list and flag."""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from envs.alfworld.engine import Game, Play, compile_game
from envs.alfworld.expert import Expert
from envs.alfworld.games import GAME_FILE, SPLITS, TASK_TYPES, read_game
from envs.alfworld.generate import make_game
from envs.alfworld.scenes import RoomLimits
from envs.alfworld.transcripts import differences, read_transcript, replay
from envs.alfworld.wheel import load_wheel
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.provenance import provenance

ODD = ("look", "inventory", "help", " look ", "LOOK", "go  to", "dance", "", "take", "examine nothing")
QUIET = ("go ", "look", "inventory", "help")
PACKAGES = ("alfworld", "textworld", "fast-downward-textworld")


@dataclass(slots=True)
class Tally:
    """Counts of a comparison, updated walk by walk."""

    games: dict[str, set[Path]] = field(default_factory=dict)  # by origin and task type
    walks: Counter[str] = field(default_factory=Counter)  # by kind of walk
    steps: int = 0
    differences: int = 0
    won: int = 0

    def add(self, name: str, path: Path, kind: str, steps: list[dict[str, Any]], differences: int) -> None:
        """Count one walk of `steps` in the game `path`."""
        self.games.setdefault(name, set()).add(path)
        self.walks[kind] += 1
        self.steps += len(steps)
        self.differences += differences
        self.won += any(step["won"] for step in steps)


class OfficialEngine:
    """The official engine wrapped as in the official environment: names like "desk 1", no shuffling."""

    def __init__(self) -> None:
        """Raises UserError if the official engine is not installed."""
        try:
            import textworld  # pyright: ignore[reportMissingImports]
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
            from textworld.envs import PddlEnv  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            wanted = "pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'"
            raise UserError(
                f"the official engine is not installed in {sys.executable} ({error}); {wanted}"
            ) from None
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._environment = AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))

    def load(self, game: Path) -> dict[str, Any]:
        """Load a game file; returns the feedback and the admissible commands of its start."""
        self._environment.load(str(game))
        state = self._environment.reset()
        return {"feedback": state.feedback, "admissible": state.admissible_commands}

    def step(self, command: str) -> dict[str, Any]:
        """Play one command; returns a step of a transcript."""
        state, _, done = self._environment.step(command)
        shown = {"feedback": state.feedback, "admissible": state.admissible_commands}
        return {"command": command, **shown, "won": bool(state.won), "done": bool(done)}


def expert_walk(play: Play, rng: Random) -> Iterator[str]:
    """The plan of the expert with idle and odd commands in between, until the game is won."""
    expert = Expert(play, rng, detour=0.15, explore=rng.random() < 0.5)
    while not play.won:
        if rng.random() < 0.25:
            yield rng.choice(ODD)
        elif rng.random() < 0.1:
            yield f"  {expert.command()} "
        else:
            yield expert.command()


def random_walk(play: Play, rng: Random) -> Iterator[str]:
    """Random admissible commands, mostly ones that change the state, with odd ones in between."""
    while True:
        busy = [command for command in play.admissible if not command.startswith(QUIET)]
        if rng.random() < 0.1:
            yield rng.choice(ODD)
        else:
            yield rng.choice(busy if busy and rng.random() < 0.7 else play.admissible)


def compare(
    official: OfficialEngine,
    path: Path,
    game: Game,
    walk: Callable[[Play, Random], Iterator[str]],
    steps: int,
    seed: str,
) -> tuple[dict[str, Any], list[str]]:
    """Play one walk on both engines; returns intro and steps of the transcript, and the differences."""
    play = game.play()
    intro = official.load(path)
    found = [f"the introduction: {what}" for what in differences(intro, play)]
    walked: list[dict[str, Any]] = []
    for command, _ in zip(walk(play, Random(seed)), range(steps), strict=False):
        shown = official.step(command)
        play.step(command)
        walked.append(shown)
        found += [f"step {len(walked)}, {command!r}: {what}" for what in differences(shown, play)]
    return {"intro": intro, "steps": walked}, found


def generated(games: int, seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """(task type, file) of games of all types and splits; some in small rooms."""
    wheel = load_wheel()
    for i in range(games):
        task_type, split = TASK_TYPES[i % len(TASK_TYPES)], SPLITS[i // len(TASK_TYPES) % len(SPLITS)]
        limits = RoomLimits(8, 10) if i // 18 % 2 else RoomLimits()
        _, game, _ = make_game(wheel, split, task_type, f"{seed}/oracle/{i}", limits)
        path = folder / f"{i}.{GAME_FILE}"
        path.write_text(json.dumps(game), encoding="utf-8")
        yield task_type, path


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which games both engines play."""

    games: int  # generated games, of all six types in turn
    steps: int  # of a walk at most
    seed: int
    genuine: Path | None = None  # folder of genuine game files
    record: Path | None = None  # folder that gets transcripts of the generated games

    def walks(self, folder: Path) -> Iterator[tuple[str, str, Path, str]]:
        """(origin, task type, file, kind): both kinds on a genuine game, one on each generated game."""
        for path in sorted(self.genuine.rglob(GAME_FILE)) if self.genuine else ():
            task_type = path.parent.parent.name.partition("-")[0]
            yield from (("genuine", task_type, path, kind) for kind in ("expert", "random"))
        for number, (task_type, path) in enumerate(generated(self.games, self.seed, folder)):
            yield "generated", task_type, path, ("expert", "random")[number // len(TASK_TYPES) % 2]


def against_official(comparison: Comparison) -> dict[str, Any]:
    """Play every walk on both engines; prints the progress and returns a summary."""
    official, tally, made = OfficialEngine(), Tally(), provenance(*PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        for number, (origin, task_type, path, kind) in enumerate(comparison.walks(Path(folder))):
            walk = expert_walk if kind == "expert" else random_walk
            data = read_game(path)
            game = compile_game(data["pddl_domain"], data["grammar"], data["pddl_problem"])
            seed = f"{comparison.seed}/{number}"
            walked, found = compare(official, path, game, walk, comparison.steps, seed)
            tally.add(f"{origin} {task_type}", path, kind, walked["steps"], len(found))
            if found:
                print(f"{path.name} ({task_type}, {kind} walk): {found[0]}", flush=True)
            if comparison.record and origin == "generated":
                target = comparison.record / f"{comparison.seed}-{number:05d}.json.gz"
                write_transcript(target, task_type, game, data["pddl_problem"], walked)
            if number % 10 == 9:
                print(f"{number + 1} walks, {tally.steps} steps, {tally.differences} differences", flush=True)
    return {
        **made,
        "seed": comparison.seed,
        "games": {name: len(paths) for name, paths in sorted(tally.games.items())},
        "walks": dict(tally.walks),
        "games_total": sum(map(len, tally.games.values())),
        "walks_won": tally.won,
        "steps": tally.steps,
        "compared": "feedback, admissible commands, won and done after every step",
        "differences": tally.differences,
    }


def write_transcript(path: Path, task_type: str, game: Game, problem: str, walked: dict[str, Any]) -> None:
    """Write a walk of the official engine as tests/golden_alfworld/README.md describes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    task = game.task.removeprefix("Your task is to: ").removesuffix(".")
    content = {"task_type": task_type, "task": task, "pddl_problem": problem, **walked}
    path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


def replay_all(folder: Path) -> int:
    """Replay every transcript of a folder; prints and returns the number of differences."""
    files = sorted(folder.glob("*.json.gz"))
    if not files:
        raise UserError(f"no *.json.gz in {folder}; record some with --against-official --record DIR")
    steps = found = 0
    for path in files:
        result = replay(read_transcript(path))
        steps, found = steps + result.steps, found + result.differences
        if result.differences:
            print(f"{path.name}: {result.first}")
    print(f"{len(files)} files, {steps} steps, {found} differences")
    return found
