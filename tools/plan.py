"""What a run will take: memory of every kind of GPU, seconds of an iteration, knobs that make it fit.

    python tools/plan.py configs/alfworld/qwen2.5-7b.yaml --gpu h100 --nodes 1 [--section.field VALUE ...]

Needs neither a GPU nor the model's files: `model.path` may name a known model, and so may `--model`. Status 1
where the run does not fit. docs/planning.md says what is counted and what is assumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from gigpo_mega import options
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.planning.devices import DEVICES, GIB, Cluster
from gigpo_mega.planning.memory import Memory, whole
from gigpo_mega.planning.plan import Plan, Suggestion, make, suggest
from gigpo_mega.planning.shapes import NAMED, find
from gigpo_mega.planning.speed import Workload, rows, updates

BAR = 72
COLORS = {
    "weights": "blue",
    "gradients": "cyan",
    "optimizer": "green",
    "reference": "magenta",
    "activations": "yellow",
    "logprob": "red",
    "engine_weights": "bright_blue",
    "engine_cache": "bright_cyan",
    "runtime": "bright_black",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; 0 where it fits."""
    arguments, rest = _parser().parse_known_args(argv)
    cfg = options.load(rest, "tools/plan.py")
    if (model := arguments.model or cfg.model.path) is None:
        raise UserError(f"model.path is not set; give it, or --model with one of {', '.join(NAMED)}")
    shape, cluster = find(model), Cluster(DEVICES[arguments.gpu], arguments.nodes, arguments.gpus_per_node)
    assumed = {f.name: getattr(arguments, f.name) for f in fields(Workload)}
    work = replace(Workload.of(cfg), **{name: value for name, value in assumed.items() if value is not None})
    plan = make(shape, cfg, cluster, work)
    suggestions = [] if plan.fits else suggest(shape, cfg, cluster, work)
    if arguments.json:
        print(json.dumps(_record(plan, suggestions, work), indent=1))
    else:
        # A pipe has no width of its own.
        console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
        console.print(_page(str(model), shape, cfg, plan, work, suggestions))
    return 0 if plan.fits else 1


_ASSUMED = {
    "episode_steps": "steps of an episode, on average (half of the limit)",
    "prompt_tokens": "tokens of a prompt, on average (half of the limit)",
    "response_tokens": "tokens of a response, on average (half of the limit)",
    "mfu": "share of the GPU's peak that large products reach (0.4)",
    "bandwidth": "share of its memory's peak that decoding reaches (0.6)",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        usage="plan.py CONFIG.yaml [...] [--section.field VALUE ...] [options]",
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", choices=sorted(DEVICES), default="h100")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--model", help=f"Hugging Face directory, or one of {', '.join(NAMED)}")
    for name, meaning in _ASSUMED.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, help=meaning)
    parser.add_argument("--json", action="store_true", help="numbers, in bytes and seconds")
    return parser


def _record(plan: Plan, suggestions: list[Suggestion], work: Workload) -> dict[str, Any]:
    return asdict(plan) | {
        "fits": plan.fits,
        "workload": asdict(work),
        "totals": {kind.name: kind.memory.total for kind in plan.kinds},
        "suggestions": [
            {"flags": s.flags, "total": s.plan.kinds[0].memory.total, "seconds": s.plan.seconds.total}
            for s in suggestions
        ],
    }


def _page(
    model: str, shape: ModelShape, cfg: Config, plan: Plan, work: Workload, suggestions: list[Suggestion]
) -> Group:
    parallel, cluster = cfg.parallel, plan.cluster
    head = (
        f"[bold]{model}[/]  {whole(shape) / 1e9:.2f} B parameters, {cfg.model.dtype}\n"
        f"{cluster.nodes} x {cluster.per_node} {cluster.device.name}: tensor {parallel.tensor} x pipeline "
        f"{parallel.pipeline} x context {parallel.context} x data {plan.data}, "
        f"{plan.microbatches} micro-batch(es) of {cfg.batch.microbatch_tokens} tokens per update"
    )
    assumed = (
        f"Seconds of an iteration: {rows(cfg, work):.0f} rows of {work.prompt_tokens:g} + "
        f"{work.response_tokens:g} tokens, {updates(cfg, work)} update(s), at {work.mfu:.0%} of peak compute "
        f"and {work.bandwidth:.0%} of bandwidth"
    )
    parts = [_memory(plan), _bars(plan), assumed, _time(plan)]
    return Group(head, *(x for part in parts for x in ("", part)), "", *_verdict(plan, suggestions))


def _memory(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("GiB on a GPU")
    for kind in plan.kinds:
        table.add_column(f"{kind.count} x {kind.name}", justify="right")
    for part in fields(Memory):
        sizes = [getattr(kind.memory, part.name) for kind in plan.kinds]
        if any(sizes):
            table.add_row(part.name.replace("_", " "), *(f"{size / GIB:.2f}" for size in sizes))
    table.add_row("[bold]total[/]", *(f"[bold]{kind.memory.total / GIB:.2f}[/]" for kind in plan.kinds))
    table.add_row("limit", *(f"{plan.limit / GIB:.2f}" for _ in plan.kinds))
    return table


def _bars(plan: Plan) -> Group:
    """A bar for each kind of GPU, to scale, over a mark at the limit."""
    scale = BAR / max(plan.limit, plan.kinds[0].memory.total)
    label = max(len(kind.name) for kind in plan.kinds)
    lines: list[Text] = []
    for kind in plan.kinds:
        bar = Text(f"{kind.name:<{label}} ")
        done = 0.0
        for part in fields(Memory):
            start, done = done, done + getattr(kind.memory, part.name) * scale
            bar.append("█" * (round(done) - round(start)), style=COLORS[part.name])
        bar.append("░" * (round(plan.limit * scale) - round(done)), style="dim")
        lines.append(bar)
    lines.append(Text(f"{'▲ limit':>{label + round(plan.limit * scale) + 7}}", style="dim"))
    legend = Text()
    for part in fields(Memory):
        legend.append("█ ", style=COLORS[part.name])
        legend.append(part.name.replace("_", "\u00a0") + "  ")
    return Group(*lines, legend)


def _time(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    parts = [*fields(plan.seconds)]
    for part in parts:
        table.add_column(part.name, justify="right")
    table.add_column("[bold]total[/]", justify="right")
    values = [getattr(plan.seconds, part.name) for part in parts]
    table.add_row(*(f"{value:.1f}" for value in values), f"[bold]{plan.seconds.total:.0f}[/]")
    return table


def _verdict(plan: Plan, suggestions: list[Suggestion]) -> Iterator[str]:
    if plan.engine is not None:
        yield f"engine: {plan.engine.gpus} GPU(s), its cache holds {plan.engine.tokens} tokens"
    if plan.fits:
        spare = plan.limit - plan.kinds[0].memory.total
        yield f"[bold green]fits[/]: {spare / GIB:.1f} GiB spare on the fullest GPU"
        return
    yield from (f"[bold red]does not fit[/]: {problem}" for problem in plan.problems)
    for s in suggestions:
        yield (
            f"  fits with [bold]{' '.join(s.flags)}[/]: {s.plan.kinds[0].memory.total / GIB:.1f} GiB, "
            f"{s.plan.seconds.total:.0f} s an iteration"
        )
    if not suggestions:
        yield "  no change of up to three knobs makes it fit: more nodes, a larger GPU or a smaller model"


if __name__ == "__main__":
    run_main(main)
