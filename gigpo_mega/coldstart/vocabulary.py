"""A small tokenizer for a policy trained from scratch on one environment's text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, EOS = "<|endoftext|>", "<|im_end|>"

# "mug 1" is one object of the world, and one token if it is frequent enough; other words are split off.
_PIECES = Regex(r" ?[a-z]+ \d+| ?[A-Za-z]+| ?\d+|\s| ?[^\sA-Za-z\d]+")


def train_tokenizer(texts: Iterable[str], size: int, directory: Path, chat: str | None = None) -> int:
    """Learn byte-level BPE of at most `size` tokens from `texts`; save it in `directory`, with a template.

    Any text can be encoded, as all bytes are in the vocabulary. Returns the number of tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole = (text.encode("utf-8", "replace").decode() for text in texts)  # without lone surrogates
    tokenizer.train_from_iterator(whole, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": PAD}
    settings |= {} if chat is None else {"chat_template": chat}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return tokenizer.get_vocab_size()
