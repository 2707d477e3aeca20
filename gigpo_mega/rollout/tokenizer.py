"""The policy's tokenizer, loaded from a Hugging Face directory without AutoTokenizer's guesses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.rollout.chat_template import ChatTemplate, Message
from gigpo_mega.rollout.control_tokens import control_tokens, guarded_tokens
from gigpo_mega.rollout.pieces import PieceEncoder
from gigpo_mega.rollout.tokenizer_files import TokenizerFiles


class Tokenizer:
    """Text <-> ids of the directory `path`.

    Read from tokenizer.json itself: for model_type "qwen2" AutoTokenizer puts Qwen2Tokenizer in the place of
    any other, and then encodes every text as nothing. Truncation, padding and dropout that tokenizer.json
    keeps from somebody's training do not apply. Raises UserError if a file is missing or unreadable.

    No text spells a control token, and none is part of a decoded text.
    """

    def __init__(self, path: Path) -> None:
        files = TokenizerFiles.read(path)
        self._path, self._fast = path, files.fast
        self._pieces = PieceEncoder.of(files.fast)
        self._template = ChatTemplate.load(path, files.settings, files.names)
        own, named = files.names.get("eos_token"), files.declared
        self._eos = None if own is None else self._fast.token_to_id(own)
        self.stop_token_ids = tuple(sorted({*named, *(() if self._eos is None else (self._eos,))}))
        """Ids that the model's files declare to end a response."""
        if self._eos is None:
            self._eos = next((stop for stop in named if self._fast.id_to_token(stop) is not None), None)
        self._control = control_tokens(files, self._template.source if self._template else "")
        self._guarded = guarded_tokens(files, self._control)
        longest_first = sorted((token.strip() for token in self._control.values()), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @property
    def largest_id(self) -> int:
        """The largest id that a text can be encoded as."""
        return max(self._fast.get_vocab().values(), default=-1)

    @property
    def template(self) -> ChatTemplate:
        """The chat template; raises UserError if there is none."""
        if self._template is None:
            raise UserError(
                f"prompt.dialogue chat needs a chat template, and {self._path} has none, or none called "
                '"default"; use a chat model or prompt.dialogue compact'
            )
        return self._template

    def end(self, chat: bool) -> int:
        """The id that ends an answer: in a chat what closes an assistant's message, else the end token.

        Raises UserError if the model's files declare no end token.
        """
        if chat and self._closing:
            return self._closing[-1]
        if self._eos is None:
            raise UserError(
                f"model.path: {self._path} declares no end token that its tokenizer knows; set eos_token in "
                "tokenizer_config.json or eos_token_id in generation_config.json"
            )
        return self._eos

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what spells a control token in it is text like any other."""
        return self._encode(self._harmless(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens and the end token left out."""
        ids = ids[:-1] if ids and ids[-1] in self.stop_token_ids else ids
        return self._fast.decode([i for i in ids if i not in self._control], skip_special_tokens=False)

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens too."""
        return self._fast.decode(list(ids), skip_special_tokens=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each of `ids`, control tokens too.

        A character that several ids make is the last one's; the others are "".
        """
        texts = list[str]()
        context, done = 0, 0  # the piece before says whether the next one begins with a space
        for end in range(1, len(ids) + 1):
            before, text = self.spelled(ids[context:done]), self.spelled(ids[context:end])
            if text.endswith("\ufffd") and end < len(ids):
                texts.append("")
                continue
            texts.append(text.removeprefix(before))
            context, done = done, end
        return texts

    def chat(self, message: str, tools: Sequence[Message] = ()) -> list[int]:
        """The ids of one user message in the chat template, up to where the assistant answers."""
        return self.conversation([{"role": "user", "content": message}], tools)

    def chat_on(self, last: int, message: str, role: str = "user") -> list[int]:
        """The ids between an assistant's answer, whose last id was `last`, and its next one."""
        return self.following(last, [{"role": role, "content": message}])

    def conversation(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[int]:
        """The ids of a conversation in the chat template, up to where the assistant answers.

        Raises UserError if the template refuses it, or leaves the tools out.
        """
        return self._encode(self.template.conversation(self._cleaned(messages), self._cleaned(tools)))

    def following(self, last: int, messages: Sequence[Message]) -> list[int]:
        """The ids between an answer of the assistant, whose last id was `last`, and its next one, which
        answers `messages`."""
        ids, closing = self._encode(self.template.following(self._cleaned(messages))), self._closing
        ended = closing[-1:] == [last] and ids[: len(closing)] == closing
        return ids[len(closing) :] if ended else ids  # the answer ended itself with its end token

    def _encode(self, text: str) -> list[int]:
        if self._pieces is not None:
            return self._pieces.encode(text)
        return self._fast.encode(text, add_special_tokens=False).ids

    @cached_property
    def _closing(self) -> list[int]:
        """The ids that close an assistant's message, its end token last; [] if the template has none."""
        # A template may close a message only where the next one begins, whose first token may be any.
        template = self.template
        for render, ends in ((template.closing, self._control), (template.between, self.stop_token_ids)):
            try:
                ids = self._encode(render())
            except UserError:  # of a conversation that ends with an answer, or has two questions
                continue
            found = next((at for at, i in enumerate(ids) if i in ends), None)
            if found is not None:
                return ids[: found + 1]
        return []

    def _harmless(self, text: str) -> str:
        """`text` without lone surrogates, and with a space inside whatever spells a control token."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self._spelled is None:
            return text
        while self._spelled.search(text):
            text = self._spelled.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        while spans := self._spans(text):
            for start, end in reversed(spans):
                text = text[:start] + text[end:]
        return text

    def _cleaned(self, value: Any) -> Any:
        """`value`, of JSON's types, with every text in it harmless."""
        if isinstance(value, str):
            return self._harmless(value)
        if isinstance(value, Mapping):
            return {self._harmless(key): self._cleaned(part) for key, part in value.items()}
        if isinstance(value, Sequence):
            return [self._cleaned(part) for part in value]
        return value

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the normalizer makes a control token of something that is spelled otherwise."""
        if not self._guarded:
            return []
        found = self._fast.encode(text, add_special_tokens=False)
        pairs = zip(found.ids, found.offsets, strict=True)
        return [(start, end) for i, (start, end) in pairs if i in self._guarded and start < end]
