"""Print what may stand in the place of the last of WORDS, one a line: what a shell asks when Tab is pressed.

What a command takes is what its `--help` lists, so nothing has to be kept in step with it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from gigpo_mega.program import COMMANDS, OPTIONS

_OPTION = re.compile(r"^ +(?:-\w, )?(--\w[\w.-]*)", re.MULTILINE)
_SUBCOMMANDS = re.compile(r"^  \{([\w,]+)\}$", re.MULTILINE)


def main(argv: Sequence[str]) -> None:
    """Print the candidates; none leaves the shell to complete the names of files."""
    print("\n".join(candidates(argv)))


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words`, which follow `gigpo-mega`, may become: commands, recipes, options, values."""
    *before, current = words or [""]
    return [word for word in _all(before, current.startswith("-")) if word.startswith(current)]


def _all(before: Sequence[str], option: bool) -> list[str]:
    if not before:
        return [*OPTIONS] if option else [*COMMANDS]
    if before[0] not in COMMANDS:
        return []
    if not option and before[-1].startswith("--"):
        return _values(before[-1].removeprefix("--"))
    said = _help(before[0])
    if found := _SUBCOMMANDS.search(said):
        subcommands = found[1].split(",")
        if len(before) == 1:
            return subcommands
        said = _help(before[0], before[1]) if before[1] in subcommands else ""
    if option:
        return list(dict.fromkeys([*_OPTION.findall(said), *_fields(said)]))
    if "CONFIG.yaml" not in said:
        return []
    from gigpo_mega.config import recipes  # pydantic: not for a command that has none

    return recipes.names()


def _help(*words: str) -> str:
    """What the command says with `--help`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[words[0]][0]).main([*words[1:], "--help"])
    return said.getvalue()


def _fields(said: str) -> list[str]:
    """Options for the fields of the configuration, if the command takes them."""
    from gigpo_mega.config.load import FIELDS

    return [f"--{path}" for path in FIELDS] if "--section.field VALUE" in said else []


def _values(path: str) -> list[str]:
    """The values of a field that has only some."""
    from gigpo_mega.config.load import FIELDS

    found = list[str]()
    for kind in FIELDS[path].accepts if path in FIELDS else ():
        if kind is bool:
            found += ["true", "false"]
        elif kind is type(None):
            found.append("null")
        elif not isinstance(kind, type):  # of a Literal, the value itself; within a union, a Literal
            found += map(str, get_args(kind)) if get_origin(kind) is Literal else [str(kind)]
    return found if found != ["null"] else []
