"""Train again from the groups of a run, without engine and environments.

The weights are the same, on a CPU to the bit, if there are as many processes as the run had.

Every --section.field VALUE changes the configuration of the run. docs/traces.md says which groups are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gigpo_mega import train
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.run.output import differences, lead_elsewhere
from gigpo_mega.storage.journal import Journal

PROGRAM = "gigpo-mega replay"
# NEW starts from nothing, and its groups are those of the run: a copy would only take disk.
_AFRESH = ("--resume", "false", "--checkpoint.groups_gib", "0")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and replay."""
    options, rest = _parser().parse_known_args(argv)
    replay(options.run, options.output, rest)


def replay(source: Path, output: Path, overrides: Sequence[str]) -> None:
    """Train into `output` from the run in `source`; raises UserError unless it has all groups."""
    if not (source / "config.yaml").exists():
        raise UserError(f"{source} is not a run folder: it has no config.yaml; RUN stands before fields")
    if output.resolve() == source.resolve():
        raise UserError(f"--output {output} is the run itself, which stays as it is; choose another folder")
    arguments = [str(source / "config.yaml"), *_AFRESH, *overrides, "--output", str(output)]
    cfg, journal = load_config(arguments, PROGRAM), Journal(source / "groups")
    check_recorded(source, journal, cfg.iterations)
    train.train(cfg, journal)


def check_recorded(source: Path, journal: Journal, iterations: int) -> None:
    """Raise UserError unless `journal` has all iterations before `iterations`, of one configuration."""
    there = [iteration for iteration in range(iterations) if journal.has(iteration)]
    if there == list(range(len(there))) and 0 < len(there) < iterations:
        raise UserError(
            f"{source} has groups of {len(there)} iterations of {iterations}; --iterations {len(there)} "
            "replays them"
        )
    if len(there) < iterations:
        missing = next(iteration for iteration in range(iterations) if iteration not in there)
        raise UserError(
            f"{source} has no groups of iteration {missing} any more; train with --checkpoint.groups_gib "
            "null, which keeps them"
        )
    _check_changes(source, load_config([str(source / "config.yaml")], PROGRAM))


def _check_changes(source: Path, cfg: Config) -> None:
    for path in sorted(source.glob("config.until_*.yaml")):
        changed = list(differences(load_config([str(path)], PROGRAM), cfg))
        if lead_elsewhere(changed):
            names = ", ".join(name for name, _, _ in changed)
            raise UserError(
                f"{source} was resumed with other settings ({names}; {path.name}), and a replay has one "
                "configuration: replay a run that kept its own"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        usage="%(prog)s RUN --output NEW [--section.field VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, which stays as it is")
    parser.add_argument("--output", type=Path, required=True, metavar="NEW", help="folder of the new run")
    return parser
