"""`make quickstart`: an agent learns small ALFWorld rooms on two CPU cores, with the real engine and learner.

Generates the games, takes the cold-start policy that the package ships (`--coldstart` makes it again in a
checkout), trains it by GiGPO and says how the held-out panel went before and after. `--section.field` as for
`gigpo-mega train`.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence

from gigpo_mega.config import Config, recipes
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main
from gigpo_mega.run.output import holds_run
from gigpo_mega.stack import enter
from gigpo_mega.telemetry.report.run_folder import REFERENCE
from gigpo_mega.train import outcome, train

CONFIG, COLDSTART = "quickstart", "quickstart_coldstart"  # recipes
CURVES = recipes.FOLDER / "quickstart_grpo.json"  # the recipe with GRPO, by tools/train_seeds.py --reference
POLICY = recipes.FOLDER / "quickstart_policy"
OPTIONS = {"--coldstart": "clone the expert into the policy again, and train nothing"}


def run(overrides: Sequence[str] = ()) -> None:
    """Train as CONFIG and `overrides` say, and print what came of it."""
    cfg = load_config([CONFIG, *overrides], "gigpo-mega quickstart", OPTIONS)
    if holds_run(cfg.output):
        print(f"resuming {cfg.output}; delete it to start over")
    put_reference(cfg)
    train(dataclasses.replace(cfg, resume="auto"))
    print(outcome(cfg))


def put_reference(cfg: Config) -> None:
    """Copy the recorded curves of GRPO for the run's report, if it plays what they were recorded on."""
    recipe = load_config([CONFIG], "gigpo-mega quickstart")
    played = ("model", "environment", "prompt", "rollout")
    if CURVES.exists() and all(getattr(cfg, part) == getattr(recipe, part) for part in played):
        cfg.output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CURVES, cfg.output / REFERENCE)


def make_policy(overrides: Sequence[str] = ()) -> None:
    """Clone the expert as COLDSTART says and put the policy next to the configuration.

    Raises UserError in an installation, whose files are not the user's to replace.
    """
    cfg = load_config([CONFIG, COLDSTART, *overrides], "gigpo-mega quickstart", OPTIONS)
    if recipes.INSTALLED:
        raise UserError(
            "--coldstart replaces the policy of a checkout; here, `gigpo-mega coldstart quickstart "
            f"quickstart_coldstart` makes one of your own in {cfg.output}"
        )
    stack = enter(cfg.stack, engine=False)
    from gigpo_mega.coldstart.clone import clone  # torch and megatron: after options and stack

    made = clone(cfg, stack)
    shutil.rmtree(POLICY, ignore_errors=True)
    shutil.copytree(made, POLICY)
    print(f"policy: {POLICY}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: with `--coldstart` make the policy instead of training it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--coldstart" in arguments:
        make_policy([word for word in arguments if word != "--coldstart"])
    else:
        run(arguments)


if __name__ == "__main__":
    run_main(main)
