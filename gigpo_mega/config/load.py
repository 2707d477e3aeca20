"""From YAML files and the command line to a checked `Config`, and back.

    python -m gigpo_mega.train configs/x.yaml --advantage.gamma 0.9 --rollout.groups=4 --resume

Files, or names of recipes that the package ships, come first, in order, then the flags, whose values are
YAML. Whatever is wrong ends as a ConfigError of one line that names the field, or file and line.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from envs.base import EnvError
from envs.files import expanded
from gigpo_mega.config import Config, recipes
from gigpo_mega.config.core_yaml import dump, load, read
from gigpo_mega.errors import ConfigError
from gigpo_mega.storage.files import replace_text

_ADAPTER = TypeAdapter(Config)
_FLAG = re.compile(r"--(?P<path>[A-Za-z_]\w*(?:\.[\w-]+)*)(?:=(?P<value>.*))?", re.DOTALL)
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path",
          list: "a list", dict: "a mapping", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Field:
    """A leaf of the configuration."""

    path: str  # e.g. "advantage.gamma"
    annotation: Any
    default: Any
    help: str

    @property
    def accepts(self) -> tuple[Any, ...]:
        """The members of the field's type: itself, or those of a union or a Literal."""
        if get_origin(self.annotation) in (Literal, Union, UnionType):
            return get_args(self.annotation)
        return (self.annotation,)

    @property
    def open(self) -> bool:
        """Whether the field is a mapping with keys of its own."""
        return get_origin(self.annotation) is dict

    @property
    def expected(self) -> str:
        """The type in words."""
        if get_origin(self.annotation) is Literal:
            return "one of " + ", ".join(str(choice) for choice in self.accepts)
        members = [get_args(kind) if get_origin(kind) is Literal else (kind,) for kind in self.accepts]
        return " or ".join(str(_NAMES.get(get_origin(kind) or kind, kind)) for kind in chain(*members))


def _walk(kind: type, prefix: str = "") -> Iterator[Field]:
    hints = get_type_hints(kind)
    described = cast(Any, kind).__pydantic_fields__
    for item in fields(kind):
        path = prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _walk(cast(type, hints[item.name]), path + ".")
            continue
        factory = item.default_factory
        default = item.default if factory is MISSING else factory()
        yield Field(path, hints[item.name], default, described[item.name].description or "")


RENAMED = {
    "steps": "iterations",
    **{f"environment.{name}": f"prompt.{name}" for name in ("dialogue", "context", "history")},
    **{f"engine.{name}": f"weights.{name}" for name in ("bucket_mib", "max_logprob_gap")},
    **{f"{section}.rows": f"{section}.rows_per_update" for section in ("batch", "coldstart")},
    **{f"coldstart.{name}": f"scratch.{name}"
       for name in ("vocabulary", "hidden", "ffn", "layers", "heads", "kv_heads")},
}  # fields of earlier versions, and what they are called now
FIELDS: dict[str, Field] = {item.path: item for item in _walk(Config)}
SECTIONS: dict[str, Any] = {n: kind for n, kind in get_type_hints(Config).items() if is_dataclass(kind)}


