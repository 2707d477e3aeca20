"""The policy's tokenizer, loaded from a Hugging Face directory without AutoTokenizer's guesses."""

from __future__ import annotations

import json
import re
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
        special = [token.content for token in self._fast.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self.stop_token_ids = self._stops()
        """Ids that end a response: the tokenizer's end token and those that the model's configs declare."""

    def __len__(self) -> int:
        return self._fast.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what spells a special token in it is text like any other."""
        return self._encode(self._spelled(text))

    def _encode(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False).ids

    def _spelled(self, text: str) -> str:
        """`text` with a space inside whatever spells a special token, so that it can't end a message."""
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    def chat(self, message: str) -> list[int]:
        """The ids of one user message in the chat template, up to where the assistant answers."""
        return self._encode(self._rendered({"role": "user", "content": self._spelled(message)}))

    def chat_on(self, last: int, message: str) -> list[int]:
        """The ids between an assistant's answer, whose last id was `last`, and its next one."""
        marker = "\N{SYMBOL FOR UNIT SEPARATOR}"
        user, assistant = {"role": "user", "content": marker}, {"role": "assistant", "content": marker}
        said = self._rendered(user, assistant, {"role": "user", "content": self._spelled(message)})
        ids = self._encode(said.split(marker, 2)[2])
        return ids[1:] if ids[:1] == [last] else ids  # the answer ended itself with its end token

    def _rendered(self, *messages: dict[str, str]) -> str:
        if self._chat is None:
            self._chat = self._load_chat()
        return self._chat.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def _load_chat(self) -> Any:
        from transformers import PreTrainedTokenizerFast  # here, as it takes seconds to import

        file = self._path / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else self._settings.get("chat_template")
        if not template:
            raise UserError(
                f"environment.dialogue chat needs a chat template, and {self._path} has none; "
                "use a chat model or environment.dialogue compact"
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
