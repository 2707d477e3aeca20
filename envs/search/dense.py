"""Dense retrieval with a BERT sentence-embedding model (MiniLM, E5, BGE), in numpy alone.

Reads a Hugging Face folder (config.json, model.safetensors, tokenizer.json). Embeddings are mean-pooled and
normalized; those of a corpus are cached in a file next to it. Meant for corpora of up to a few 100,000
passages; for wiki-18 run Search-R1's own retrieval server and give its address.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.base import EnvError
from envs.search.retrieval import Hit, Passage, best, read_corpus

Array = NDArray[np.floating[Any]]
VERSION = 1  # of what `Encoder.encode` computes: another number makes kept embeddings void
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_BATCH_TOKENS = 4096
_LONGEST = 256  # tokens of a text; the rest is not embedded
_PREFIXES = {"e5": ("query: ", "passage: ")}  # by the beginning of the name of the model's folder


class Encoder:
    """A BERT encoder; `encode` gives unit vectors float32[texts, hidden]."""

    def __init__(self, folder: Path) -> None:
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer

            settings, weights, tokenizer = (folder / name for name in _FILES)
            config = json.loads(settings.read_text(encoding="utf-8"))
            tensors = load_file(weights)
            self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # the libraries raise nothing narrower
            raise EnvError(
                f"--dense {folder} cannot be read as a sentence-embedding model: {error}"
            ) from None
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise EnvError(
                f"--dense {folder}: model_type {config.get('model_type')} and hidden_act "
                f"{config.get('hidden_act')}; need bert and gelu"
            )
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._epsilon: float = config["layer_norm_eps"]
        self._tensors = {name.removeprefix("bert."): t.astype(np.float32) for name, t in tensors.items()}
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(_LONGEST, config["max_position_embeddings"]))

    def encode(self, texts: Sequence[str]) -> Array:
        """Longest texts first, in batches of similar length."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        vectors: dict[int, Array] = {}
        while order:
            count = max(1, _BATCH_TOKENS // len(ids[order[0]]))
            chosen, order = order[:count], order[count:]
            vectors.update(zip(chosen, self._batch([ids[i] for i in chosen]), strict=True))
        return np.stack([vectors[i] for i in range(len(texts))])

    def _batch(self, ids: Sequence[Sequence[int]]) -> Array:
        width = max(map(len, ids))
        tokens = np.array([[*row, *([0] * (width - len(row)))] for row in ids])
        mask = np.array([[1.0] * len(row) + [0.0] * (width - len(row)) for row in ids], dtype=np.float32)
        t = self._tensors
        x = (
            t["embeddings.word_embeddings.weight"][tokens]
            + t["embeddings.position_embeddings.weight"][:width]
        )
        x = self._norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._layers):
            x = self._layer(x, mask, f"encoder.layer.{layer}")
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def _layer(self, x: Array, mask: Array, name: str) -> Array:
        parts = (f"{name}.attention.self.{part}" for part in ("query", "key", "value"))
        heads = (*x.shape[:2], self._heads, x.shape[2] // self._heads)
        q, k, v = (self._linear(x, part).reshape(heads).swapaxes(1, 2) for part in parts)
        scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1]))
        scores += (mask[:, None, None] - 1) * np.float32(1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(1, 2).reshape(x.shape)
        attended = self._linear(mixed, f"{name}.attention.output.dense")
        x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, x: Array, name: str) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float32(self._epsilon))
        return scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """x times the normal distribution function; erf by Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return x * 0.5 * (1 + np.sign(x) * (1 - series * np.exp(-z * z)))


class Dense:
    """Finds the passages whose embeddings have the largest inner product with the query's."""

    name = "dense"

    def __init__(
        self, passages: Sequence[Passage], vectors: Array, encoder: Encoder, prefix: str = ""
    ) -> None:
        self.passages = tuple(passages)
        self._vectors, self._encoder, self._prefix = vectors, encoder, prefix

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The `topk` best for each query; ties are broken by position in the corpus."""
        scores = self._encoder.encode([self._prefix + query for query in queries]) @ self._vectors.T
        return [[Hit(self.passages[i], float(row[i])) for i in best(row, topk)] for row in scores]


def open_dense(corpus: Path, folder: Path) -> Dense:
    """Dense retrieval over a corpus; its embeddings are computed once (minutes) and cached next to it.

    The file's name holds the model's, and a digest of the corpus, the model's files and `VERSION`.
    """
    passages, encoder, name = read_corpus(corpus), Encoder(folder), folder.resolve().name
    query, passage = next((found for key, found in _PREFIXES.items() if name.startswith(key)), ("", ""))
    read = [file.read_bytes() for file in (corpus, *(folder / file for file in _FILES))]
    digests = [hashlib.sha256(content).hexdigest() for content in read]
    stamp = hashlib.sha256(json.dumps([VERSION, passage, *digests]).encode()).hexdigest()[:16]
    cache = corpus.with_suffix(f".{name}.{stamp}.npy")
    if not cache.exists():
        partial = cache.with_suffix(f".{os.getpid()}.partial.npy")
        np.save(partial, encoder.encode([passage + one.contents for one in passages]))
        os.replace(partial, cache)
    return Dense(passages, np.load(cache), encoder, query)