def load_config(
    argv: Sequence[str], program: str, others: Mapping[str, str] | None = None, about: str = ""
) -> Config:
    """The configuration that `argv` (without the program's name) asks for.

    `program` is the command as a user types it, shown in the help, and `about` what it does; `others` are
    options that the program has taken out of `argv`, with what they do. Raises ConfigError for anything a run
    could not start with, and SystemExit(0) after `--help`.
    """
    if "-h" in argv or "--help" in argv:
        named = [recipes.find(word) for word in argv if word in recipes.names()]
        sys.stdout.write(describe(program, others or {}, about, named))
        raise SystemExit(0)
    files, flags = _parse(argv)
    tree = _values(files)
    for path, value in flags:
        for name in reversed(path.split(".")):
            value = {name: value}
        _merge(tree, value, source="command line")
    try:
        # Strict JSON mode: no "8" for 8 and no true for 1, yet text for a path and 1 for 1.0.
        return _ADAPTER.validate_json(json.dumps(_expanded(tree), default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(complaints(error, FIELDS)) from None


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, atomically; `load_config([path])` gives an equal one."""
    replace_text(path, dump(config_values(config)))


def config_values(config: Config) -> dict[str, Any]:
    """`config` as nested values of YAML."""
    return _ADAPTER.dump_python(config, mode="json")


def describe(program: str, others: Mapping[str, str], about: str = "", files: Sequence[Path] = ()) -> str:
    """The help text: `about`, `others`, then every field by section, with what it accepts and its value.

    That is the default, or what `files` say.
    """
    values = _values(files)
    lines = [" ".join([f"usage: {program} [CONFIG.yaml | RECIPE ...] [--section.field VALUE ...]",
                       *(f"[{option}]" for option in others)]),
             *textwrap.wrap(about, 100),
             *(f"  {option}  {meaning}" for option, meaning in others.items()), "",
             "Files are read in order, flags win. VALUE is YAML: 3, 1e-6, true, null, [a, b], {key: value}.",
             "Keys of a mapping may be set one by one: --environment.tasks.data FOLDER.",
             *textwrap.wrap(f"Recipes: {', '.join(recipes.names())}.", 100), "", "run"]
    section = ""
    for item in FIELDS.values():
        head = item.path.rpartition(".")[0]
        if head != section:
            section = head
            summary = (SECTIONS[section].__doc__ or "").strip().splitlines()[0]
            lines += ["", f"{section}: {summary}"]
        default = json.dumps(reduce(getitem, item.path.split("."), values))
        help_text = textwrap.fill(item.help, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines += [f"  --{item.path}  {item.expected} [{default}]", help_text]
    return "\n".join(lines) + "\n"


def _values(files: Sequence[Path]) -> dict[str, Any]:
    """The defaults, with `files` laid over them in order."""
    tree: dict[str, Any] = _ADAPTER.dump_python(Config(), mode="json")
    for file in files:
        _merge(tree, read(file), source=str(file))
    return tree


def _parse(argv: Sequence[str]) -> tuple[list[Path], list[tuple[str, Any]]]:
    """Split the arguments into YAML files and (path, value) pairs."""
    files: list[Path] = []
    flags: list[tuple[str, Any]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag = _FLAG.fullmatch(word)
        if flag:
            path = flag["path"]
            text = _operand(path, rest) if flag["value"] is None else flag["value"]
            flags.append((path, _literal(path, text)))
        elif Path(word).suffix in (".yaml", ".yml"):
            recipes.refuse_absent(Path(word))
            files.append(Path(word))
        elif word.startswith("-") or (flags and word not in recipes.names()):
            raise ConfigError(f"unexpected argument {word!r}: give CONFIG.yaml files or names of recipes, "
                              "then --section.field VALUE; --help lists both")
        else:
            files.append(recipes.find(word))
    return files, flags


def _operand(path: str, rest: list[str]) -> str:
    """Take the value of a flag off `rest`; a boolean flag may stand alone."""
    item = FIELDS.get(path)
    alone = not rest or rest[0].lower() not in ("true", "false", "auto")
    if item is not None and bool in item.accepts and alone:
        return "true"
    if not rest or _FLAG.fullmatch(rest[0]):
        _known(path, "command line")
        raise ConfigError(f"--{path} needs a value")
    return rest.pop(0)


def _literal(path: str, text: str) -> Any:
    """A flag's text as a YAML value; a field that takes text gets it as it stands, null or a list if it takes
    that."""
    item = FIELDS.get(path)
    listed = item is not None and text.startswith("[") and any(get_origin(k) is list for k in item.accepts)
    if item is not None and not listed and not {str, Path}.isdisjoint(item.accepts):
        null = text in ("", "~", "null", "Null", "NULL") and type(None) in item.accepts
        return None if null else text
    try:
        return load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--{path}: {text!r} is not a YAML value") from None


def _merge(tree: dict[str, Any], values: Mapping[Any, Any], source: str, prefix: str = "") -> None:
    """Lay `values` over `tree` in place: sections and single keys merge, any other value replaces."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        section = path in SECTIONS
        if not section and not _inside_mapping(path):
            _known(path, source)
        if section and not isinstance(value, Mapping | None):
            raise ConfigError(f"{path} is a section, not a value ({value!r} in {source}); set {path}.<field>")
        if path in FIELDS and not FIELDS[path].open and isinstance(value, Mapping):
            inner = next(iter(cast("Mapping[Any, Any]", value)), "")
            raise ConfigError(f"{path} has no field {inner!r} ({source}): it takes {FIELDS[path].expected}")
        if isinstance(value, Mapping):
            below = tree.get(name)
            tree[name] = below if isinstance(below, dict) else {}
            _merge(tree[name], cast("Mapping[Any, Any]", value), source, path + ".")
        elif not section:
            tree[name] = value


def _inside_mapping(path: str) -> bool:
    return any(item.open and path.startswith(item.path + ".") for item in FIELDS.values())


def _known(path: str, source: str) -> None:
    """Raise ConfigError with the likeliest names unless `path` is a field, or a key of a mapping."""
    if path in FIELDS or _inside_mapping(path):
        return
    if path in RENAMED:
        raise ConfigError(f"{path} ({source}) is called {RENAMED[path]} now")
    names = [*FIELDS, *SECTIONS]
    same_leaf = [name for name in names if name.rpartition(".")[2] == path.rpartition(".")[2]]
    close = list(dict.fromkeys([*same_leaf, *difflib.get_close_matches(path, names, n=3)]))[:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the fields"
    raise ConfigError(f"unknown key {path} ({source}); {hint}")


def _expanded(values: Any, path: str = "") -> Any:
    """`values` with a leading ~ and environment variables replaced in paths and in options that begin so."""
    if isinstance(values, Mapping):
        below = cast("Mapping[str, Any]", values).items()
        return {name: _expanded(value, f"{path}.{name}" if path else name) for name, value in below}
    if isinstance(values, str) and re.search("[\ud800-\udfff]", path + values):
        raise ConfigError(f"{path}: {values!r} holds a surrogate, which is no character; write UTF-8")
    item = FIELDS.get(path)
    is_path = item is not None and Path in item.accepts
    if not isinstance(values, str) or not (is_path or (item is None and values.startswith(("~", "$")))):
        return values
    try:
        return recipes.resolved(expanded(values, path)) if is_path else expanded(values, path)
    except EnvError as error:
        raise ConfigError(str(error)) from None


def complaints(error: ValidationError, fields: Mapping[str, Field]) -> str:
    """What is wrong with values, in one line; what is expected is said by `fields`, of others by pydantic."""
    found: dict[str, None] = {}
    for problem in error.errors():
        if problem["type"] == "value_error":
            found[str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]] = None
            continue
        whole = ".".join(str(part) for part in problem["loc"])
        # Of a union, pydantic names each member that was tried, below the field.
        union = fields.get(whole.rpartition(".")[0])
        path = union.path if union is not None and len(union.accepts) > 1 else whole
        expected = f"expected {fields[path].expected}" if path in fields else problem["msg"].lower()
        found[f"{path}: {expected}, got {problem['input']!r:.200}"] = None
    return "; ".join(found)
