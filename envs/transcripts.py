"""The result of replaying recorded episodes of an original environment in ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replay:
    """How many steps were compared, how many differences were found, and a description of the first one."""

    steps: int
    differences: int
    first: str = ""
