"""Print the memory of every GPU of a run, the seconds of an iteration, and changes that make the run fit.

Needs no GPU and no model files: `model.path` may name a known model, and so may --model. The exit status is 1
if the run does not fit. docs/planning.md says what is counted and what is assumed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from operator import attrgetter

from gigpo_mega.arguments import COUNT, number
from gigpo_mega.config import Config
from gigpo_mega.config.load import FIELDS, load_config
from gigpo_mega.errors import UserError
from gigpo_mega.planning.devices import DEVICES, Cluster
from gigpo_mega.planning.plan import make, suggest
from gigpo_mega.planning.shapes import NAMED, find
from gigpo_mega.planning.speed import Workload

_MEANS = {
    "episode_steps": ("mean steps of an episode (half of the limit)", "environment.max_steps"),
    "prompt_tokens": ("mean tokens of a prompt (half of the limit)", "rollout.max_prompt_tokens"),
    "response_tokens": ("mean tokens of a response (half of the limit)", "rollout.max_response_tokens"),
}  # what it means, and the field that limits it
_SHARES = {
    "mfu": "share of the GPU's peak compute that large matrix products reach (0.4)",
    "bandwidth": "share of the GPU's peak memory bandwidth that decoding reaches (0.6)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, as text or as JSON; returns 0 if it fits and 1 otherwise."""
    options, rest = _parser().parse_known_args(argv)
    for word in rest:
        name = word.partition("=")[0]
        ours = ["--" + option.replace("_", "-") for option in vars(options)]
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
        if close and name.removeprefix("--") not in FIELDS:
            raise UserError(f"unknown option {name}; did you mean {close[0]}?")
    cfg = load_config(rest, "gigpo-mega plan")
    if (model := options.model or cfg.model.path) is None:
        raise UserError(f"model.path is not set; give it, or --model with one of {', '.join(NAMED)}")
    shape, cluster = find(model), Cluster(DEVICES[options.gpu], options.nodes, options.gpus_per_node)
    work = _workload(cfg, options)
    plan = make(shape, cfg, cluster, work)
    suggestions = [] if plan.fits else suggest(shape, cfg, cluster, work)
    if options.json:
        record = asdict(plan) | {
            "fits": plan.fits,
            "workload": asdict(work),
            "totals": {kind.name: kind.memory.total for kind in plan.kinds},
            "suggestions": [
                {"flags": s.flags, "total": s.plan.kinds[0].memory.total, "seconds": s.plan.seconds.total}
                for s in suggestions
            ],
        }
        print(json.dumps(record, indent=1))
    else:
        from rich.console import Console

        from gigpo_mega.planning.text import page

        console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)  # a pipe has no width
        console.print(page(str(model), shape, cfg, plan, work, suggestions))
    return 0 if plan.fits else 1


def _workload(cfg: Config, options: argparse.Namespace) -> Workload:
    """The workload of `cfg` with what is given; raises UserError for a mean above its limit."""
    given = {name: value for name in (*_MEANS, *_SHARES) if (value := getattr(options, name)) is not None}
    for name, (_, field) in _MEANS.items():
        limit = attrgetter(field)(cfg)
        if given.get(name, 0) > limit:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {given[name]:g} is above {field} {limit}; lower it or raise the limit")
    return replace(Workload.of(cfg), **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gigpo-mega plan",
        description=__doc__,
        usage="%(prog)s CONFIG.yaml [...] [--section.field VALUE ...] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", choices=sorted(DEVICES), default="h100")
    parser.add_argument("--nodes", type=COUNT, default=1)
    parser.add_argument("--gpus-per-node", type=COUNT, default=8)
    parser.add_argument("--model", help=f"Hugging Face directory, hub id, or one of {', '.join(NAMED)}")
    for name, (meaning, _) in _MEANS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=number(float), help=meaning)
    for name, meaning in _SHARES.items():
        parser.add_argument(f"--{name}", type=number(float, 0.01, 1), help=meaning)
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes and seconds")
    return parser
