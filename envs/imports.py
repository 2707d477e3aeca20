"""Objects of the user's modules, by `module:attribute`."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from functools import reduce
from typing import Any

from envs.base import EnvError


def imported(location: str, field: str, what: str, fits: Callable[[object], bool]) -> Any:
    """The object at `location`, `module:attribute`, which `field` names.

    Raises EnvError if there is none, with the names of all that `fits` in the module, which are called
    `what`, and if the module is not found or raises anything when it is imported.
    """
    module, _, attribute = location.partition(":")
    where = f"{field} {location}"
    if not module or not attribute or module.startswith("."):
        raise EnvError(f"{where}: it is no address; give module:attribute")
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            advice = f"run in the folder of {module}.py, or set PYTHONPATH"
            raise EnvError(f"{where}: {error}; {advice}") from None
        raise EnvError(f"{where}: {_told(error)}") from None
    except EnvError:  # says what to do, e.g. which package to install
        raise
    except Exception as error:
        raise EnvError(f"{where}: {_told(error)}") from None
    try:
        return reduce(getattr, attribute.split("."), held)
    except AttributeError as error:
        names = [name for name, value in vars(held).items() if not name.startswith("_") and fits(value)]
        raise EnvError(f"{where}: {error}; {what} there: {', '.join(names) or 'none'}") from None


def _told(error: Exception) -> str:
    """What is wrong in the user's own code, and where; a SyntaxError says that by itself."""
    if isinstance(error, SyntaxError):
        return f"{error}; correct it there"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    advice = "correct it there" + (", or install it" if isinstance(error, ModuleNotFoundError) else "")
    said = f"{type(error).__name__}: {error}"  # a KeyError's text is but the key
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno}); {advice}"
