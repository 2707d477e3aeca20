"""Environments by name: built-in ones, adapters, those of installed packages, and the user's own."""

from __future__ import annotations

import difflib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from envs.base import EnvError, Environment, EnvironmentKind
from envs.imports import imported

GROUP = "gigpo_mega.environments"  # entry points under which installed packages offer theirs
_REGISTRY: dict[str, EnvironmentKind] = {}


def register(name: str, kind: EnvironmentKind | Callable[..., Environment]) -> None:
    """Make `kind`, or a factory of environments whose tasks are seeds, available under `name`.

    Applies to this process and the workers of its runs, which import the factory from its module. Raises
    EnvError if the name is taken.
    """
    if name in _REGISTRY or name in _addresses():
        raise EnvError(f"environment {name!r} is already registered")
    _REGISTRY[name] = _as_kind(name, kind)


def lookup(name: str) -> EnvironmentKind:
    """The environment called `name`: registered, built in, an installed package's, or `module:attribute`.

    Raises EnvError, which lists the known names or says why the environment cannot be imported.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    location = name if ":" in name else _addresses().get(name)
    if location is None:
        known = ", ".join(sorted(_REGISTRY.keys() | _addresses().keys()))
        raise EnvError(f"environment.name: unknown environment {name!r}; known: {known}")
    found = imported(location, "environment.name", "environments", lambda v: isinstance(v, EnvironmentKind))
    return _as_kind(location, found)


def address(name: str) -> str:
    """A name that `lookup` resolves in another process: `name`, or `module:factory` if registered here.

    Raises EnvError if another process cannot import the factory.
    """
    if name not in _REGISTRY:
        return name
    factory = _REGISTRY[name].environment
    module, attribute = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    if module == "__main__" or not attribute or "<" in attribute:
        raise EnvError(
            f"environment.name {name}: worker processes cannot import {attribute or factory!r} "
            f"of {module or 'nowhere'}; define it at the top level of an importable module"
        )
    return f"{module}:{attribute}"


def _addresses() -> dict[str, str]:
    """`module:attribute` of every environment that needs no registration, by name."""
    here = Path(__file__).parent
    offered = {entry.name: f"{entry.module}:{entry.attr}" for entry in entry_points(group=GROUP)}
    adapters = {
        found.name: f"envs.adapters.{found.name}:KIND"
        for found in pkgutil.iter_modules([str(here / "adapters")])
        if not found.name.startswith("_")
    }
    packages = {
        found.name: f"envs.{found.name}:KIND"
        for found in pkgutil.iter_modules([str(here)])
        if found.ispkg and found.name != "adapters"
    }
    return offered | adapters | packages


def _as_kind(name: str, found: Any) -> EnvironmentKind:
    if isinstance(found, EnvironmentKind):
        return found
    factory: Any = found
    if not callable(found):
        raise EnvError(
            f"environment.name {name} is {type(found).__name__}, not an envs.EnvironmentKind "
            "or a factory of environments"
        )
    return EnvironmentKind(factory)


def check_options(
    factory: Callable[..., object], options: Mapping[str, Any], section: str, environment: str
) -> None:
    """Raise EnvError unless `factory` can be called with `options`, those of a configuration's `section`.

    Names the `environment`, the option and what is known: an option that it does not have, one that is
    missing, or a value that is not of the annotated type. Annotations that cannot be read check nothing.
    """
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except Exception:  # an annotation is an expression: it can fail with anything
        parameters = inspect.signature(factory).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name, value in options.items():
        if name in known:
            annotation = parameters[name].annotation
            if not _fits(value, annotation):
                wanted = f"{section}.{name} is {value!r:.80}; it must be {_shown(annotation)}"
                raise EnvError(f"environment {environment}: {wanted}")
        elif not open_ended:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            listed = f"{hint}known: {', '.join(known) or 'none'}"
            raise EnvError(f"environment {environment}: unknown key {section}.{name}; {listed}")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            wanted = f"{section}.{name} is missing; it must be {_shown(parameters[name].annotation)}"
            raise EnvError(f"environment {environment}: {wanted}")


def _fits(value: object, annotation: Any) -> bool:
    """Whether a value from YAML can stand for the type `annotation`: a list for a tuple, 1 for 1.0."""
    from pydantic import TypeAdapter, ValidationError  # workers do without it
    from pydantic.errors import PydanticUserError

    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return True
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    except (PydanticUserError, TypeError):  # of a type or a value that has no form in JSON
        pass
    return True


def _shown(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "given"
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    return re.sub(r"\b(typing|collections\.abc)\.", "", inspect.formatannotation(annotation))
