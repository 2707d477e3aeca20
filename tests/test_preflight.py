"""What a policy's tokenizer and configuration are refused for before anything is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from gigpo_mega.coldstart.scratch import write_scratch
from gigpo_mega.coldstart.vocabulary import train_tokenizer
from gigpo_mega.config import (
    Config,
    EngineConfig,
    EnvironmentConfig,
    ModelConfig,
    PromptConfig,
    RolloutConfig,
    WeightsConfig,
)
from gigpo_mega.errors import UserError
from gigpo_mega.preflight import check, check_tokenizer, check_transport
from gigpo_mega.shape import ModelShape
from gigpo_mega.stack import Stack
from tests.helpers import refused
from tests.tiny import QWEN2

CPU = Stack("cpu", "no driver")
CHAT = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def written(folder: Path, **changes: Any) -> Path:
    """The files of a policy that are read before its weights: 300 tokens, 304 rows, 512 positions."""
    train_tokenizer(["go to desk 1, take mug 1 from desk 1"] * 8, 300, folder)
    tokens = FastTokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    hf = {"model_type": "qwen2", "vocab_size": -(-tokens // 8) * 8, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(QWEN2 | hf | changes))
    return folder


def add_tokens(folder: Path, *tokens: str) -> None:
    file = str(folder / "tokenizer.json")
    fast = FastTokenizer.from_file(file)
    fast.add_tokens([AddedToken(token) for token in tokens])
    fast.save(file)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def config(model: Path, output: Path, prompt: int = 192, response: int = 6, **fields: Any) -> Config:
    return Config(
        environment=EnvironmentConfig(name="sokoban"),
        model=ModelConfig(path=model),
        output=output / "run",
        prompt=replace(PromptConfig(dialogue="compact"), **fields),
        rollout=RolloutConfig(max_prompt_tokens=prompt, max_response_tokens=response),
    )


def refusal(cfg: Config, stack: Stack = CPU) -> str:
    return refused(lambda: check(cfg, stack))


def test_a_policy_that_fits_is_checked_without_torch(tmp_path: Path) -> None:
    model = written(tmp_path)
    assert check(config(model, tmp_path), CPU).model == model
    probe = (
        "import sys; from pathlib import Path; from gigpo_mega.config.load import load_config; "
        "from gigpo_mega.preflight import check; "
        "from gigpo_mega.stack import decide; "
        "check(load_config(sys.argv[1:], 'probe'), decide()); "
        "assert not {'torch', 'megatron', 'sglang'} & set(sys.modules)"
    )
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    options = ("--environment.name", "sokoban", "--prompt.dialogue", "chat", "--model.path", str(model),
               "--rollout.max_prompt_tokens", "192", "--rollout.max_response_tokens", "6",
               "--output", str(tmp_path / "run"))  # fmt: skip
    subprocess.run([sys.executable, "-c", probe, *options], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("count", [1, 60])
def test_added_tokens_beyond_the_embedding_are_refused(tmp_path: Path, count: int) -> None:
    model = written(tmp_path)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokens = FastTokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size()
    add_tokens(model, *(f"<extra_{i}>" for i in range(rows - tokens)))
    check(config(model, tmp_path), CPU)  # a padded embedding has room for some
    add_tokens(model, *(f"<more_{i}>" for i in range(count)))
    line = refusal(config(model, tmp_path))
    assert line.startswith(f"model.path: {model / 'tokenizer.json'} has token ids up to {rows + count - 1}, ")
    assert f"its embedding {rows} rows (vocab_size in config.json); " in line


def test_ids_with_a_gap_count_by_the_largest(tmp_path: Path) -> None:
    model = written(tmp_path)
    file = model / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 5000
    file.write_text(json.dumps(data))
    assert "token ids up to 5000" in refusal(config(model, tmp_path))


@pytest.mark.parametrize(
    ("prompt", "response", "needed"),
    [(500, 100, 602), (400, 112, 514), (505, 6, 513), (506, 1, 513), (512, 1, 519), (2, 509, 513)],
)
def test_prompt_and_response_beyond_what_the_engine_takes_are_refused(
    tmp_path: Path, prompt: int, response: int, needed: int
) -> None:
    model = written(tmp_path)
    lengths = f"rollout.max_prompt_tokens {prompt} + rollout.max_response_tokens {response}"
    assert refusal(config(model, tmp_path, prompt, response)) == (
        f"{lengths} take {needed} positions in SGLang, and the model has 512 (max_position_embeddings of "
        f"{model / 'config.json'}); lower "
        f"rollout.max_prompt_tokens by {needed - 512}"
    )
    fits = config(model, tmp_path, prompt - (needed - 512), response)
    check(fits, CPU)
    check(replace(fits, engine=EngineConfig(max_total_tokens=512)), CPU)
    assert refusal(replace(fits, engine=EngineConfig(max_total_tokens=511))).startswith(
        f"engine.max_total_tokens 511: rollout.max_prompt_tokens {prompt - (needed - 512)} + "
    )


def test_a_policy_from_scratch_has_room_for_the_longest_prompt_that_the_engine_takes(tmp_path: Path) -> None:
    cfg = replace(config(tmp_path, tmp_path, 3000, 4), model=ModelConfig())
    write_scratch(cfg, [], tmp_path)
    assert ModelShape.from_hf(tmp_path).max_positions == 3007
    check_tokenizer(cfg, tmp_path, ModelShape.from_hf(tmp_path))


def test_a_model_without_an_end_token_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path)
    settings = model / "tokenizer_config.json"
    settings.write_text("{}")
    cfg = config(model, tmp_path)
    assert refusal(cfg).startswith(f"model.path: {model} declares no end token that its tokenizer knows; ")
    change(settings, eos_token="</s>")  # which the tokenizer does not know
    assert "declares no end token" in refusal(cfg)
    change(settings, chat_template=CHAT)
    check(replace(cfg, prompt=PromptConfig(dialogue="chat")), CPU)  # the template writes <|im_end|>
    unused = json.loads((model / "config.json").read_text())["vocab_size"] - 1  # a row without a token
    change(model / "config.json", eos_token_id=[unused, 1])
    check(cfg, CPU)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("given", [1000, [1, 151645], 2**31, 2**40, 10**30])
def test_an_end_token_beyond_the_vocabulary_is_refused_with_its_value(
    tmp_path: Path, name: str, given: int | list[int]
) -> None:
    model = written(tmp_path)
    change(model / "config.json", vocab_size=1000)
    if not (model / name).exists():
        (model / name).write_text("{}")
    change(model / name, eos_token_id=999)
    check(config(model, tmp_path), CPU)
    change(model / name, eos_token_id=given)
    largest = given[-1] if isinstance(given, list) else given
    assert refusal(config(model, tmp_path)) == (
        f"model.path: {model} declares the end token {largest}, and its vocabulary has 1000 ids (vocab_size "
        "in config.json); correct eos_token_id in generation_config.json and config.json"
    )


def test_a_missing_or_failing_chat_template_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path)
    cfg = config(model, tmp_path, dialogue="chat")
    assert refusal(cfg).startswith(f"prompt.dialogue chat needs a chat template, and {model} has none")
    change(model / "tokenizer_config.json", chat_template="{{ raise_exception('no') }}")
    assert refusal(cfg).startswith(f"prompt.dialogue chat: the chat template of {model} fails: no; ")
    check(config(model, tmp_path), CPU)  # compact needs none
    change(model / "tokenizer_config.json", chat_template="{{ messages[-1].content }}")
    check(cfg, CPU)
    assert "or prompt.context window" in refusal(config(model, tmp_path, dialogue="chat", context="append"))


def test_an_unknown_dialogue_is_refused(tmp_path: Path) -> None:
    line = refusal(config(written(tmp_path), tmp_path, dialogue="chta"))
    assert line.startswith("prompt.dialogue: unknown dialogue 'chta'; known: ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_files_are_refused(tmp_path: Path, name: str) -> None:
    model = written(tmp_path)
    (model / name).write_bytes((model / name).read_bytes()[:-5])
    line = refusal(config(model, tmp_path))
    assert line.startswith("model.path: ")
    assert str(model / name) in line


@pytest.mark.parametrize(("section", "field", "value", "said"), [
    ("kernels", "backend", "triton", "kernels.backend triton needs CUDA, but the stack is cpu (no driver)"),
    ("model", "layers", "te", "model.layers te needs Transformer Engine, which is not installed"),
    ("engine", "release_memory", True, "engine.release_memory true needs CUDA, but the stack is cpu"),
])  # fmt: skip
def test_what_this_machine_cannot_have_is_refused(
    section: str, field: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gigpo_mega.preflight.find_spec", lambda name: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cfg = config(written(tmp_path), tmp_path)
    cfg = replace(cfg, model=replace(cfg.model, dtype="bfloat16"))
    changed = replace(cfg, **{section: replace(getattr(cfg, section), **{field: value})})  # type: ignore[arg-type]
    assert refusal(changed).startswith(said)


def test_more_ranks_than_gpus_of_a_node_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(written(tmp_path), tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert refusal(cfg, Stack("cuda", "", gpus=2)).startswith(
        "torchrun --nproc-per-node 4 starts more processes than this node has GPUs, 2"
    )
    check(cfg, Stack("cuda", "", gpus=4))
    check(cfg, CPU)  # ranks share the cores


def test_an_engine_that_is_not_installed_is_told_with_the_pinned_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = Config(model=ModelConfig(path=written(tmp_path)), prompt=PromptConfig(dialogue="compact"))
    monkeypatch.setattr("gigpo_mega.preflight.find_spec", lambda name: None)
    with pytest.raises(UserError, match="sglang is not installed") as refused:
        check(cfg, CPU)
    pins = (Path(__file__).parents[1] / "requirements/sglang.txt").read_text()
    (named,) = re.findall(r"sglang==[\d.]+\d", str(refused.value))
    assert f"\n{named}\n" in pins
    with pytest.raises(UserError, match="positions in SGLang"):  # the next check, as the engine is elsewhere
        check(replace(cfg, engine=EngineConfig(url="http://127.0.0.1:1")), CPU)


def test_an_engine_that_cannot_share_the_model_is_refused(tmp_path: Path) -> None:
    cfg = replace(config(written(tmp_path), tmp_path), engine=EngineConfig(tensor=8))
    said = "engine.tensor 8 does not divide the model's 4 attention heads; choose a divisor of 4"
    assert refusal(cfg) == said
    check(replace(cfg, engine=EngineConfig(url="http://127.0.0.1:1", tensor=8)), CPU)  # which is not ours


def test_a_transport_that_does_not_reach_the_engines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(written(tmp_path), tmp_path)
    named = EngineConfig(url=["http://127.0.0.1:30000", "http://localhost:30001", "http://192.0.2.7:30000"])
    away = replace(cfg, engine=named)
    assert refusal(away) == (
        "weights.transport tensor reaches engines on the learner's host alone, and http://192.0.2.7:30000 of "
        "engine.url is elsewhere; set it to broadcast, or to disk with a weights.folder that both hosts see"
    )
    here = replace(cfg, engine=EngineConfig(url=named.urls[:2]))
    for reached in (here, replace(away, weights=WeightsConfig(transport="broadcast"))):
        check(reached, CPU)
    monkeypatch.setenv("RANK", "1")  # which sends nothing to them, and may be on another host
    monkeypatch.setenv("WORLD_SIZE", "2")
    check(replace(away, parallel=replace(cfg.parallel, tensor=2)), CPU)


def test_a_broadcast_to_engines_on_the_learners_gpus_is_refused(tmp_path: Path) -> None:
    cfg = replace(config(written(tmp_path), tmp_path), weights=WeightsConfig(transport="broadcast"))
    with pytest.raises(UserError, match=r"^weights\.transport broadcast needs engines on GPUs of their own"):
        check_transport(replace(cfg, engine=EngineConfig()), Stack("cuda", "", gpus=2))
    check_transport(replace(cfg, engine=EngineConfig(url="http://192.0.2.7:1")), Stack("cuda", "", gpus=2))
    check_transport(replace(cfg, engine=EngineConfig()), CPU)


def test_a_folder_of_weights_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "weights"
    cfg = config(written(tmp_path), tmp_path)
    assert refusal(replace(cfg, weights=WeightsConfig(transport="disk", folder=folder))) == (
        f"weights.folder: {folder} cannot be made, {tmp_path / 'file'} is a file; "
        "choose another weights.folder"
    )
