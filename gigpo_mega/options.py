"""From YAML files and the command line to a checked `Config`, and back.

    python -m gigpo_mega.train configs/x.yaml --advantage.gamma 0.9 --rollout.groups=4 --resume

Files come first, in order, then the flags. YAML is read by its 1.2 core schema: `1e-6` is a number, `no` is a
word, and a key may not come twice. Whatever is wrong ends as a ConfigError of one line that names the field.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from gigpo_mega.config import Config
from gigpo_mega.errors import ConfigError

_ADAPTER = TypeAdapter(Config)
_FLAG = re.compile(r"--(?P<path>[A-Za-z_]\w*(?:\.[\w-]+)*)(?:=(?P<value>.*))?", re.DOTALL)
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path",
          list: "a list", dict: "a mapping", type(None): "null"}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"key {key.value!r} comes twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _regexp = re.compile(f"^(?:{_pattern})$")
    for _schema in (_Loader, _Dumper):
        _schema.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, list(_first))


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
        if get_origin(self.annotation) is Literal or type(None) in get_args(self.annotation):
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
        return " or ".join(_NAMES.get(get_origin(kind) or kind, str(kind)) for kind in self.accepts)


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


FIELDS: dict[str, Field] = {item.path: item for item in _walk(Config)}
SECTIONS: dict[str, Any] = {n: kind for n, kind in get_type_hints(Config).items() if is_dataclass(kind)}


def load(argv: Sequence[str], program: str) -> Config:
    """The configuration that `argv` (without the program's name) asks for.

    `program` is the module's dotted name, shown in the help. Raises ConfigError for anything a run could not
    start with, and SystemExit(0) after `--help`.
    """
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(describe(program))
        raise SystemExit(0)
    files, flags = _parse(argv)
    tree: dict[str, Any] = _ADAPTER.dump_python(Config(), mode="json")
    for file in files:
        _merge(tree, _read(file), source=str(file))
    for path, value in flags:
        _merge(tree, _nest(path, value), source="command line")
    return _validate(tree)


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, atomically; `load([path])` gives an equal one."""
    values = _ADAPTER.dump_python(config, mode="json")
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def describe(program: str) -> str:
    """The help text: every field by section, with what it accepts and its default."""
    lines = [f"usage: python -m {program} [CONFIG.yaml ...] [--section.field VALUE ...]", "",
             "Files are read in order, flags win. VALUE is YAML: 3, 1e-6, true, null, [a, b], {key: value}.",
             "Keys of a mapping may be set one by one: --environment.tasks.data FOLDER.", "", "run"]
    section = ""
    for item in FIELDS.values():
        head = item.path.rpartition(".")[0]
        if head != section:
            section = head
            summary = (SECTIONS[section].__doc__ or "").strip().splitlines()[0]
            lines += ["", f"{section}: {summary}"]
        default = json.dumps(item.default, default=str)
        lines += [f"  --{item.path}  {item.expected} [{default}]", f"        {item.help}"]
    return "\n".join(lines) + "\n"


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
        elif word.startswith("-") or Path(word).suffix not in (".yaml", ".yml"):
            raise ConfigError(f"unexpected argument {word!r}: give CONFIG.yaml files and "
                              "--section.field VALUE; --help lists the fields")
        else:
            files.append(Path(word))
    return files, flags


def _operand(path: str, rest: list[str]) -> str:
    """Take the value of a flag off `rest`; a boolean flag may stand alone."""
    item = FIELDS.get(path)
    if item is not None and item.annotation is bool and not (rest and rest[0].lower() in ("true", "false")):
        return "true"
    if not rest or _FLAG.fullmatch(rest[0]):
        _known(path, "command line")
        raise ConfigError(f"--{path} needs a value")
    return rest.pop(0)


def _literal(path: str, text: str) -> Any:
    """A flag's text as a YAML value; a field that takes text gets it as it stands."""
    item = FIELDS.get(path)
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        if item is not None and not {str, Path}.isdisjoint(item.accepts):
            return text
        raise ConfigError(f"--{path}: {text!r} is not a YAML value") from None
    takes_text = item is not None and not {str, Path}.isdisjoint(item.accepts)
    return text if takes_text and value is not None and not isinstance(value, str) else value


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot read config file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {file} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: {error.problem}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"config file {file} must hold a mapping of sections, not {values!r}")
    return values or {}


def _nest(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


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
            _merge(tree[name], value, source, path + ".")
        elif not section:
            tree[name] = value


def _inside_mapping(path: str) -> bool:
    return any(item.open and path.startswith(item.path + ".") for item in FIELDS.values())


def _known(path: str, source: str) -> None:
    """Raise ConfigError with the likeliest names unless `path` is a field, or a key of a mapping."""
    if path in FIELDS or _inside_mapping(path):
        return
    names = [*FIELDS, *SECTIONS]
    same_leaf = [name for name in names if name.rpartition(".")[2] == path.rpartition(".")[2]]
    close = list(dict.fromkeys([*same_leaf, *difflib.get_close_matches(path, names, n=3)]))[:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the fields"
    raise ConfigError(f"unknown key {path} ({source}); {hint}")


def _validate(tree: dict[str, Any]) -> Config:
    try:
        # Strict JSON mode: no "8" for 8 and no true for 1, yet text for a path and 1 for 1.0.
        return _ADAPTER.validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(_complaints(error)))) from None


def _complaints(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        if problem["type"] == "value_error":
            yield str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
            continue
        path = ".".join(str(part) for part in problem["loc"])
        expected = f"expected {FIELDS[path].expected}" if path in FIELDS else problem["msg"].lower()
        yield f"{path}: {expected}, got {problem['input']!r}"
