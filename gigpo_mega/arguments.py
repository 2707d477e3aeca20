"""Numbers on the command line of programs that use argparse: refused outside their limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def number(kind: type[_Number], least: float = 1, most: float = 10**9) -> Callable[[str], _Number]:
    """A `type` for argparse: a number from `least` to `most`, both included.

    It raises ArgumentTypeError with value and limits; argparse adds the option and exits with status 2.
    """
    wanted = f"an integer from {least} to {most}" if kind is int else f"a number from {least:g} to {most:g}"

    def convert(text: str) -> _Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:  # also not, if it is no number
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text[:40]!r}")
        return value

    return convert


COUNT = number(int)
SEED = number(int, 0, 2**32 - 1)
PORT = number(int, 1, 65535)
