"""The policy's tokenizer, loaded from a Hugging Face directory without AutoTokenizer's guesses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from gigpo_mega.errors import UserError


class Tokenizer:
    """Text <-> ids of the directory `path`.

    Read from tokenizer.json itself: for model_type "qwen2" AutoTokenizer puts Qwen2Tokenizer in the place of
    any other, and then encodes every text as nothing. Raises UserError where a file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"model.path: {path} has no tokenizer.json; save a fast tokenizer there")
        try:
            self._fast = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"model.path: {file} is no tokenizer: {error}") from None
        self._path = path
        self._settings = _json(path / "tokenizer_config.json")
        self._chat: Any = None
        self.stop_token_ids = self._stops()
        """Ids that end a response: the tokenizer's end token and those that the model's configs declare."""

    def __len__(self) -> int:
        return self._fast.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without added special tokens."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def chat(self, message: str) -> list[int]:
        """The ids of one user message in the chat template, up to where the assistant answers."""
        if self._chat is None:
            self._chat = self._load_chat()
        messages = [{"role": "user", "content": message}]
        text = self._chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def _load_chat(self) -> Any:
        from transformers import PreTrainedTokenizerFast  # here, as it takes seconds to import

        file = self._path / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else self._settings.get("chat_template")
        if not template:
            raise UserError(
                f"environment.prompt alfworld needs a chat template, and {self._path} has none; "
                "use a chat model or environment.prompt compact"
            )
        named = {key: token for key in ("bos_token", "eos_token", "pad_token") if (token := self._token(key))}
        return PreTrainedTokenizerFast(tokenizer_object=self._fast, chat_template=template, **named)

    def _stops(self) -> tuple[int, ...]:
        stops: set[int] = set()
        if (token := self._token("eos_token")) and (stop := self._fast.token_to_id(token)) is not None:
            stops.add(stop)
        for name in ("generation_config.json", "config.json"):
            declared = _json(self._path / name).get("eos_token_id")
            if declared is not None:
                stops.update(declared if isinstance(declared, list) else [declared])
        return tuple(sorted(stops))

    def _token(self, key: str) -> str | None:
        token = self._settings.get(key)
        return token.get("content") if isinstance(token, dict) else token


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
