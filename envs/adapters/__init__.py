"""Adapters of third-party environments to our interface; each module is imported when it is selected."""

from __future__ import annotations

import importlib
import json
from typing import Any

from envs.base import EnvError


def required(module: str, extra: str) -> Any:
    """The package `module`; raises EnvError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvError(f"{error}: pip install 'gigpo-mega[{extra}]'") from None


def text_of(value: Any) -> str:
    """`value` itself if it is text, else its JSON with sorted keys; arrays become lists."""

    def plain(item: Any) -> Any:
        return item.tolist() if hasattr(item, "tolist") else str(item)

    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=plain)
