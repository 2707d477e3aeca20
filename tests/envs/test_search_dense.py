"""Embeddings in numpy against transformers' BERT, and retrieval by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from envs.base import EnvError
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


def test_embeddings_equal_those_of_transformers(folder: Path) -> None:
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = Encoder(folder).encode(TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].mean(0)
        expected = (hidden / hidden.norm()).numpy()
        assert np.abs(vector - expected).max() < 2e-6  # batched with padding, and alone


def test_texts_are_cut_at_the_models_longest_length(folder: Path) -> None:
    encoder = Encoder(folder)
    long = encoder.encode(["town " * 1000, "town " * 30])
    assert np.abs(long[0] - long[1]).max() < 2e-6


def test_gelu_is_within_1e_6_of_the_exact_function() -> None:
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(gelu(x) - exact).max() < 1e-6


def test_a_passage_finds_itself_and_embeddings_are_kept(folder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    dense = open_dense(corpus, folder)
    for text, hits in zip(TEXTS, dense.search(TEXTS, 2), strict=True):
        assert len(hits) == 2
        assert hits[0].passage.contents == text
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    (file,) = tmp_path.glob("*.npy")
    before = file.stat().st_mtime_ns
    assert open_dense(corpus, folder).search(TEXTS, 3) == dense.search(TEXTS, 3)
    assert file.stat().st_mtime_ns == before


def write_corpus(folder: Path) -> Path:
    corpus = folder / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"contents": text}) for text in TEXTS))
    return corpus


def kept(corpus: Path, model: Path) -> set[str]:
    """The embeddings next to the corpus after `model` was opened, which were those of its own encoder."""
    dense = open_dense(corpus, model)
    prefix = "passage: " if model.name.startswith("e5") else ""
    assert np.array_equal(dense._vectors, Encoder(model).encode([prefix + text for text in TEXTS]))
    return {file.name for file in corpus.parent.glob("*.npy")}


def test_what_another_model_embedded_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, model = write_corpus(tmp_path), tmp_path / "model"
    shutil.copytree(folder, model)
    names = kept(corpus, model)
    assert kept(corpus, model) == names
    assert [name.startswith("corpus.model.") for name in names] == [True]

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = processors.BertProcessing(("[CLS]", 1), ("[SEP]", 2))  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(model / "tokenizer.json"))
    assert len(kept(corpus, model)) == 2  # the same weights, other tokens
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    assert len(kept(corpus, model)) == 3
    shutil.copytree(model, tmp_path / "e5-model")  # whose passages begin with "passage: "
    assert len(kept(corpus, tmp_path / "e5-model")) == 4
    monkeypatch.setattr("envs.search.dense.VERSION", 0)
    assert len(kept(corpus, model)) == 5
    corpus.write_text(corpus.read_text() + "\n")
    assert len(kept(corpus, model)) == 6


def test_models_other_than_bert_with_gelu_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EnvError, match="cannot be read as a sentence-embedding model"):
        Encoder(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(EnvError, match="model_type roberta and hidden_act gelu; need bert and gelu"):
        Encoder(tmp_path)
