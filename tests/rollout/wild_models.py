"""Tokenizers and chat templates of the kinds that other people save, small, as a model's directory."""
# ruff: noqa: RUF001 - DeepSeek spells its control tokens with such characters

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from gigpo_mega.coldstart.vocabulary import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}"
    "{% set said = m.content.split('</think>')[-1] %}<｜Assistant｜>{{ said }}<｜end▁of▁sentence｜>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n"
    "{% endif %}"
)
TEMPLATES = {  # template, name of the end token, other control tokens
    "chatml": (CHATML, "<|im_end|>", ("<|im_start|>",)),
    "system": (SYSTEM + CHATML, "<|im_end|>", ("<|im_start|>",)),
    "llama3": (LLAMA3, "<|eot_id|>", ("<|begin_of_text|>", "<|im_start|>")),
    "mistral": (MISTRAL, "</s>", ("<s>", "[INST]", "[/INST]")),
    "r1": (R1, "<｜end▁of▁sentence｜>", ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")),
    "empty thought": (EMPTY_THOUGHT, "<|im_end|>", ("<|im_start|>",)),
}
BEGIN = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "r1": "<｜begin▁of▁sentence｜>"}


def written(folder: Path, *special: str, plain: tuple[str, ...] = (), **settings: Any) -> Path:
    """A byte-level BPE tokenizer with control tokens, flagged special or not, and tokenizer_config.json."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

    train_tokenizer(["go to desk 1, take mug 1 from desk 1"] * 8, 300, folder)
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast.add_tokens([AddedToken(token) for token in plain])
    fast.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", **settings)
    return folder


def edit(file: Path, **changes: Any) -> Path:
    """Change fields of a JSON file."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | changes))
    return file.parent


def id_of(folder: Path, token: str) -> int:
    from tokenizers import Tokenizer as FastTokenizer

    found = FastTokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    assert found is not None
    return found


def theirs(folder: Path, *messages: str) -> list[int]:
    """What transformers makes of a conversation of user and assistant in turn."""
    roles = ("user", "assistant") * len(messages)
    chat = [{"role": role, "content": message} for role, message in zip(roles, messages, strict=False)]
    return reference(folder).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


@cache
def reference(folder: Path) -> Any:
    """Transformers' own tokenizer; takes seconds for a large one."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def listed(content: str, special: bool = True) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, "special": special} | plain
