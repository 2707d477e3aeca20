"""Embeddings in numpy against transformers' BERT, and retrieval by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from envs.base import EnvironmentError
from envs.search.dense import Encoder, gelu, open_dense

TEXTS = ["a river in the north", "a town", "the long, long way from the town to the river, and to the north"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with a tokenizer of whole words."""
    model = tmp_path_factory.mktemp("model")
    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(model / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(model)
    return model


def test_embeddings_are_transformers(folder: Path) -> None:
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = Encoder(folder).encode(TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].mean(0)
        expected = (hidden / hidden.norm()).numpy()
        assert np.abs(vector - expected).max() < 2e-6  # batched with padding, and alone


def test_long_texts_are_cut(folder: Path) -> None:
    encoder = Encoder(folder)
    long = encoder.encode(["town " * 1000, "town " * 30])
    assert np.abs(long[0] - long[1]).max() < 2e-6


def test_gelu() -> None:
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(gelu(x) - exact).max() < 1e-6


def test_a_passage_finds_itself_and_embeddings_are_kept(folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"contents": text}) for text in TEXTS))
    dense = open_dense(corpus, folder)
    for text, hits in zip(TEXTS, dense.search(TEXTS, 2), strict=True):
        assert len(hits) == 2
        assert hits[0].passage.contents == text
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    (kept,) = tmp_path.glob("*.npy")
    before = kept.stat().st_mtime_ns
    assert open_dense(corpus, folder).search(TEXTS, 3) == dense.search(TEXTS, 3)
    assert kept.stat().st_mtime_ns == before


def test_other_models_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EnvironmentError, match="cannot be read as a sentence-embedding model"):
        Encoder(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(EnvironmentError, match="model_type roberta and hidden_act gelu; need bert and gelu"):
        Encoder(tmp_path)
