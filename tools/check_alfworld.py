"""Compare the native ALFWorld engine with the official one: every string, list and flag.

    python tools/check_alfworld.py --transcripts tests/golden_alfworld      # replay recorded walks
    python tools/check_alfworld.py --against-official --json out.json       # play both engines side by side

The second form needs the official engine in the same Python (it compiles a planner, 3-6 minutes); a separate
environment keeps it apart:

    python3.11 -m venv ~/alfworld-oracle
    ~/alfworld-oracle/bin/pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'
    ~/alfworld-oracle/bin/python tools/check_alfworld.py --against-official
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.alfworld.engine import Game, Play, compile_game  # noqa: E402
from envs.alfworld.expert import Expert  # noqa: E402
from envs.alfworld.games import GAME_FILE, SPLITS, TASK_TYPES, read_game  # noqa: E402
from envs.alfworld.generate import make_game  # noqa: E402
from envs.alfworld.scenes import Limits  # noqa: E402
from envs.alfworld.transcripts import differences, read_transcript, replay  # noqa: E402
from envs.alfworld.wheel import load_wheel  # noqa: E402
from envs.base import EnvironmentError  # noqa: E402

REAL = ROOT.parent / "shared" / "data" / "alfworld_real"
ODD = ("look", "inventory", "help", " look ", "LOOK", "go  to", "dance", "", "take", "examine nothing")
QUIET = ("go ", "look", "inventory", "help")
PACKAGES = ("alfworld", "textworld", "fast-downward-textworld")


@dataclass(slots=True)
class Tally:
    """What a comparison has seen so far."""

    games: dict[str, set[Path]] = field(default_factory=dict)  # by origin and task type
    walks: Counter[str] = field(default_factory=Counter)  # by kind of walk
    steps: int = 0
    differences: int = 0
    won: int = 0


class OfficialEngine:
    """The official engine wrapped as the official environment does it: names like "desk 1", no shuffling."""

    def __init__(self) -> None:
        try:
            import textworld  # pyright: ignore[reportMissingImports]
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
            from textworld.envs import PddlEnv  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            wanted = "pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'"
            sys.exit(f"error: the official engine is not installed in {sys.executable} ({error}); {wanted}")
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._environment = AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))

    def load(self, game: Path) -> dict[str, Any]:
        """Loads a game file and returns what its start shows."""
        self._environment.load(str(game))
        state = self._environment.reset()
        return {"feedback": state.feedback, "admissible": state.admissible_commands}

    def step(self, command: str) -> dict[str, Any]:
        """Plays one command and returns what the engine shows."""
        state, _, done = self._environment.step(command)
        shown = {"feedback": state.feedback, "admissible": state.admissible_commands}
        return {"command": command, **shown, "won": bool(state.won), "done": bool(done)}


def expert_walk(play: Play, rng: Random) -> Iterator[str]:
    """The expert's plan with idle and odd commands in between, until the game is won."""
    expert = Expert(play, rng, detour=0.15, explore=rng.random() < 0.5)
    while not play.won:
        if rng.random() < 0.25:
            yield rng.choice(ODD)
        elif rng.random() < 0.1:
            yield f"  {expert.command()} "
        else:
            yield expert.command()


