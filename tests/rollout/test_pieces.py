"""The cache of pieces gives the ids of the tokenizer itself, for any text."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from real_qwen import write_qwen
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from gigpo_mega.rollout.pieces import PieceEncoder

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("1", "2"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("'", "s")]
ALPHABETS = (
    "abcthe 12\n",
    " \n\r\t",
    "'sStTlLrRvVeE ",
    "".join(map(chr, range(32, 127))) + "\n\r\t",
    "the \x1c\x0b\x85\xa0é你\u0301\u2028",  # white space and letters that ASCII does not have
)
CUT_BY = {
    "GPT-2": ByteLevel(add_prefix_space=False, use_regex=True),
    "SmolLM2": Sequence([Digits(individual_digits=True), ByteLevel(False, use_regex=True)]),
    "Llama 3": Sequence([Split(Regex(LLAMA), "isolated"), ByteLevel(False, use_regex=False)]),
}
UNKNOWN = {
    "prefix space": ByteLevel(add_prefix_space=True, use_regex=True),
    "numbers first": Sequence([Digits(individual_digits=False), ByteLevel(False, use_regex=True)]),
    "removed": Sequence([Split(Regex(r"\s+"), "removed"), ByteLevel(False, use_regex=False)]),
    "other classes": Sequence([Split(Regex(r"\p{Lu}|."), "isolated"), ByteLevel(False, use_regex=False)]),
    "a pattern with gaps": Sequence([Split(Regex(r"\p{L}+"), "isolated"), ByteLevel(False, use_regex=False)]),
    "white space": pre_tokenizers.Whitespace(),
    "none": None,
}


def tokenizer(cut: Any, normalizer: Any = None, *added: AddedToken) -> Tokenizer:
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {name: i for i, name in enumerate([*letters, *("".join(pair) for pair in MERGES)])}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    made.pre_tokenizer = cut
    made.normalizer = normalizer
    made.add_tokens(list(added))
    return made


def check(fast: Tokenizer, words: tuple[str, ...] = ("",)) -> None:
    encoder, random = PieceEncoder.of(fast), Random(1)
    assert encoder is not None
    for alphabet in ALPHABETS:
        for _ in range(400):
            parts = [random.choice([*words, "".join(random.choices(alphabet, k=random.randrange(9)))])
                     for _ in range(random.randrange(9))]  # fmt: skip
            text = "".join(parts)
            assert encoder.encode(text) == fast.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("cut", CUT_BY)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_pieces_are_the_tokenizer_s(cut: str, normalizer: Any) -> None:
    tags = ("<a>", "<a>b", "<|end|>", " the", "<1>")
    fast = tokenizer(CUT_BY[cut], normalizer, *(AddedToken(tag, normalized=False) for tag in tags))
    check(fast, tags)


def test_pieces_of_qwen_are_its_tokenizer_s(tmp_path: Path) -> None:
    fast = Tokenizer.from_file(str(write_qwen(tmp_path / "qwen") / "tokenizer.json"))
    check(fast, ("<|im_start|>", "<|im_end|>", "<tool_call>", "go to desk 12", "'S", "\n\n"))


@pytest.mark.parametrize("cut", UNKNOWN)
def test_other_tokenizers_have_none(cut: str) -> None:
    assert PieceEncoder.of(tokenizer(UNKNOWN[cut])) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_take_their_surroundings_have_none(flag: str) -> None:
    token = AddedToken("<a>", normalized=False, **{flag: True})
    assert PieceEncoder.of(tokenizer(CUT_BY["GPT-2"], None, token)) is None


def test_a_normalizer_that_changes_ascii_has_none() -> None:
    assert PieceEncoder.of(tokenizer(CUT_BY["GPT-2"], normalizers.Lowercase())) is None


def test_the_cache_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gigpo_mega.rollout.pieces._MOST_PIECES", 50)
    check(tokenizer(CUT_BY["GPT-2"]))
    encoder = PieceEncoder.of(tokenizer(CUT_BY["GPT-2"]))
    assert encoder is not None
    for number in range(1000):
        encoder.encode(f"a{number}")
    assert len(encoder._known) <= 53
