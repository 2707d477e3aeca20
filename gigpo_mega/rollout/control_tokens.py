"""Control tokens: what frames the messages of a conversation or ends them, and what no text may spell."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenizers import AddedToken

from gigpo_mega.rollout.tokenizer_files import TokenizerFiles

_SHAPE = re.compile(r"<.+>|\[.+\]", re.DOTALL)  # of a control token: <|im_end|>, </s>, [INST]
_TAG = re.compile(r"</?[^<>/|\uff5c]+>")
_THINK = ("<think>", "</think>")


def control_tokens(files: TokenizerFiles, template: str) -> dict[int, str]:
    """The contents of the control tokens by id; `template` is the source of the chat template.

    Whatever the configs name, what is flagged as special, and added tokens that look like one (`<|user|>`).
    The markup of answers is none: `<action>` if `</action>` is a token too, unless the template has it.
    """
    added: Mapping[int, AddedToken] = files.fast.get_added_tokens_decoder()
    contents = {token.content for token in added.values()}

    def is_markup(tag: str, special: bool) -> bool:
        other = f"<{tag[2:]}" if tag.startswith("</") else f"</{tag[1:]}"
        frames = special and tag in template and tag not in _THINK
        return _TAG.fullmatch(tag) is not None and other in contents and not frames

    control: dict[int, str] = {}
    for i, token in added.items():
        special = token.special or token.content in files.special
        if (special or _SHAPE.fullmatch(token.content)) and not is_markup(token.content, special):
            control[i] = token.content
    for i in {*files.declared, *map(files.fast.token_to_id, files.names.values())} - {None}:
        token = files.fast.id_to_token(i)
        if token is not None and (i in added or _SHAPE.fullmatch(token)):
            control[i] = token
    return {i: content for i, content in control.items() if len(content.strip()) > 1}


def guarded_tokens(files: TokenizerFiles, control: Mapping[int, str]) -> set[int]:
    """The control tokens that a text may become without spelling them; none for most tokenizers.

    They are matched after the normalizer, or found by a model that takes whole words. What stands for
    unknown words is not among them.
    """
    added = files.fast.get_added_tokens_decoder()
    normalized = any(i not in added or added[i].normalized for i in control)
    if type(files.fast.model).__name__ == "BPE" and not (files.fast.normalizer is not None and normalized):
        return set()
    unknown = getattr(files.fast.model, "unk_token", None) or files.names.get("unk_token")
    return {i for i, content in control.items() if content != unknown}
