"""Play episodes of adversarial text and audit, to the bit, that what is trained on is what was sampled.

    python tools/fuzz_tokens.py --save docs/benchmarks/fuzz.json

Environments, agents and a fake policy say anything: spelled control tokens, halves of characters, markup, any
ids. Every kind of context is played, the chat endpoint with up to three conversations of an episode at
once; `--served` episodes more are sampled by a real SGLang server. Groups go to disk and back, and the
micro-batches that the learner would compute are compared with what the engine was asked and said: ids,
log-probs and weight versions, each row once. Engine and environment fail now and then. Exits with status 1 if
anything is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gigpo_mega.arguments import COUNT, SEED, number
from gigpo_mega.program import run_main
from gigpo_mega.stack import enter
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish


def main() -> None:
    """Print a line per collection and the counts, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--episodes", type=COUNT, default=10_000, help="with the fake policy")
    options.add_argument("--served", type=number(int, 0), default=240, help="with a real server")
    options.add_argument("--seed", type=SEED, default=0)
    given = options.parse_args()
    enter("cpu", engine=bool(given.served))
    from tools.bench.fuzz.audit import WRONG
    from tools.bench.fuzz.play import fuzz  # torch: after the options

    made = {"benchmark": "fuzz", **provenance("torch", "megatron-core", "sglang", "tokenizers")}
    with TemporaryDirectory() as folder:
        found = fuzz(Path(folder), given.episodes, given.served, given.seed)
    for name, count in found["total"].items():
        print(f"{name:26} {count:,}")
    publish(made | found, given)
    if any(found["total"][name] for name in WRONG):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
