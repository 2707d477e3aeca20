"""A word-level tokenizer for tests, written as a Hugging Face directory's files."""

from __future__ import annotations

import json
from pathlib import Path

CHAT = (
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def write_tokenizer(directory: Path, words: str, chat: str | None = None) -> Path:
    """Ids in order: <pad> 0, <eos> 1, <user> 2, <bot> 3, then `words`; unknown words become <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<eos>", "<user>", "<bot>"]
    vocabulary = dict.fromkeys([*special, *words.split()])
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast.decoder = decoders.WordPiece(prefix="##")  # pyright: ignore[reportAttributeAccessIssue]
    fast.add_special_tokens(special)
    directory.mkdir(parents=True, exist_ok=True)
    fast.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": {"content": "<eos>"}, "tokenizer_class": "Qwen2Tokenizer"}
    if chat is not None:
        settings["chat_template"] = chat
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": 1}))
    return directory
