"""Adapters in one process: their formula and gradient, what they leave alone, what is exported of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gigpo_mega.config import Config, LoraConfig
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import ConfigError, UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner import lora, torch_adam
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.model import build_model, transformer_config
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights import adapter, convert
from gigpo_mega.weights import live as weights
from gigpo_mega.weights.huggingface import HFReader
from tests.learner import ranks
from tests.learner.ranks import Place
from tests.learner.test_parallel import QWEN_1_5B
from tests.tiny import random_steps, write_policy

pytestmark = pytest.mark.distributed
RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    cfg = ranks.config(rank=RANK, alpha=ALPHA)
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    layout = parallel.initialize(cfg.parallel, seed=0)
    yield Place(cfg, policy, tmp_path_factory.mktemp("output"), layout)
    parallel.shutdown()


@pytest.fixture(scope="module")
def trained(place: Place) -> Learner:
    """A learner after two iterations, with a checkpoint of them."""
    made = ranks.learner(place)
    for iteration in range(2):
        ranks.iterate(made, place.cfg, iteration)
    Checkpoints(place.folder, place.cfg.checkpoint).save(made)
    return made


def scores(learner: Learner, reference: bool = False) -> np.ndarray[Any, Any]:
    batches = learner.pack(random_steps(ranks.ROWS), np.arange(ranks.ROWS))
    return np.concatenate(learner.score(batches, reference))


def plain(place: Place, source: Path) -> Learner:
    """A learner without adapters and with the weights of a Hugging Face directory."""
    made = Learner(ranks.config(), ModelShape.from_hf(source), place.layout)
    weights.load(made.policy, made.shape, place.layout, source)
    return made


@pytest.mark.parametrize("kind", [lora.ColumnParallelLora, lora.RowParallelLora])
def test_value_and_gradient_are_those_of_the_formula(kind: Any, place: Place) -> None:
    """W x + alpha / rank * B (A x), against autograd in float64."""
    config = transformer_config(ModelShape.from_hf(place.policy), place.cfg)
    split = {"input_is_parallel": True} if kind is lora.RowParallelLora else {}
    layer = kind(24, 40, config=config, init_method=torch.nn.init.normal_, bias=False,
                 skip_bias_add=True, **split)  # fmt: skip
    lora.freeze(layer)
    layer.reset("here", 0, 0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.lora_b.normal_(generator=rng)
    x = torch.randn(7, 1, 24, generator=rng, requires_grad=True)
    upstream = torch.randn(7, 1, 40, generator=rng)
    found, _ = layer(x)
    found.backward(upstream)

    exact = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.lora_a, layer.lora_b)]
    wide, w, a, b = exact
    expected = wide @ w.T + ALPHA / RANK * (wide @ a.T) @ b.T
    expected.backward(upstream.double())
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-5)
    for ours, theirs in zip((x.grad, layer.lora_a.grad, layer.lora_b.grad), (wide, a, b), strict=True):
        assert ours is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.double(), theirs.grad, rtol=1e-5, atol=2e-5)
    assert layer.weight.grad is None


def test_before_the_first_update_the_policy_is_its_base_to_the_bit(place: Place) -> None:
    made = ranks.learner(place)
    base = scores(plain(place, place.policy))
    assert np.array_equal(scores(made), base)
    assert np.array_equal(scores(made, reference=True), base)
    for _, layer in lora.layers(made.policy):
        limit = 1 / layer.lora_a.shape[1] ** 0.5
        mean = float(layer.lora_a.detach().abs().mean())  # of a uniform draw: half the limit
        assert 0.4 * limit < mean < 0.6 * limit
        assert float(layer.lora_a.detach().abs().max()) <= limit
        assert not layer.lora_b.any()


def test_adapters_differ_by_layer_and_seed_alone(place: Place) -> None:
    shape = ModelShape.from_hf(place.policy)

    def drawn(seed: int) -> dict[str, Tensor]:
        policy = build_model(shape, Config(seed=seed, lora=LoraConfig(rank=RANK)))
        return {name: layer.lora_a.detach() for name, layer in lora.layers(policy)}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert len(first) == 4 * shape.layers
    assert all(torch.equal(first[name], again[name]) for name in first)
    everything = [*first.values(), *other.values()]
    assert len({tuple(a.flatten().tolist()) for a in everything}) == len(everything)


def test_only_adapters_have_gradients_and_optimizer_state(trained: Learner, place: Place) -> None:
    adapters = sum(p.numel() for p in trained.policy.parameters() if p.requires_grad)
    shape = trained.shape
    assert adapters == shape.layers * sum(RANK * (i + o) for i, o in shape.linears.values())
    with_buffers: list[Any] = trained._chunks
    assert sum(buffer.numel_unpadded for chunk in with_buffers for buffer in chunk.buffers) == adapters
    [optimizer] = torch_adam.parts(trained.optimizer)
    assert sum(s["exp_avg"].numel() for s in optimizer.optimizer.state.values()) == adapters
    base = dict(weights.export(plain(place, place.policy).policy, shape, place.layout))
    with lora.switched(trained.policy, on=False):
        assert np.array_equal(scores(trained, reference=True), scores(plain(place, place.policy)))
    moved = dict(weights.export(trained.policy, shape, place.layout))
    linear = {name for name in base if "proj" in name and name.endswith("weight")}
    assert {name for name in base if not torch.equal(base[name], moved[name])} == linear
    assert len(linear) == 7 * shape.layers


def test_training_leaves_the_base_bit_exact(trained: Learner, place: Place) -> None:
    fresh = dict(plain(place, place.policy).policy.named_parameters())
    for name, parameter in trained.policy.named_parameters():
        if name.endswith(lora.NAMES):
            assert parameter.abs().max() > 1e-3
        else:
            assert torch.equal(parameter, fresh[name]), name


def test_what_is_exported_computes_what_the_adapters_do(
    trained: Learner, place: Place, tmp_path: Path
) -> None:
    weights.save(trained.policy, trained.shape, place.layout, place.policy, tmp_path / "saved")
    ours, merged = scores(trained), scores(plain(place, tmp_path / "saved"))
    assert np.abs(ours - scores(trained, reference=True)).max() > 0.1
    assert np.abs(ours - merged).max() < 2e-6
    convert.export_hf(place.folder / "iteration_000002", place.policy, tmp_path / "exported")
    saved, exported = HFReader(tmp_path / "saved"), HFReader(tmp_path / "exported")
    assert sorted(saved.names) == sorted(exported.names)
    for name in saved.names:
        assert torch.allclose(saved.tensor(name), exported.tensor(name), rtol=0, atol=1e-7), name


def test_the_adapter_directory_is_the_merged_policy(trained: Learner, place: Place, tmp_path: Path) -> None:
    """In PEFT's spelling: base + lora_alpha / r * lora_B lora_A, for each of its linear layers."""
    adapter.save(trained.policy, trained.shape, place.layout, place.cfg.lora, place.policy, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (RANK, ALPHA, "LORA")
    targets = [f"{name}_proj" for name in ("down", "gate", "k", "o", "q", "up", "v")]
    assert config["target_modules"] == targets
    base, merged = HFReader(place.policy), dict(weights.export(trained.policy, trained.shape, place.layout))
    modules = {name.split(".lora_")[0] for name in tensors}
    assert len(modules) == 7 * trained.shape.layers == len(tensors) / 2
    for module in modules:
        name = module.removeprefix("base_model.model.") + ".weight"
        delta = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        found = base.tensor(name) + config["lora_alpha"] / config["r"] * delta
        assert torch.allclose(found, merged[name], rtol=0, atol=1e-6), name


def test_checkpoints_with_other_adapters_are_refused(trained: Learner, place: Place) -> None:
    full = Learner(ranks.config(), trained.shape, place.layout)
    others = [ranks.config(rank=2, alpha=ALPHA), ranks.config(rank=RANK, alpha=1.0)]
    for made in (full, *(Learner(cfg, trained.shape, place.layout) for cfg in others)):
        with pytest.raises(UserError, match=r"is a checkpoint of another model: lora \{'rank': 4") as error:
            Checkpoints(place.folder, place.cfg.checkpoint).load(made, 2)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"holds adapters besides its weights; merge them first"):
        weights.load(full.policy, full.shape, place.layout, place.folder / "iteration_000002")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora.rank 0", "lora.rank must be >= 1 or null, got 0"),
        ("--lora.alpha 0", "lora.alpha must be > 0 or null, got 0.0"),
        ("--lora.targets [linear_q]", "lora.targets.0: input should be 'linear_qkv', 'linear_proj'"),
        ("--lora.targets []", "lora.targets is empty; lora.rank null trains all weights"),
        (
            "--lora.rank 8 --model.layers te --model.dtype bfloat16",
            "lora.rank 8 needs our own layers, but model.layers is te",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(flags: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(flags.split(), "")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rank_beyond_the_layer_is_refused() -> None:
    QWEN_1_5B.check_lora(LoraConfig(rank=1536))
    with pytest.raises(UserError, match=r"lora\.rank 1537 exceeds the 1536 of the model's linear_qkv"):
        QWEN_1_5B.check_lora(LoraConfig(rank=1537))


def test_alpha_is_the_rank_unless_it_is_given() -> None:
    given, default = LoraConfig(rank=64, alpha=16), LoraConfig(rank=64)
    assert (given.effective_alpha, given.scale) == (16, 0.25)
    assert (default.effective_alpha, default.scale) == (64, 1.0)