def random_walk(play: Play, rng: Random) -> Iterator[str]:
    """Admissible commands at random, those that change things preferred, with odd ones in between."""
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
    """Plays one walk on both engines: the transcript's intro and steps, and the differences found."""
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
    """(task type, file) of games of all types and splits; every other one in a small room."""
    wheel = load_wheel()
    for i in range(games):
        task_type, split = TASK_TYPES[i % len(TASK_TYPES)], SPLITS[i // len(TASK_TYPES) % len(SPLITS)]
        limits = Limits(8, 10) if i // 18 % 2 else Limits()
        _, game, _ = make_game(wheel, split, task_type, f"{seed}/oracle/{i}", limits)
        path = folder / f"{i}.{GAME_FILE}"
        path.write_text(json.dumps(game), encoding="utf-8")
        yield task_type, path


def genuine() -> Iterator[tuple[str, Path]]:
    """The real game beside the repository, where it is present."""
    for path in sorted(REAL.rglob(GAME_FILE)):
        yield path.parent.parent.name.partition("-")[0], path


def against_official(options: argparse.Namespace) -> int:
    """Plays generated games and the genuine one on both engines; returns the exit status."""
    official, tally, commit = OfficialEngine(), Tally(), _commit()
    with tempfile.TemporaryDirectory() as folder:
        for number, (origin, task_type, path, kind) in enumerate(_walks(options, Path(folder))):
            walk = expert_walk if kind == "expert" else random_walk
            data = read_game(path)
            game = compile_game(data["pddl_domain"], data["grammar"], data["pddl_problem"])
            walked, found = compare(official, path, game, walk, options.steps, f"{options.seed}/{number}")
            _count(tally, f"{origin} {task_type}", path, kind, walked, found)
            if found:
                print(f"{path.name} ({task_type}, {kind} walk): {found[0]}", flush=True)
            if options.record and origin == "generated":
                _record(options.record, f"{options.seed}-{number:05d}", task_type, game, data, walked)
            if number % 10 == 9:
                print(f"{number + 1} walks, {tally.steps} steps, {tally.differences} differences", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps(_summary(tally, commit, options.seed), indent=2) + "\n", encoding="utf-8"
        )
    print(f"{_games(tally)} games, {tally.steps} steps, {tally.differences} differences")
    return int(tally.differences > 0)


def _walks(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Path, str]]:
    """(origin, task type, file, kind of walk): both kinds on the genuine game, one on each generated game."""
    for task_type, path in genuine():
        yield from (("genuine", task_type, path, kind) for kind in ("expert", "random"))
    for number, (task_type, path) in enumerate(generated(options.games, options.seed, folder)):
        yield "generated", task_type, path, ("expert", "random")[number // len(TASK_TYPES) % 2]


def _count(tally: Tally, name: str, path: Path, kind: str, walked: dict[str, Any], found: list[str]) -> None:
    tally.games.setdefault(name, set()).add(path)
    tally.walks[kind] += 1
    tally.steps += len(walked["steps"])
    tally.differences += len(found)
    tally.won += any(step["won"] for step in walked["steps"])


def _record(
    folder: Path, name: str, task_type: str, game: Game, data: dict[str, Any], walked: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    task = game.task.removeprefix("Your task is to: ").removesuffix(".")
    content = {"task_type": task_type, "task": task, "pddl_problem": data["pddl_problem"], **walked}
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))


def _commit() -> str:
    """The commit that is checked out now: the code this process has loaded."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip()


def _summary(tally: Tally, commit: str, seed: int) -> dict[str, Any]:
    return {
        "commit": commit,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "seed": seed,
        "games": {name: len(paths) for name, paths in sorted(tally.games.items())},
        "walks": dict(tally.walks),
        "games_total": _games(tally),
        "walks_won": tally.won,
        "steps": tally.steps,
        "compared": "feedback, admissible commands, won and done after every step",
        "differences": tally.differences,
    }


def _games(tally: Tally) -> int:
    return sum(map(len, tally.games.values()))


def replay_all(folder: Path) -> int:
    """Replays every transcript of a folder; returns the exit status."""
    files = sorted(folder.glob("*.json.gz"))
    if not files:
        sys.exit(f"error: no *.json.gz in {folder}; record some with --against-official --record DIR")
    steps = found = 0
    for path in files:
        result = replay(read_transcript(path))
        steps, found = steps + result.steps, found + result.differences
        if result.differences:
            print(f"{path.name}: {result.first}")
    print(f"{len(files)} files, {steps} steps, {found} differences")
    return int(found > 0)


def main() -> int:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--transcripts", type=Path, metavar="DIR", help="replay the transcripts of a folder")
    mode.add_argument("--against-official", action="store_true", help="play both engines side by side")
    parser.add_argument("--games", type=int, default=306, help="generated games, all six types in turn")
    parser.add_argument("--steps", type=int, default=40, help="longest walk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a summary")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write transcripts of the walks")
    options = parser.parse_args()
    try:
        return replay_all(options.transcripts) if options.transcripts else against_official(options)
    except (EnvironmentError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
