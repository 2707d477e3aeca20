"""A small Qwen2 policy from nothing: a tokenizer trained on the games' text, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.base import Demonstration
from envs.dialogue import Dialogue, choose
from envs.registry import lookup
from gigpo_mega.coldstart.vocabulary import EOS, train_tokenizer
from gigpo_mega.config import Config
from gigpo_mega.rollout.engines.base import positions_needed

CHAT = (  # of few tokens: of a tool it shows no more than the name and the description
    "{% for tool in tools or [] %}{{ tool.function.name }}: {{ tool.function.description }}\n{% endfor %}"
    "{% if tools %}" + EOS + "\n{% endif %}"
    "{% for message in messages %}{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{\"name\": {{ call.function.name | tojson }}, "
    "\"arguments\": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}" + EOS + "\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


def write_scratch(cfg: Config, demonstrations: Sequence[Demonstration], directory: Path) -> None:
    """Write tokenizer and config.json of the policy that `cfg.scratch` describes; it has no weights yet.

    It has a chat template if `prompt.dialogue` is a chat.
    """
    size, dialogue = cfg.scratch, choose(lookup(cfg.environment.name), cfg.prompt.dialogue)
    longest = positions_needed(cfg.rollout.max_prompt_tokens, cfg.rollout.max_response_tokens)
    texts = _texts(demonstrations, dialogue)
    tokens = train_tokenizer(texts, size.vocabulary, directory, CHAT if dialogue.chat else None)
    hf = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": -(-tokens // 64) * 64,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": max(2048, longest),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": cfg.model.dtype,
    }
    (directory / "config.json").write_text(json.dumps(hf, indent=1))


def _texts(demonstrations: Sequence[Demonstration], dialogue: Dialogue) -> Iterator[str]:
    turns = [turn for demonstration in demonstrations for turn in demonstration.turns]
    for observation, action in turns:
        yield from (f"Task: {observation.instruction}", observation.text, f"> {action}")
        yield from (f" {admissible}," for admissible in observation.admissible)
    for _, action in turns if dialogue.chat else ():  # what the messages of a chat hold besides
        yield f"{dialogue.reply_role}\n"
        yield f"assistant\n{dialogue.answer(action)}"
