"""Environments that others wrote, behind our protocol; a module each, imported when it is asked for."""

from __future__ import annotations

import importlib
import json
from typing import Any

from envs.base import EnvironmentError


def required(module: str, extra: str) -> Any:
    """The package `module`; raises EnvironmentError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentError(f"{error}: pip install 'gigpo-mega[{extra}]'") from None


def text_of(value: Any) -> str:
    """`value` itself where it is text, else its JSON with sorted keys; arrays as lists."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
