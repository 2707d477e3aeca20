"""A plan as text for a terminal: tables, a bar for each kind of GPU, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gigpo_mega.config import Config
from gigpo_mega.planning.devices import GIB
from gigpo_mega.planning.memory import Memory, whole
from gigpo_mega.planning.plan import Plan, Suggestion
from gigpo_mega.planning.speed import Workload, rows, updates
from gigpo_mega.shape import ModelShape

BAR = 72  # characters
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


def page(
    model: str,
    shape: ModelShape,
    cfg: Config,
    plan: Plan,
    work: Workload,
    suggestions: Sequence[Suggestion],
) -> Group:
    """The whole plan, as `gigpo-mega plan` prints it."""
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
    parts = [memory_table(plan), memory_bars(plan), assumed, seconds_table(plan)]
    closing = verdict(plan, cfg.lends_memory, suggestions)
    return Group(head, *(x for part in parts for x in ("", part)), "", *closing)


def memory_table(plan: Plan) -> Table:
    """GiB of each part of memory, by kind of GPU."""
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


def memory_bars(plan: Plan) -> Group:
    """A bar for each kind of GPU, to scale, with a mark below the limit."""
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


def seconds_table(plan: Plan) -> Table:
    """Seconds of each part of an iteration."""
    table = Table(box=None, pad_edge=False)
    parts = {part.name: getattr(plan.seconds, part.name) for part in fields(plan.seconds)}
    ahead = parts.pop("ahead")
    for name in (*parts, f"[bold]total{', rollout beside learning' if ahead else ''}[/]"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.1f}" for value in parts.values()), f"[bold]{plan.seconds.total:.0f}[/]")
    return table


def verdict(plan: Plan, lent: bool, suggestions: Sequence[Suggestion]) -> Iterator[str]:
    """Lines that say whether the run fits, why not, and which changes make it fit.

    The memory of the engine's cache is `lent` to the learner during updates, or not.
    """
    if plan.engine is not None:
        kept = ", not during updates" if lent else ""
        yield (
            f"engine: {plan.engine.count} server(s) of {plan.engine.gpus} GPU(s), whose cache holds "
            f"{plan.engine.tokens} tokens, {plan.engine.cache / GIB:.2f} GiB{kept}"
        )
    if plan.fits:
        spare = plan.limit - plan.kinds[0].memory.total
        yield f"[bold green]fits[/]: {spare / GIB:.1f} GiB spare on the fullest GPU"
        return
    yield from (f"[bold red]does not fit[/]: {problem}" for problem in plan.problems)
    for s in suggestions:
        yield (
            f"  fits with [bold]{' '.join(s.flags)}[/]: {s.plan.kinds[0].memory.total / GIB:.1f} GiB, "
            f"{s.plan.seconds.total:.0f} s per iteration"
        )
    if not suggestions:
        yield "  no three changes make it fit: use more nodes, larger GPUs or a smaller model"
