"""Policies as they are built: which weights are drawn, which layers and kernels they consist of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.extensions import transformer_engine
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel import layers as linear
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from gigpo_mega.config import Config, ModelConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.model import transformer_config
from gigpo_mega.learner.stack import Stack, stack
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights import live
from gigpo_mega.weights.huggingface import HFReader
from tests.learner import ranks
from tests.learner.test_parallel import QWEN_1_5B
from tests.tiny import random_steps, write_policy

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    yield parallel.initialize(Config().parallel, seed=0)
    parallel.shutdown()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as anyone asks; nothing runs on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def configuration(**model: Any) -> Config:
    return replace(Config(), model=ModelConfig(**model))


def test_fusions_are_on_where_their_kernels_are(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configuration(dtype="bfloat16")
    found = transformer_config(QWEN_1_5B, cfg)
    assert (found.gradient_accumulation_fusion, found.apply_rope_fusion) == (False, False)
    monkeypatch.setattr(linear, "_grad_accum_fusion_available", True)  # apex's kernel
    found = transformer_config(QWEN_1_5B, cfg)
    assert (found.gradient_accumulation_fusion, found.apply_rope_fusion) == (True, False)
    monkeypatch.setattr(transformer_engine, "HAVE_TE", True)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb_thd", lambda *_: None)
    found = transformer_config(QWEN_1_5B, cfg)
    assert (found.gradient_accumulation_fusion, found.apply_rope_fusion) == (True, True)
    ours = transformer_config(QWEN_1_5B, configuration(layers="local"))
    assert (ours.gradient_accumulation_fusion, ours.apply_rope_fusion) == (True, False)


def test_no_fusion_is_on_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_grad_accum_fusion_available", True)
    found = transformer_config(QWEN_1_5B, Config())
    assert (found.gradient_accumulation_fusion, found.apply_rope_fusion) == (False, False)


def test_a_transformer_engine_that_megatron_cannot_import_is_refused(gpu: None) -> None:
    """Installed but unusable, it used to give way to our layers without a word, or to fail in a mock."""
    with pytest.raises(UserError, match=r"te needs a Transformer Engine that megatron-core \S+ can import"):
        stack(configuration(layers="te", dtype="bfloat16"))
    assert stack(configuration(layers="auto")).layers == "local"


def test_transformer_engine_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_engine, "HAVE_TE", True)
    with pytest.raises(UserError, match=r"model\.layers te needs a GPU"):
        stack(configuration(layers="te", dtype="bfloat16"))


def test_float32_has_our_layers(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine rounds its products to TF32: a quickstart's gap to the engine was at its limit."""
    monkeypatch.setattr(transformer_engine, "HAVE_TE", True)
    assert stack(configuration(dtype="bfloat16")).layers == "te"
    assert stack(configuration(dtype="float32")).layers == "local"
    with pytest.raises(ValidationError, match=r"model\.layers te rounds products of float32 to TF32"):
        configuration(layers="te", dtype="float32")


def test_our_attention_is_not_cudnns(layout: Layout, directory: Path) -> None:
    """Which compiles a plan for every length of a sequence, a second each."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    Learner(ranks.config(), ModelShape.from_hf(directory), layout)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_one_line_says_what_was_taken(layout: Layout, directory: Path) -> None:
    made = Learner(ranks.config(), ModelShape.from_hf(directory), layout)
    here = "learner: our own layers, attention by torch (SDPA); AdamW of torch; fused: nothing"
    assert made.stack.described(made.optimizer) == here
    everything = Stack("te", gradient_fusion=True).described(FakeOptimizer())
    assert everything == (
        "learner: Transformer Engine's layers and attention; FusedAdam of transformer_engine; "
        "fused: RoPE, weight gradients, Adam"
    )


class FakeAdam:
    """Named as Transformer Engine's."""

    param_groups = ()


FakeAdam.__name__, FakeAdam.__module__ = "FusedAdam", "transformer_engine.pytorch.optimizers"


class FakeOptimizer:
    """megatron's around it."""

    optimizer = FakeAdam()


class HostWaits(TorchDispatchMode):
    """Operators for which the host waits on a GPU: what it must know before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [True, False])
def test_a_forward_pass_of_our_layers_never_waits_for_the_gpu(
    layout: Layout, directory: Path, packed: bool
) -> None:
    """Selecting response tokens by a mask waited twice; megatron's own rotation does in every layer."""
    made = ranks.learner(ranks.Place(ranks.config(packed=packed), directory, directory, layout))
    [chunk] = made.policy
    for batch in made.pack(random_steps(ranks.ROWS), np.arange(ranks.ROWS)):
        inputs = made._inputs(batch)
        with HostWaits() as waits:
            logprob, _ = chunk(
                inputs.tokens, inputs.positions, None, labels=inputs.labels, loss_mask=inputs.chosen,
                packed_seq_params=inputs.columns,
            )  # fmt: skip
        assert waits.found == []
        assert len(logprob) == batch.lengths.sum()


def random_states() -> dict[str, torch.Tensor]:
    tracker: Any = get_cuda_rng_tracker()
    return {"torch": torch.get_rng_state(), **tracker.get_states()}


def test_weights_that_are_loaded_are_not_drawn_before(layout: Layout, directory: Path) -> None:
    """Every rank drew all of them, whole and in float32, and again for the reference policy."""
    shape = ModelShape.from_hf(directory)
    before = {name: state.clone() for name, state in random_states().items()}
    made = Learner(ranks.config(), shape, layout, empty=True)
    live.load(made.policy, shape, layout, directory)
    made.keep_reference()
    after = random_states()
    assert all(torch.equal(state, after[name]) for name, state in before.items())
    reader = HFReader(directory)
    for policy in (made.policy, made.reference):
        assert policy is not None
        for name, tensor in live.export(policy, shape, layout):
            assert torch.equal(tensor, reader.tensor(name)), name


def test_a_policy_from_scratch_draws_its_weights(layout: Layout, directory: Path) -> None:
    shape = ModelShape.from_hf(directory)

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        made = Learner(ranks.config(), shape, layout)
        return {name: tensor.clone() for name, tensor in live.export(made.policy, shape, layout)}

    first, again, other = drawn(0), drawn(0), drawn(1)
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), name
        if weight.dim() == 2:
            output = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.02 / (2 * shape.layers) ** (0.5 * output)
            assert float(weight.std()) == pytest.approx(scale, rel=0.1), name
            assert not torch.equal(weight, other[name]), name
