"""What is read of a Hugging Face config.json: every field with its type, range and default.

An absent field has transformers' default for its family. A value that would change what the layers compute,
and is not supported, is refused by name. Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gigpo_mega.errors import UserError

WEIGHTS_INDEX: Final = "model.safetensors.index.json"  # of weights in several files
_COMMON: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
_QWEN: dict[str, Any] = _COMMON | {
    "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}  # fmt: skip
DEFAULTS: Final[dict[str, dict[str, Any]]] = {  # model_type -> transformers' defaults
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "llama": _COMMON | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
}
_CAUSAL_LM = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_MAY_BE_NULL = {("qwen2", "num_key_value_heads"), ("qwen3", "num_key_value_heads"),
                ("llama", "num_key_value_heads"), ("llama", "head_dim")}  # fmt: skip
_THETA, _LARGEST = 10000.0, 1e300
# Absent or exactly this. attention_bias would put a bias on o_proj too.
_ONLY = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu",
         "is_causal": True}  # fmt: skip
# Absent or null. transformers ignores dual_chunk_attention_config, the engine does not.
_NEVER = ("quantization_config", "compression_config", "text_config", "per_layer_config",
          "dual_chunk_attention_config")  # fmt: skip
_DTYPES = ("float32", "float16", "bfloat16")
# rope_type -> parameters that it needs, parameters that it may have. What is missing here is refused:
# dynamic and longrope change with the length of a sequence, and the engine ignores attention_factor.
_ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (("factor",), ("original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
                           "mscale_all_dim", "truncate")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How RoPE differs from its default, in transformers' terms; None: not given."""

    rope_type: str  # linear, llama3 or yarn
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UserError if it is damaged, and FileNotFoundError if it is absent."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}; download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"cannot read {path}: it holds {_shown(found)}, no JSON object; download it again")
    return found


def holds_weights(model: Path) -> bool:
    """Whether a model directory has Hugging Face weights; an imported checkpoint has megatron's only."""
    return any(model.glob("*.safetensors"))


def implied_fields(path: Path) -> dict[str, Any]:
    """What a config.json leaves out for transformers to take from `model_type`, and SGLang does not."""
    fields = read_object(path)
    implied = _CAUSAL_LM.get(str(fields.get("model_type")))
    return {"architectures": [implied]} if implied and fields.get("architectures") is None else {}


