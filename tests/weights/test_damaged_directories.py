"""Files that are damaged, absent or of another format: one line that names the file, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gigpo_mega.errors import UserError
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights import convert
from gigpo_mega.weights.huggingface import HFReader
from gigpo_mega.weights.sharded import Grid
from tests.weights.directories import assert_computes_what_transformers_does, configured, refusal

FAMILIES = ("qwen2", "qwen3", "llama")
# What a damaged config.json holds, and what the line says.
DAMAGED_CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value"),
    "cut off": (b'{"model_type": "qwen2", "hidden', "Unterminated string"),
    "a list": (b"[]", r"it holds \[\], no JSON object"),
    "null": (b"null", "it holds null, no JSON object"),
    "a string": (b'"qwen2"', "no JSON object"),
    "no text": (bytes(range(128, 256)), "decode byte"),
    "with a byte order mark": (b'\xef\xbb\xbf{"model_type": "qwen2"}', "BOM"),
    "UTF-16": ('{"model_type": "qwen2"}'.encode("utf-16"), "decode byte"),
    "nested without end": (b"[" * 100_000, "recursion"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Expecting value"),
    "a number of 10,000 digits": (b'{"vocab_size": 1' + b"0" * 10_000 + b"}", "digits"),
}


@pytest.mark.parametrize("case", DAMAGED_CONFIGS)
def test_a_damaged_config(case: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    content, reason = DAMAGED_CONFIGS[case]
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    (hf / "config.json").write_bytes(content)
    line = refusal(hf, tmp_path)
    assert line.startswith(f"model.path: cannot read {hf}/config.json: ")
    assert re.search(reason, line), line


def test_a_config_that_is_a_folder_or_absent(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    (hf / "config.json").unlink()
    assert "config.json does not exist; give a Hugging Face model directory" in refusal(hf, tmp_path)
    (hf / "config.json").mkdir()
    assert "Is a directory" in refusal(hf, tmp_path)


SIDE_FILES: dict[str, tuple[bytes, ...]] = {
    "tokenizer.json": (b"", b"{}", b"[]", b'{"version": "1.0", "model": {"type": "BPE", "vo', b"\xff\xfe"),
    "tokenizer_config.json": (b"", b'{"eos_token": ', b"[1]", b"\xff"),
    "generation_config.json": (b"", b"{'eos_token_id': 2}", b"null", b"7"),
    "special_tokens_map.json": (b"{", b'"<s>"'),
    "added_tokens.json": (b"{]", b"[]"),
    "vocab.json": (b'{"a": 0,', b"[]"),
    "merges.txt": (b"\xff\xfe\xfd",),
    "chat_template.jinja": (b"\xff\xfe\xfd",),
}


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_damaged_side_file_is_named(name: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    convert.import_hf(hf, tmp_path / "checkpoint", Grid())
    for content in SIDE_FILES[name]:
        (hf / name).write_bytes(content)
        assert refusal(hf, tmp_path).startswith(f"cannot read {hf}/{name}: "), content
        with pytest.raises(UserError, match=f"cannot read {hf}/{name}: "):
            convert.export_hf(tmp_path / "checkpoint", hf, tmp_path / "back")
        assert not (tmp_path / "back").exists()


def test_a_side_file_that_is_a_folder_or_a_dead_link(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    (hf / "tokenizer.model").symlink_to(
        tmp_path / "blobs/1234"
    )  # the hub's cache after its blobs were removed
    assert f"cannot read {hf}/tokenizer.model: " in refusal(hf, tmp_path)
    (hf / "tokenizer.model").unlink()
    (hf / "vocab.json").mkdir()
    assert f"cannot read {hf}/vocab.json: " in refusal(hf, tmp_path)


INDEX = "model.safetensors.index.json"


def split(hf: Path) -> dict[str, str]:
    """Two files and their index; returns its weight map."""
    held = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(held)}
    for file in set(where.values()):
        save_file({name: held[name] for name in held if where[name] == file}, hf / file)
    (hf / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"{}", b'{"weight_map": null}', b'{"weight_map": []}',
                b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {"a": null}}', b"\xff"],
)  # fmt: skip
def test_a_damaged_index_is_named(content: bytes, policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    split(hf)
    (hf / INDEX).write_bytes(content)
    assert INDEX in refusal(hf, tmp_path)


def test_files_with_an_index(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("llama"), tmp_path / "hf", {})
    split(hf)
    assert_computes_what_transformers_does(hf, tmp_path)


def test_weights_beside_an_index_of_others(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    split(hf)
    shutil.copy(policies("qwen2") / "model.safetensors", hf)
    assert "holds model.safetensors, which transformers reads, and" in refusal(hf, tmp_path)


def test_a_tensor_in_two_files(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    split(hf)
    first, second = sorted(hf.glob("model-*"))
    held = load_file(second)
    save_file(held | {"model.norm.weight": torch.ones(32)}, second)
    save_file(load_file(first) | {"model.norm.weight": torch.ones(32)}, first)
    assert "both hold model.norm.weight" in refusal(hf, tmp_path)


def test_safetensors_with_a_damaged_header(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    file = hf / "model.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    damaged = [b"", b"\0", whole[:8], whole[: 8 + size // 2], b"\xff" * 8 + whole[8:], bytes(64),
               (size + 1).to_bytes(8, "little") + whole[8:], b"version https://git-lfs.github.com/spec/v1\n",
               b"PK\x03\x04" + whole, whole + b"\0"]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, 8 + size, (40,), generator=generator).tolist():
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    for content in damaged:
        file.write_bytes(content)
        assert str(file) in refusal(hf, tmp_path)
    file.unlink()
    file.mkdir()
    assert str(file) in refusal(hf, tmp_path)


def test_pickled_weights_are_refused_with_what_to_do(policies: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    held = load_file(hf / "model.safetensors")
    torch.save(held, hf / "pytorch_model.bin")
    (hf / "model.safetensors").unlink()
    line = refusal(hf, tmp_path)
    assert "holds pytorch_model.bin but no model.safetensors; load it with transformers'" in line
    model: Any = AutoModelForCausalLM.from_pretrained(hf)  # what the line says
    model.save_pretrained(tmp_path / "again")
    assert_computes_what_transformers_does(tmp_path / "again", tmp_path)


def test_adapters_beside_weights(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    (hf / "adapter_config.json").write_text("{}")  # transformers would add them, if PEFT is installed
    assert "adapter_config.json is of adapters; merge them" in refusal(hf, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_half_precision(
    dtype: torch.dtype, family: str, policies: Callable[..., Path], tmp_path: Path
) -> None:
    hf = configured(policies(family), tmp_path / "hf", {})
    held = {name: tensor.to(dtype) for name, tensor in load_file(hf / "model.safetensors").items()}
    save_file(held, hf / "model.safetensors", {"format": "pt"})
    assert_computes_what_transformers_does(hf, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn], ids=str)
def test_weights_of_another_type_are_no_policy(
    dtype: torch.dtype, policies: Callable[..., Path], tmp_path: Path
) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    held = load_file(hf / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(held | {name: held[name].to(dtype)}, hf / "model.safetensors", {"format": "pt"})
    assert re.search(rf"holds {name} of type \w+; supported: F32, F16, BF16", refusal(hf, tmp_path))
    with pytest.raises(UserError, match="supported: F32"):  # what a run reads directly
        HFReader(hf).check(ModelShape.from_hf(hf))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.up_proj.bias",
                                  "v_head.weight", "model.layers.0.mlp.up_proj.weight_scale"])  # fmt: skip
def test_a_tensor_too_many(name: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("qwen2"), tmp_path / "hf", {})
    held = load_file(hf / "model.safetensors")
    save_file(held | {name: torch.zeros(32)}, hf / "model.safetensors", {"format": "pt"})
    assert f"holds {name}, which no qwen2 policy has" in refusal(hf, tmp_path)


def test_old_buffers_of_rope_are_not_read(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("llama"), tmp_path / "hf", {})
    held = load_file(hf / "model.safetensors")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(held | buffer, hf / "model.safetensors", {"format": "pt"})
    assert_computes_what_transformers_does(hf, tmp_path)
