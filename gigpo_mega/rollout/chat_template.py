"""A model's chat template, rendered exactly as transformers renders it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.rollout.tokenizer_files import read_json, read_text

MARK = "\ue000"  # a content to look for in a rendering: private use, so that no template strips or spells it
Message = Mapping[str, Any]  # of a conversation, in OpenAI's form; the arguments of tool calls are mappings
_ASKED: Message = {"role": "user", "content": MARK}
_ANSWERED: Message = {"role": "assistant", "content": MARK}
_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The template `source` of the model in `path`; renderings raise UserError if the template fails."""

    path: Path
    source: str
    tokens: Mapping[str, str]  # special tokens by name, e.g. {"bos_token": "<s>"}

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, Any], tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of `path`, or None; `settings` are those of tokenizer_config.json.

        chat_template.jinja counts before tokenizer_config.json, as for transformers, and that before the
        chat_template.json of old processors; of several templates the one called "default".
        """
        file, old = path / "chat_template.jinja", path / "chat_template.json"
        found: Any = read_text(file) if file.is_file() else settings.get("chat_template")
        if not found and old.is_file():
            found = read_json(old).get("chat_template")
        if isinstance(found, list):
            found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        if isinstance(found, dict):
            found = found.get("default")
        return cls(path, found, tokens) if found and isinstance(found, str) else None

    def conversation(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> str:
        """A conversation up to where the assistant answers; raises UserError if `tools` are not in it."""
        text = self._render(*messages, tools=tools)
        if any(tool["function"]["name"] not in text for tool in tools):
            raise UserError(
                f"the chat template of {self.path} leaves tools out; use a model that was made for tool "
                "calls, or describe them in a message"
            )
        return text

    def following(self, messages: Sequence[Message]) -> str:
        """What lies between an assistant's answer and its next one, which answers `messages`."""
        return self._render(_ASKED, _ANSWERED, *messages).split(MARK, 2)[-1]

    def first(self, message: str) -> str:
        """A conversation of one user message, up to where the assistant answers."""
        return self.conversation([{"role": "user", "content": message}])

    def next(self, message: str) -> str:
        """What lies between an assistant's answer and its next one, which answers the user's `message`."""
        return self.following([{"role": "user", "content": message}])

    def closing(self) -> str:
        """What follows the content of an assistant's message that is the last one."""
        return self._render(_ASKED, _ANSWERED, answering=False).rpartition(MARK)[2]

    def between(self) -> str:
        """What lies between the contents of an assistant's message and of the user's next one."""
        return self.next(MARK).partition(MARK)[0]

    @property
    def thought(self) -> str:
        """The <think> that the template writes for the assistant, open or with an empty block; "" if none."""
        found = _THOUGHT.search(self.first(MARK).rpartition(MARK)[2])
        return found[0] if found else ""

    def check(self, grows: bool) -> None:
        """Raise UserError unless messages are in the renderings; `grows`: whether conversations go on."""
        fits = MARK in self.first(MARK)
        if fits and grows:
            fits = self._render(_ASKED, _ANSWERED, _ASKED).count(MARK) == 3
        if not fits:
            raise UserError(
                f"prompt.dialogue chat: the chat template of {self.path} leaves messages out; use a template "
                "for text" + (", or prompt.context window" if grows else "")
            )

    def _render(self, *messages: Message, answering: bool = True, tools: Sequence[Message] = ()) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template  # lazily: takes a second

        try:
            rendered, _ = render_jinja_template(
                [[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.source,
                add_generation_prompt=answering,
                **self.tokens,  # pyright: ignore[reportArgumentType]
            )
        except Exception as error:  # a template is a program: it can fail with anything
            first, *_ = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"prompt.dialogue chat: the chat template of {self.path} fails: {first}; correct the "
                "template or use prompt.dialogue compact"
            ) from None
        return rendered[0]
