"""What the files of a Hugging Face directory say of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gigpo_mega.errors import UserError

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer and what is said of its tokens; made by `read`."""

    fast: Tokenizer  # tokenizer.json, with the tokens that only tokenizer_config.json lists
    settings: Mapping[str, Any]  # tokenizer_config.json
    names: Mapping[str, str]  # special tokens by name, e.g. {"eos_token": "</s>"}
    special: frozenset[str]  # contents of the tokens that tokenizer_config.json calls special
    declared: tuple[int, ...]  # end tokens of generation_config.json and config.json, in their order

    @classmethod
    def read(cls, path: Path) -> TokenizerFiles:
        """Read the directory `path`; raises UserError if files are missing, damaged or contradictory."""
        fast = _tokenizer(path)
        settings = read_json(path / "tokenizer_config.json")
        listed = _listed(settings)
        _complete(fast, listed, path)
        return cls(
            fast,
            settings,
            _named(read_json(path / "special_tokens_map.json")) | _named(settings),
            _extra(settings) | {token.content for token in listed.values() if token.special},
            declared_end_tokens(path),
        )


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark; raises UserError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.path: cannot read {file}: {error}; download or save it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is no such file; raises UserError if it is damaged."""
    if not file.is_file():
        return {}
    text = read_text(file)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"model.path: {file} is damaged ({error}); download or save it again") from None
    if not isinstance(found, dict):
        raise UserError(f"model.path: {file} holds no JSON object; download or save it again")
    return found


def _tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        others = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (path / name).is_file()]
        only = f", only {others[0]}" if others else ""
        raise UserError(
            f"model.path: {path} has no tokenizer.json{only}; save a fast tokenizer there: "
            f"AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r}) of transformers"
        )
    text = read_text(file)
    try:
        fast = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"model.path: {file} is no tokenizer: {error}") from None
    fast.no_truncation()
    fast.no_padding()
    if getattr(fast.model, "dropout", None):
        fast.model.dropout = None  # pyright: ignore[reportAttributeAccessIssue]
    return fast


def _listed(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The added tokens that tokenizer_config.json lists, by id."""
    listed = settings.get("added_tokens_decoder")
    return {
        int(i): AddedToken(token["content"], **{flag: bool(token.get(flag)) for flag in _FLAGS})
        for i, token in (listed.items() if isinstance(listed, dict) else ())
        if str(i).isdigit() and isinstance(token, dict) and isinstance(token.get("content"), str)
    }


def _complete(fast: Tokenizer, listed: Mapping[int, AddedToken], path: Path) -> None:
    """Add what only tokenizer_config.json lists, as transformers does; UserError if it gets another id."""
    for i, token in sorted(listed.items()):
        if fast.token_to_id(token.content) is None:
            fast.add_tokens([token])
            if (found := fast.token_to_id(token.content)) != i:
                raise UserError(
                    f"model.path: {path} gives {token.content!r} the id {i} in tokenizer_config.json, and "
                    f"{found} is the next one of its tokenizer.json; save the two files together"
                )


def _extra(settings: Mapping[str, Any]) -> frozenset[str]:
    """Contents of the special tokens that have no name of their own."""
    found: set[str] = set()
    for name in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(name) or []
        found.update(map(_content, extra.values() if isinstance(extra, dict) else extra))
    return frozenset(found - {""})


def _named(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a config names."""
    return {name: content for name in _NAMES if (content := _content(settings.get(name)))}


def _content(token: object) -> str:
    """The content of a token that is a string or a serialized AddedToken, else ""."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def declared_end_tokens(path: Path) -> tuple[int, ...]:
    """The end tokens of generation_config.json and config.json, in their order; UserError for no ids."""
    declared: list[int] = []
    for file in (path / "generation_config.json", path / "config.json"):
        found = read_json(file).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(one, int) for one in ids):
            raise UserError(f"model.path: {file} has eos_token_id {found!r}; give an id or a list of ids")
        declared += [one for one in ids if one >= 0]
    return tuple(declared)
