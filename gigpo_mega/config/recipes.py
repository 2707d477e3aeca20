"""What the package ships: configurations by name (`alfworld/qwen2.5-7b`) and the quickstart's policy."""

from __future__ import annotations

import difflib
from pathlib import Path

from gigpo_mega.config.core_yaml import read
from gigpo_mega.errors import ConfigError

_IN_WHEEL = Path(__file__).resolve().parents[1] / "recipes"  # setup.py puts configs/ there
INSTALLED = _IN_WHEEL.is_dir()
FOLDER = _IN_WHEEL if INSTALLED else Path(__file__).resolve().parents[2] / "configs"
PREFIX = "package:"  # of a path in a configuration: it is relative to FOLDER


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of the recipe `name`; raises ConfigError, with the likeliest names, if there is none."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else "see --help"
        raise ConfigError(f"unknown recipe {name!r} ({hint}); a config file must end in .yaml")
    return FOLDER / f"{name}.yaml"


def coldstart_into(policy: Path) -> str | None:
    """The command that makes `policy`, if it is what the cold start of a recipe writes."""
    for name in names():
        recipe = name.removesuffix("_coldstart")
        if recipe != name and Path(read(find(name)).get("output", ""), "policy") == policy:
            return f"gigpo-mega coldstart {recipe} {name}"
    return None


def refuse_absent(file: Path) -> None:
    """Raise ConfigError if `file` is not here but is a recipe's path in a checkout, as pages write it."""
    name = str(file.with_suffix("")).removeprefix("configs/")
    if name in names() and not file.exists():
        raise ConfigError(f"{file} is not in this folder; for the recipe of the package write {name}")


def check_found(recipe: Path) -> None:
    """Raise ConfigError unless `recipe` is a file of the user's that can be read, or the name of a recipe."""
    if recipe.suffix in (".yaml", ".yml"):
        refuse_absent(recipe)
        read(recipe)
    else:
        find(str(recipe))


def resolved(path: str) -> str:
    """`path` itself, or for `package:REST` that file of the package; raises ConfigError if it has none."""
    if not path.startswith(PREFIX):
        return path
    file = FOLDER / path.removeprefix(PREFIX)
    if not file.exists():
        raise ConfigError(f"{path}: the package has no such file; leave out {PREFIX!r} for a path of yours")
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)
