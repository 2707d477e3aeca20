"""Clone an environment's expert: `gigpo-mega coldstart CONFIG.yaml --output DIR` writes `DIR/policy`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gigpo_mega.config.load import load_config
from gigpo_mega.stack import enter


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, clone, and say where the policy is."""
    about = "Clone the environment's expert into a first policy, and write it into policy in output."
    cfg = load_config(sys.argv[1:] if argv is None else argv, "gigpo-mega coldstart", about=about)
    stack = enter(cfg.stack, engine=False)
    from gigpo_mega.coldstart.clone import clone  # torch and megatron: after options and stack

    print(f"policy: {clone(cfg, stack)}")
