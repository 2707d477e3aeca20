"""Compare the native ALFWorld engine with the official one: every string, list and flag.

    python tools/check_alfworld.py --transcripts tests/golden_alfworld      # replay recorded walks
    python tools/check_alfworld.py --against-official --save out.json       # play both engines side by side

The second form needs the official engine in the same Python (installing it compiles a planner, 3-6 minutes).
Keep it in an environment of its own, which needs nothing else:

    python3.11 -m venv ~/alfworld-oracle
    ~/alfworld-oracle/bin/pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'
    ~/alfworld-oracle/bin/python -m tools.check_alfworld --against-official

The exit status is 1 if anything differs.
"""

from __future__ import annotations

from pathlib import Path

from gigpo_mega.arguments import COUNT, SEED, number
from gigpo_mega.program import run_main
from tools.oracles.alfworld import Comparison, against_official, replay_all
from tools.records import parser, publish


def main() -> int:
    """Replay, or compare and publish the record; prints the differences."""
    options = parser(__doc__)
    mode = options.add_mutually_exclusive_group(required=True)
    mode.add_argument("--transcripts", type=Path, metavar="DIR", help="replay the transcripts of a folder")
    mode.add_argument("--against-official", action="store_true", help="play both engines side by side")
    options.add_argument(
        "--games", type=number(int, 0), default=306, help="generated games, all six types in turn"
    )
    options.add_argument("--genuine", type=Path, metavar="DIR", help="folder with genuine games to play too")
    options.add_argument("--steps", type=COUNT, default=40, help="longest walk")
    options.add_argument("--seed", type=SEED, default=0)
    options.add_argument("--record", type=Path, metavar="DIR", help="write transcripts of the walks")
    given = options.parse_args()
    if given.transcripts:
        return int(replay_all(given.transcripts) > 0)
    found = against_official(Comparison(given.games, given.steps, given.seed, given.genuine, given.record))
    print(f"{found['games_total']} games, {found['steps']} steps, {found['differences']} differences")
    publish(found, given)
    return int(found["differences"] > 0)


if __name__ == "__main__":
    run_main(main)
