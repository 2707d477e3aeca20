"""The texts of single tokens make up the text of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models
from wild_models import edit, written

from gigpo_mega.rollout.tokenizer import Tokenizer

VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "\u2581a", "\u2581", "b"]


def byte_fallback(folder: Path) -> Path:
    """As Llama 2 has it: a space begins a word, and the first one is not written."""
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    fast: Any = FastTokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    fast.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    fast.add_special_tokens(["<s>", "</s>"])
    fast.save(str(folder / "tokenizer.json"))
    return edit(folder / "tokenizer_config.json", eos_token="</s>", bos_token="<s>")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_fallback(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(written(tmp_path_factory.mktemp("qwen2")))


@given(st.lists(st.integers(0, 1 << 12), max_size=24))
def test_the_texts_of_tokens_make_up_the_text_of_any_ids(qwen2: Tokenizer, sampled: list[int]) -> None:
    ids = [i % (qwen2.largest_id + 3) for i in sampled]  # some are rows that pad an embedding
    texts = qwen2.tokens(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == qwen2.spelled(ids)


@given(st.lists(st.text(max_size=2) | st.sampled_from([2, 259, 260, 261, 262]), max_size=12))
def test_the_texts_of_tokens_make_up_the_text_of_whole_characters_by_bytes(
    llama: Tokenizer, said: list[str | int]
) -> None:
    """Not of damaged ones: the decoder takes whole characters next to them for damaged, too."""
    pieces = ([3 + byte for byte in part.encode()] if isinstance(part, str) else [part] for part in said)
    ids = [i for piece in pieces for i in piece]
    assert "".join(llama.tokens(ids)) == llama.spelled(ids)


def test_a_character_of_several_tokens_is_the_last_ones(llama: Tokenizer) -> None:
    a, *eye, word, end = [259, *(3 + byte for byte in "看".encode()), 260, 2]
    assert llama.tokens([a, *eye, word, end]) == ["a", "", "", "看", " a", "</s>"]
    assert llama.tokens([a, eye[0]]) == ["a", "\ufffd"]  # an answer that ends within a character
