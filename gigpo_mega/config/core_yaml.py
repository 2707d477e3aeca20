"""YAML by its 1.2 core schema: `1e-6` is a number, `no` a word, 010 is ten; no key may come twice."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.reader import ReaderError

from gigpo_mega.errors import ConfigError

_TAGS = "tag:yaml.org,2002:"
_WORDS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}  # of each type the words without quotes that are one, and how they begin
_SECTIONS = "it must hold sections, as in `advantage: {gamma: 0.9}`"


class _Loader(yaml.SafeLoader):
    """Whatever is wrong with a document is a YAMLError."""

    def construct_document(self, node: yaml.Node) -> Any:
        return self.construct_object(node, deep=True)  # at once: finds an alias of what it is part of

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return cast(Any, super()).construct_object(node, deep)
        except (ValueError, LookupError):  # of a scalar with an explicit tag, or with thousands of digits
            kind = node.tag.removeprefix(_TAGS)
            problem = f"{str(node.value)[:40]!r} cannot be read as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values = super().construct_mapping(node, deep)  # refuses keys that are no words
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"key {key.value!r} comes twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return values

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # octal numbers are of YAML 1.1


class _Dumper(yaml.SafeDumper):
    pass


_CORE = {_TAGS + name for name in ("map", "seq", "str", *_WORDS)}
_Loader.yaml_constructors = {t: c for t, c in _Loader.yaml_constructors.items() if t is None or t in _CORE}
_Loader.add_constructor(f"{_TAGS}int", _Loader.construct_integer)
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _type, (_pattern, _first) in _WORDS.items():
    for _schema in (_Loader, _Dumper):
        cast(Any, _schema).add_implicit_resolver(_TAGS + _type, re.compile(f"^(?:{_pattern})$"), list(_first))


def load(text: str) -> Any:
    """The value of a YAML document; raises yaml.YAMLError."""
    return _construct(text, yaml.Node)


def dump(values: Any) -> str:
    """`values` as a YAML document that `load` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The path and the value of everything in nested mappings that is no mapping, or an empty one."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read(file: Path) -> dict[str, Any]:
    """The mapping of sections that a file holds; raises ConfigError with the line of what is wrong."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read config file {file}: {error.strerror}") from None
    try:
        text = content.decode()
        values = _construct(text, yaml.MappingNode)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text") from None
    except ReaderError as error:
        line, character = content.decode()[: error.position].count("\n") + 1, int(error.character)
        raise ConfigError(f"{file}:{line}: character U+{character:04X} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        said = ", ".join(filter(None, (error.context, error.problem)))
        remedy = "; indent with blanks, not with tabs" if "'\\t'" in said else ""
        raise ConfigError(f"{file}{line}: {said}{remedy}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {error}") from None
    if values is None:
        raise ConfigError(f"config file {file} is empty: {_SECTIONS}")
    return values


def _construct(text: str, kind: type[yaml.Node]) -> Any:
    """The value of a document whose root is a `kind`, None if it has no root; raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if not isinstance(root, kind):
            what = type(root).__name__.removesuffix("Node").lower()
            problem = f"the file holds a {what}: {_SECTIONS}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=root.start_mark)
        return loader.construct_document(root)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