class HFConfig:
    """A config.json of a supported family; raises UserError if it is absent, damaged or not supported."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fields = read_object(path)
        except FileNotFoundError:
            wanted = "give a Hugging Face model directory"
            raise UserError(f"model.path: {path} does not exist; {wanted}") from None
        except UserError as error:
            raise UserError(f"model.path: {error}") from None
        self.family: str = self._fields.get("model_type", "")
        if not isinstance(self.family, str) or self.family not in DEFAULTS:
            known = ", ".join(DEFAULTS)
            raise UserError(f"model.path: {path} has model_type {_shown(self.family)}; supported: {known}")
        self._check_fixed()
        self._check_token_ids()

    def size(self, name: str) -> int:
        """A whole number of at least 1."""
        value = self._value(name)
        if type(value) is not int or value < 1:
            raise self.refusal(name, value, "give a whole number of at least 1")
        return value

    def size_or(self, name: str, otherwise: int) -> int:
        """A whole number, or `otherwise` if it is left out, as this family allows."""
        absent = name not in self._fields and name not in DEFAULTS[self.family]
        null = self._fields.get(name, 0) is None and (self.family, name) in _MAY_BE_NULL
        return otherwise if absent or null else self.size(name)

    def epsilon(self) -> float:
        """rms_norm_eps, as a float above 0: transformers takes no whole number."""
        value = self._value("rms_norm_eps")
        if not isinstance(value, float) or not _number(value, above=0):
            raise self.refusal("rms_norm_eps", value, "give a number above 0 with a decimal point")
        return value

    def tied(self) -> bool:
        """tie_word_embeddings."""
        value = self._value("tie_word_embeddings")
        if not isinstance(value, bool):
            raise self.refusal("tie_word_embeddings", value, "give true or false")
        return value

    def rope(self, max_positions: int) -> tuple[float, RopeScaling | None]:
        """RoPE's base, and how it differs from the default."""
        field, rope = self._rope_fields()
        rope_type = rope.get("rope_type", rope.get("type", "default"))  # `type` is the older spelling
        if not isinstance(rope_type, str) or rope_type not in _ROPE_TYPES:
            raise self.refusal(f"{field}.rope_type", rope_type, f"supported: {', '.join(_ROPE_TYPES)}")
        part = "partial_rotary_factor"
        for name, value in ((f"{field}.{part}", rope.get(part)), (part, self._fields.get(part))):
            if value not in (None, 1):
                raise self.refusal(name, value, "supported: 1, rotation of the whole head")
        theta = rope.get("rope_theta", self._fields.get("rope_theta", _THETA))
        if not _number(theta, above=1):
            name = f"{field}.rope_theta" if "rope_theta" in rope else "rope_theta"
            raise self.refusal(name, theta, "give a number above 1")
        given = self._rope_parameters(field, rope, rope_type)
        return float(theta), self._scaling(field, rope_type, given, max_positions)

    def refusal(self, field: str, value: Any, wanted: str) -> UserError:
        """The one line for a value that is not supported."""
        return UserError(f"model.path: {self._path} has {field} {_shown(value)}; {wanted}")

    def _value(self, name: str) -> Any:
        return self._fields[name] if name in self._fields else DEFAULTS[self.family][name]

    def _check_fixed(self) -> None:
        for name, only in _ONLY.items():
            value = self._fields.get(name, only)
            if type(value) is not type(only) or value != only:
                raise self.refusal(name, value, f"supported: {json.dumps(only)}")
        for name in _NEVER:
            if self._fields.get(name) is not None:
                raise self.refusal(name, self._fields[name], "supported: models without it")
        for name in ("dtype", "torch_dtype"):
            if (value := self._fields.get(name)) not in (None, *_DTYPES):
                raise self.refusal(name, value, f"supported: {', '.join(_DTYPES)}")
        architectures = self._fields.get("architectures")
        if architectures not in (None, [wanted := _CAUSAL_LM[self.family]]):  # [] ends SGLang's start
            supported = f"supported: {json.dumps([wanted])}, or leave it out"
            raise self.refusal("architectures", architectures, supported)
        kinds, layers = self._fields.get("layer_types"), self.size("num_hidden_layers")
        full = isinstance(kinds, list) and len(kinds) == layers and set(map(str, kinds)) == {"full_attention"}
        if kinds is not None and not full:
            raise self.refusal("layer_types", kinds, f"supported: full_attention in all {layers} layers")

    def _check_token_ids(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = self._fields.get(name)
            ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
            if value is not None and not all(type(token) is int for token in ids):
                raise self.refusal(name, value, "give a token id")

    def _rope_fields(self) -> tuple[str, dict[str, Any]]:
        """The name of the field with RoPE's parameters, and what it holds."""
        held: dict[str, dict[str, Any]] = {}
        for field in ("rope_scaling", "rope_parameters"):  # of transformers 4 and 5
            value = self._fields.get(field)
            if value is not None and not isinstance(value, dict):
                raise self.refusal(field, value, "give an object or leave it out")
            if value:
                held[field] = value
        if len(held) == 2 and held["rope_scaling"] != held["rope_parameters"]:
            raise self.refusal("rope_scaling", held["rope_scaling"], "rope_parameters is another, which "
                               "transformers would ignore; put all of it into rope_parameters")  # fmt: skip
        return next(iter(held.items()), ("rope_parameters", {}))

    def _rope_parameters(self, field: str, rope: dict[str, Any], rope_type: str) -> dict[str, Any]:
        """The parameters of a rope_type, each checked."""
        required, optional = _ROPE_TYPES[rope_type]
        outside = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # read before
        given = dict.fromkeys(required) | {name: rope[name] for name in rope if name not in outside}
        for name, value in given.items():
            if wanted := _rope_fault(rope_type, name, value):
                raise self.refusal(f"{field}.{name}", value, wanted)
        return {name: value for name, value in given.items() if name in required or name in optional}

    def _scaling(
        self, field: str, rope_type: str, given: dict[str, Any], max_positions: int
    ) -> RopeScaling | None:
        if rope_type == "default":
            return None
        low, high = (given.get(f"{end}_freq_factor", 0) for end in ("low", "high"))
        if rope_type == "llama3" and high <= low:
            raise self.refusal(f"{field}.high_freq_factor", high, f"give more than low_freq_factor {low}")
        if (outside := "original_max_position_embeddings") in _ROPE_TYPES[rope_type][1]:
            value = self._fields.get(outside, given.get(outside))
            if value != given.get(outside):  # which transformers reads, and the engine does not
                raise self.refusal(outside, value, f"give it within {field}")
            given = {outside: max_positions} | given
        return RopeScaling(rope_type, **given)


def _rope_fault(rope_type: str, name: str, value: Any) -> str:
    """What a parameter of RoPE should be instead, or nothing."""
    required, optional = _ROPE_TYPES[rope_type]
    if name not in required and name not in optional:
        return "" if value is None else f"rope_type {rope_type} is supported without it"
    if name == "truncate":  # to transformers null is false here
        return "" if isinstance(value, bool) else "give true or false"
    if name == "original_max_position_embeddings":
        return "" if type(value) is int and value > 0 else "give a whole number of at least 1"
    if name != "factor":
        return "" if _number(value, above=0) else "give a number above 0"
    if rope_type == "linear" and type(value) is int:
        return "give it a decimal point: SGLang takes no whole number"
    return "" if _number(value, above=1, included=True) else "give a number of at least 1"


def _number(value: Any, above: float, included: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return False  # NaN and infinity too, which Python's JSON knows
    return value > above or (included and value == above)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
