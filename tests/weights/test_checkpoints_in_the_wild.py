"""Hugging Face directories as they are found: computed as transformers does, or refused in one line.

The rows of the table in docs/conversion.md, each against transformers itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import DEFAULTS
from gigpo_mega.learner.rope import rope
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights import convert, verify
from gigpo_mega.weights.sharded import Grid
from tests.weights.directories import (
    ABSENT,
    assert_computes_what_transformers_does,
    configured,
    refusal,
)

FAMILIES = ("qwen2", "qwen3", "llama")
PAGE = Path(__file__).parents[2] / "docs/conversion.md"

LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALED = {
    "linear": LINEAR,
    "llama3": LLAMA3,
    "llama3 of all positions": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
    "yarn": YARN,
    "yarn by the older key": {"type": "yarn"} | {k: v for k, v in YARN.items() if k != "rope_type"},
    "yarn of all positions": {"rope_type": "yarn", "factor": 1.5},
    "yarn with betas": YARN | {"beta_fast": 16, "beta_slow": 2.5},
    "yarn with mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn with one mscale": YARN | {"mscale": 0.7},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn by an integer": YARN | {"factor": 4},
    "yarn with a null": YARN | {"attention_factor": None},
}


# What is computed, and how the fields of the model and of its config.json differ from the tiny policy's.
SAME: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "as transformers 5 writes it": ("qwen2", {}, {}),
    "an old rope_theta beside rope_parameters": ("qwen2", {}, {"rope_theta": 1e6}),
    "rope_theta on its own": ("qwen2", {}, {"rope_parameters": ABSENT, "rope_theta": 500.0}),
    "rope_theta 10.7": ("qwen2", {}, {"rope_parameters": ABSENT, "rope_theta": 10.7}),
    "rope_theta an integer": ("qwen2", {}, {"rope_parameters": ABSENT, "rope_theta": 1000000}),
    "rope_theta in rope_scaling": (
        "llama", {}, {"rope_parameters": None, "rope_scaling": LINEAR | {"rope_theta": 99.5}},
    ),
    "rope_theta beside rope_scaling": (
        "llama", {}, {"rope_parameters": ABSENT, "rope_theta": 77.7, "rope_scaling": YARN},
    ),
    "rope_parameters without rope_theta": (
        "qwen3", {}, {"rope_parameters": {"rope_type": "default"}, "rope_theta": 33.3},
    ),
    "no word of RoPE": ("llama", {}, {"rope_parameters": ABSENT}),
    "rope_scaling null": ("llama", {}, {"rope_parameters": ABSENT, "rope_scaling": None, "rope_theta": 50.5}),
    "rope_scaling as rope_parameters": ("qwen2", {}, {"rope_parameters": YARN, "rope_scaling": YARN}),
    "partial_rotary_factor 1": ("qwen2", {}, {"partial_rotary_factor": 1.0}),
    "head_dim of its own, llama": ("llama", {"head_dim": 12}, {}),
    "head_dim of its own, qwen2": ("qwen2", {"head_dim": 12}, {}),
    "head_dim of its own, qwen3": ("qwen3", {"head_dim": 12}, {}),
    "head_dim absent, llama": ("llama", {}, {"head_dim": ABSENT}),
    "head_dim absent, qwen2": ("qwen2", {}, {"head_dim": ABSENT}),
    "head_dim absent, qwen3: 128": ("qwen3", {}, {"head_dim": ABSENT}),
    "head_dim null, llama": ("llama", {}, {"head_dim": None}),
    "hidden_size no multiple of the heads, qwen2": ("qwen2", {"hidden_size": 34}, {}),
    "num_key_value_heads absent, llama: all": (
        "llama", {"num_key_value_heads": 4}, {"num_key_value_heads": ABSENT},
    ),
    "num_key_value_heads null: all": ("qwen2", {"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    "num_key_value_heads absent, qwen2: 32": (
        "qwen2", {"num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 64},
        {"num_key_value_heads": ABSENT, "num_attention_heads": ABSENT},
    ),
    "one key/value head": ("qwen2", {"num_key_value_heads": 1}, {}),
    "rms_norm_eps absent: 1e-6": ("llama", {}, {"rms_norm_eps": ABSENT}),
    "rms_norm_eps 0.1": ("llama", {"rms_norm_eps": 0.1}, {}),
    "max_position_embeddings absent": ("llama", {}, {"max_position_embeddings": ABSENT}),
    "max_position_embeddings absent, yarn": (
        "llama", {},
        {"max_position_embeddings": ABSENT, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
    ),
    "vocab_size absent: 32000": ("llama", {"vocab_size": 32000}, {"vocab_size": ABSENT}),
    "tie_word_embeddings absent: false": ("qwen2", {}, {"tie_word_embeddings": ABSENT}),
    "tied": ("qwen3", {"tie_word_embeddings": True}, {}),
    "torch_dtype": ("qwen2", {}, {"dtype": ABSENT, "torch_dtype": "float16"}),
    "dtype and torch_dtype": ("qwen2", {}, {"dtype": "bfloat16", "torch_dtype": "float16"}),
    "no dtype": ("qwen2", {}, {"dtype": ABSENT}),
    "architectures absent": ("qwen2", {}, {"architectures": ABSENT}),
    "architectures null": ("qwen2", {}, {"architectures": None}),
    "sliding_window that is not used": (
        "qwen2", {}, {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
    ),
    "layer_types absent": ("qwen3", {}, {"layer_types": ABSENT}),
    "sliding_window in a llama, which ignores it": ("llama", {}, {"sliding_window": 4}),
    "hidden_act absent": ("llama", {}, {"hidden_act": ABSENT}),
    "fields of no meaning": ("qwen2", {}, {"rope_ratio": 2, "my_own": {"x": [1]}}),
    "pretraining_tp": ("llama", {}, {"pretraining_tp": 2}),
    "a padding id of -1": ("llama", {}, {"pad_token_id": -1}),
    "several end tokens": ("qwen2", {}, {"eos_token_id": [1, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_logits_of_a_config_in_the_wild(case: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    family, made, changes = SAME[case]
    hf = configured(policies(family, **made), tmp_path / "hf", changes)
    assert_computes_what_transformers_does(hf, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SCALED)
def test_logits_of_scaled_rope(case: str, family: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"rope_parameters": ABSENT, "rope_scaling": SCALED[case], "rope_theta": 30.5}
    hf = configured(policies(family), tmp_path / "hf", changes)
    assert_computes_what_transformers_does(hf, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", SCALED)
def test_angles_are_transformers_bit_for_bit(
    case: str, family: str, policies: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    changes = {"rope_parameters": SCALED[case] | {"rope_theta": 10000.5}}
    hf = configured(policies(family), tmp_path / "hf", changes)
    theirs: Any = AutoModelForCausalLM.from_pretrained(hf).model.rotary_emb
    angles, magnitude = rope(ModelShape.from_hf(hf))
    assert torch.equal(angles, theirs.inv_freq)
    assert magnitude == theirs.attention_scaling


@pytest.mark.engine  # needs sglang, though no server
@pytest.mark.parametrize("case", SCALED)
def test_the_engine_rotates_by_the_same_angles(
    case: str, policies: Callable[..., Path], tmp_path: Path
) -> None:
    from gigpo_mega.cpu import stubs

    stubs.install()
    from sglang.srt.layers.rotary_embedding.factory import get_rope
    from transformers import AutoConfig

    given = {name: value for name, value in SCALED[case].items() if value is not None}
    hf = configured(policies("qwen3"), tmp_path / "hf", {"rope_parameters": given})
    shape, config = ModelShape.from_hf(hf), AutoConfig.from_pretrained(hf)
    engine: Any = get_rope(
        shape.head_dim, shape.head_dim, shape.max_positions, config.rope_parameters["rope_theta"], True,
        config.rope_parameters, torch.float32,
    )  # fmt: skip
    angles, magnitude = rope(shape)
    both = torch.outer(torch.arange(64.0), angles)
    ours = torch.cat([both.cos(), both.sin()], dim=-1) * magnitude
    assert (engine.cos_sin_cache[:64] - ours).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_an_absent_field_has_the_default_of_transformers(family: str) -> None:
    from transformers import AutoConfig

    theirs: Any = AutoConfig.for_model(family)
    assert {name: getattr(theirs, name) for name in DEFAULTS[family]} == DEFAULTS[family]
    assert theirs.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert (theirs.hidden_act, getattr(theirs, "attention_bias", False)) == ("silu", False)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "rope_scaling yarn beside rope_parameters": ("rope_scaling", {"rope_scaling": YARN}),
    "dynamic": ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "longrope": ("rope_parameters.rope_type", {"rope_parameters": {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}),
    "unknown rope_type": (
        "rope_scaling.rope_type", {"rope_parameters": ABSENT, "rope_scaling": {"type": "su"}},
    ),
    "rope_type null": ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": None}}),
    "rope_type no string": ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": ["yarn"]}}),
    "rope_parameters a list": ("rope_parameters", {"rope_parameters": [1]}),
    "rope_scaling a string": ("rope_scaling", {"rope_scaling": "yarn"}),
    "rope_parameters by layer": (
        "rope_parameters.full_attention", {"rope_parameters": {"full_attention": YARN}},
    ),
    "rope_theta null": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": None}),
    "rope_theta null within": ("rope_parameters.rope_theta", {"rope_parameters": {"rope_theta": None}}),
    "rope_theta a string": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": "10000"}),
    "rope_theta 0": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": 0}),
    "rope_theta negative": ("rope_parameters.rope_theta", {"rope_parameters": {"rope_theta": -1e4}}),
    "rope_theta NaN": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": float("nan")}),
    "rope_theta infinite": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": float("inf")}),
    "rope_theta beyond floats": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": 10**400}),
    "rope_theta true": ("rope_theta", {"rope_parameters": ABSENT, "rope_theta": True}),
    "no factor": ("rope_parameters.factor", {"rope_parameters": {"rope_type": "linear"}}),
    "factor null": ("rope_parameters.factor", {"rope_parameters": YARN | {"factor": None}}),
    "factor 0": ("rope_parameters.factor", {"rope_parameters": LINEAR | {"factor": 0}}),
    "factor below 1": ("rope_parameters.factor", {"rope_parameters": LINEAR | {"factor": 0.5}}),
    "factor a string": ("rope_parameters.factor", {"rope_parameters": LINEAR | {"factor": "4.0"}}),
    "no low_freq_factor": ("rope_parameters.low_freq_factor", {"rope_parameters": {
        "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}),
    "frequencies in the wrong order": (
        "rope_parameters.high_freq_factor", {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}),
    "attention_factor": (
        "rope_parameters.attention_factor", {"rope_parameters": YARN | {"attention_factor": 1.2}},
    ),
    "beta_fast 0": ("rope_parameters.beta_fast", {"rope_parameters": YARN | {"beta_fast": 0}}),
    "linear factor an integer, which the engine cannot take": (
        "rope_parameters.factor", {"rope_parameters": LINEAR | {"factor": 2}}),
    "beta_slow null": ("rope_parameters.beta_slow", {"rope_parameters": YARN | {"beta_slow": None}}),
    "truncate null": ("rope_parameters.truncate", {"rope_parameters": YARN | {"truncate": None}}),
    "original positions null": ("rope_parameters.original_max_position_embeddings", {
        "rope_parameters": YARN | {"original_max_position_embeddings": None}}),
    "original positions a float": ("rope_parameters.original_max_position_embeddings", {
        "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64.0}}),
    "truncate a number": ("rope_parameters.truncate", {"rope_parameters": YARN | {"truncate": 1}}),
    "unknown parameter": ("rope_parameters.attn_factor", {"rope_parameters": YARN | {"attn_factor": 2.0}}),
    "factor without a type": (
        "rope_scaling.factor", {"rope_parameters": ABSENT, "rope_scaling": {"factor": 2.0}},
    ),
    "mrope": (
        "rope_parameters.mrope_section",
        {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    ),
    "original positions outside": ("original_max_position_embeddings", {
        "original_max_position_embeddings": 32, "rope_parameters": YARN}),
    "original positions outside alone": ("original_max_position_embeddings", {
        "original_max_position_embeddings": 32, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "partial_rotary_factor": ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    "partial_rotary_factor within": (
        "rope_parameters.partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.25}}),
    "attention_bias": ("attention_bias", {"attention_bias": True}),
    "attention_bias a number": ("attention_bias", {"attention_bias": 0}),
    "mlp_bias": ("mlp_bias", {"mlp_bias": True}),
    "use_sliding_window": ("use_sliding_window", {"use_sliding_window": True, "sliding_window": 8}),
    "layer_types": ("layer_types", {"layer_types": ["full_attention", "sliding_attention"]}),
    "layer_types of other layers": ("layer_types", {"layer_types": ["full_attention"] * 3}),
    "layer_types a string": ("layer_types", {"layer_types": "full_attention"}),
    "hidden_act": ("hidden_act", {"hidden_act": "gelu"}),
    "hidden_act swish, which the engine refuses": ("hidden_act", {"hidden_act": "swish"}),
    "hidden_act null": ("hidden_act", {"hidden_act": None}),
    "is_causal": ("is_causal", {"is_causal": False}),
    "quantization_config": (
        "quantization_config", {"quantization_config": {"quant_method": "awq", "bits": 4}},
    ),
    "text_config": ("text_config", {"text_config": {"tie_word_embeddings": True}}),
    "per_layer_config": ("per_layer_config", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}),
    "dual_chunk_attention_config": (
        "dual_chunk_attention_config", {"dual_chunk_attention_config": {"chunk_size": 8}},
    ),
    "architectures of a classifier": ("architectures", {"architectures": ["Qwen2ForSequenceClassification"]}),
    "architectures of a base model": ("architectures", {"architectures": ["Qwen2Model"]}),
    "architectures empty": ("architectures", {"architectures": []}),
    "architectures a string": ("architectures", {"architectures": "Qwen2ForCausalLM"}),
    "model_type unknown": ("model_type", {"model_type": "qwen2_moe"}),
    "model_type absent": ("model_type", {"model_type": ABSENT}),
    "model_type null": ("model_type", {"model_type": None}),
    "model_type a list": ("model_type", {"model_type": ["qwen2"]}),
    "dtype unknown": ("dtype", {"dtype": "float8_e4m3fn"}),
    "dtype of torch": ("torch_dtype", {"torch_dtype": "torch.float16"}),
    "dtype a number": ("dtype", {"dtype": 16}),
    "num_attention_heads 0": ("num_attention_heads", {"num_attention_heads": 0}),
    "num_hidden_layers negative": ("num_hidden_layers", {"num_hidden_layers": -2}),
    "num_hidden_layers true": ("num_hidden_layers", {"num_hidden_layers": True}),
    "hidden_size a string": ("hidden_size", {"hidden_size": "32"}),
    "hidden_size a float": ("hidden_size", {"hidden_size": 32.0}),
    "hidden_size null": ("hidden_size", {"hidden_size": None}),
    "vocab_size a list": ("vocab_size", {"vocab_size": [203]}),
    "intermediate_size negative": ("intermediate_size", {"intermediate_size": -64}),
    "max_position_embeddings 0": ("max_position_embeddings", {"max_position_embeddings": 0}),
    "max_position_embeddings null": ("max_position_embeddings", {"max_position_embeddings": None}),
    "head_dim null, qwen2": ("head_dim", {"head_dim": None}),
    "head_dim odd": ("head_dim", {"head_dim": 7}),
    "head_dim 0": ("head_dim", {"head_dim": 0}),
    "num_key_value_heads 3": ("num_key_value_heads", {"num_key_value_heads": 3}),
    "num_key_value_heads absent: 32": ("num_key_value_heads", {"num_key_value_heads": ABSENT}),
    "num_key_value_heads a string": ("num_key_value_heads", {"num_key_value_heads": "2"}),
    "rms_norm_eps null": ("rms_norm_eps", {"rms_norm_eps": None}),
    "rms_norm_eps a string": ("rms_norm_eps", {"rms_norm_eps": "1e-6"}),
    "rms_norm_eps an integer": ("rms_norm_eps", {"rms_norm_eps": 1}),
    "rms_norm_eps 0": ("rms_norm_eps", {"rms_norm_eps": 0.0}),
    "rms_norm_eps NaN": ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
    "tie_word_embeddings null": ("tie_word_embeddings", {"tie_word_embeddings": None}),
    "tie_word_embeddings a string": ("tie_word_embeddings", {"tie_word_embeddings": "false"}),
    "tie_word_embeddings 1": ("tie_word_embeddings", {"tie_word_embeddings": 1}),
    "eos_token_id a string": ("eos_token_id", {"eos_token_id": "2"}),
    "eos_token_id of strings": ("eos_token_id", {"eos_token_id": [1, "2"]}),
    "pad_token_id a list": ("pad_token_id", {"pad_token_id": [0]}),
    # Allowed by themselves, but not with these tensors.
    "hidden_size absent: 4096": ("hidden_size 4096", {"hidden_size": ABSENT}),
    "num_hidden_layers absent: 32": (
        "num_hidden_layers 32", {"num_hidden_layers": ABSENT, "layer_types": ABSENT},
    ),
    "num_hidden_layers 1": ("num_hidden_layers 1", {"num_hidden_layers": 1, "layer_types": ABSENT}),
    "num_attention_heads 8": ("num_attention_heads 8", {"num_attention_heads": 8}),
    "intermediate_size 60": ("intermediate_size 60", {"intermediate_size": 60}),
    "a vocabulary that is padded in the files": ("vocab_size 200", {"vocab_size": 200}),
    "head_dim 16": ("head_dim 16", {"head_dim": 16}),
    "tie_word_embeddings true of another head": ("tie_word_embeddings true", {"tie_word_embeddings": True}),
    "model_type llama for a qwen2": ("q_proj.bias", {"model_type": "llama", "architectures": ABSENT}),
    "model_type qwen3 for a qwen2": ("q_norm.weight", {"model_type": "qwen3", "architectures": ABSENT,
                                                       "head_dim": 8}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_is_refused_by_field(case: str, policies: Callable[..., Path], tmp_path: Path) -> None:
    field, changes = REFUSED[case]
    line = refusal(configured(policies("qwen2"), tmp_path / "hf", changes), tmp_path)
    assert re.search(rf"\b{re.escape(field)}\b", line), line


def test_llama_needs_hidden_size_a_multiple_of_its_heads(
    policies: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"hidden_size": 34, "head_dim": 8}  # transformers raises
    line = refusal(configured(policies("llama"), tmp_path / "hf", changes), tmp_path)
    assert "hidden_size 34; give a multiple of num_attention_heads 4" in line


def test_a_tied_model_whose_config_forgets_it(policies: Callable[..., Path], tmp_path: Path) -> None:
    source = policies("qwen2", tie_word_embeddings=True)
    hf = configured(source, tmp_path / "hf", {"tie_word_embeddings": ABSENT})
    assert "tie_word_embeddings false, but there is no lm_head.weight; set it to true" in refusal(
        hf, tmp_path
    )


def test_a_shape_with_scaled_rope_survives_a_checkpoint(
    policies: Callable[..., Path], tmp_path: Path
) -> None:
    hf = configured(policies("llama"), tmp_path / "hf", {"rope_parameters": YARN | {"rope_theta": 5e5}})
    shape = ModelShape.from_hf(hf)
    assert json.loads(json.dumps(asdict(shape))) == asdict(shape)
    assert {shape: 1}[ModelShape.from_hf(hf)] == 1


def test_what_transformers_cannot_load_is_one_line(policies: Callable[..., Path], tmp_path: Path) -> None:
    hf = configured(policies("llama"), tmp_path / "hf", {"use_cache": "yes"})
    convert.import_hf(hf, tmp_path / "checkpoint", Grid())
    with pytest.raises(UserError, match=r"transformers cannot load .*use_cache.*--bits-only"):
        verify.logits_gap(hf, tmp_path / "checkpoint")


def test_the_page_names_every_field_that_is_refused() -> None:
    page = PAGE.read_text()
    fields = {field.split()[0] for field, _ in REFUSED.values() if not field.endswith((".bias", ".weight"))}
    missing = [field for field in fields if f"`{field.split('.')[-1]}`" not in page]
    assert sorted(missing) == []
