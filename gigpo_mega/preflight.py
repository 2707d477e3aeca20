"""What a run can be refused for before anything is started; needs neither torch nor megatron."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from envs.dialogue import choose
from envs.registry import lookup
from gigpo_mega import hub
from gigpo_mega.algorithms.advantage import check_advantage
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.launch import is_here, rank_and_world
from gigpo_mega.rollout.engines.base import positions_needed
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.rollout.tokenizer_files import declared_end_tokens
from gigpo_mega.shape import ModelShape, check_world
from gigpo_mega.stack import Stack
from gigpo_mega.telemetry.loggers import check_loggers


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration that can run, with what was read on the way."""

    cfg: Config
    model: Path  # the directory of `model.path`
    shape: ModelShape


def check(cfg: Config, stack: Stack, weights: bool = True) -> Checked:
    """Raise UserError for whatever `cfg` cannot run with on this launch and `stack`, whichever rank asks.

    A model of the hub is downloaded: its configuration and tokenizer first and, with `weights`, those last.
    """
    if cfg.model.path is None:
        raise UserError(
            "model.path is not set; give a Hugging Face directory, e.g. one made by gigpo-mega coldstart, or "
            "a hub id"
        )
    settings = hub.directory(cfg.model.path, weights=False)
    shape = ModelShape.from_hf(settings)
    shape.check_layout(cfg.parallel)
    shape.check_lora(cfg.lora)
    _, world = rank_and_world()
    check_world(cfg.parallel, world)
    check_advantage(cfg.advantage)
    check_loggers(cfg)
    check_devices(cfg, stack)
    check_transport(cfg, stack)
    if not cfg.engine.urls:
        check_engine()
        shape.check_engine(cfg.engine.tensor)
        Launch(stack).replicas(cfg.engine)
    check_folder("output", cfg.output)
    if cfg.weights.folder is not None:
        check_folder("weights.folder", cfg.weights.folder)
    check_tokenizer(cfg, settings, shape)
    return Checked(cfg, hub.directory(cfg.model.path, weights), shape)


def check_tokenizer(cfg: Config, model: Path, shape: ModelShape) -> None:
    """Raise UserError unless tokenizer, chat template and lengths of `cfg` fit the policy in `model`.

    Raises EnvError for an unknown environment or dialogue.
    """
    dialogue = choose(lookup(cfg.environment.name), cfg.prompt.dialogue)
    asked, answered = cfg.rollout.max_prompt_tokens, cfg.rollout.max_response_tokens
    needed, kept = positions_needed(asked, answered), cfg.engine.max_total_tokens
    lengths = f"rollout.max_prompt_tokens {asked} + rollout.max_response_tokens {answered}"
    if needed > shape.max_positions:
        raise UserError(
            f"{lengths} take {needed} positions in SGLang, and the model has {shape.max_positions} "
            f"(max_position_embeddings of {model / 'config.json'}); lower rollout.max_prompt_tokens by "
            f"{needed - shape.max_positions}"
        )
    if kept is not None and needed > kept:
        raise UserError(f"engine.max_total_tokens {kept}: {lengths} need {needed}; raise it, or lower them")
    if (largest := max(declared_end_tokens(model), default=-1)) >= shape.vocab:
        raise UserError(
            f"model.path: {model} declares the end token {largest}, and its vocabulary has {shape.vocab} ids "
            "(vocab_size in config.json); correct eos_token_id in generation_config.json and config.json"
        )
    tokenizer = Tokenizer(model)
    if tokenizer.largest_id >= shape.vocab:
        raise UserError(
            f"model.path: {model / 'tokenizer.json'} has token ids up to {tokenizer.largest_id}, its "
            f"embedding {shape.vocab} rows (vocab_size in config.json); resize the embedding or take back "
            "the tokens that were added"
        )
    agent = cfg.rollout.agent is not None
    if dialogue.chat or agent:
        tokenizer.template.check(grows=agent or cfg.prompt.context == "append")
    tokenizer.end(dialogue.chat or agent)


def check_engine() -> None:
    """Raise UserError if SGLang is not installed, which is no dependency (requirements/sglang.txt)."""
    if find_spec("sglang") is None:
        raise UserError(
            "sglang is not installed: on a CPU pip install --no-deps sglang==0.5.23, on a GPU the CUDA "
            "packages (docs/gpu.md); or give engine.url"
        )


def check_devices(cfg: Config, stack: Stack) -> None:
    """Raise UserError if `cfg` or the launch asks for what this machine and `stack` cannot give."""
    if cfg.model.layers == "te" and find_spec("transformer_engine") is None:
        raise UserError(
            "model.layers te needs Transformer Engine, which is not installed (docs/gpu.md); "
            "set it to local or auto"
        )
    if stack.cuda:
        if (ranks := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > stack.gpus:
            raise UserError(
                f"torchrun --nproc-per-node {ranks} starts more processes than this node has GPUs, "
                f"{stack.gpus}: a rank needs one of its own; lower it, or see CUDA_VISIBLE_DEVICES"
            )
        return
    without = f"needs CUDA, but the stack is cpu ({stack.reason})"
    if cfg.kernels.backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"kernels.backend triton {without}; set it to auto")
    if cfg.engine.release_memory is True:
        raise UserError(f"engine.release_memory true {without}; set it to auto")


def check_transport(cfg: Config, stack: Stack) -> None:
    """Raise UserError if `weights.transport` does not reach the engines that `cfg` names or launches."""
    transport, (rank, _) = cfg.weights.transport, rank_and_world()
    shares = not cfg.engine.urls and cfg.engine.placement == "colocated"
    if transport == "broadcast" and stack.cuda and shares:
        raise UserError(
            "weights.transport broadcast needs engines on GPUs of their own (NCCL refuses two processes on "
            "one), but a run's own share the learner's; set it to tensor, or engine.placement to separate"
        )
    if transport != "tensor" or rank:  # rank 0 talks to the engines of engine.url
        return
    for url in cfg.engine.urls:
        if not is_here(urlsplit(url).hostname or ""):
            raise UserError(
                f"weights.transport tensor reaches engines on the learner's host alone, and {url} of "
                "engine.url is elsewhere; set it to broadcast, or to disk with a weights.folder that both "
                "hosts see"
            )


def check_folder(field: str, folder: Path) -> None:
    """Raise UserError unless `folder`, which `field` names, can be written or made; tries it."""
    existing = folder
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise UserError(f"{field}: {folder} cannot be made, {existing} is a file; choose another {field}")
        with TemporaryDirectory(dir=existing, prefix=".gigpo-mega-"):
            pass
    except OSError as error:
        reason = f"{existing}: {error.strerror or error}"
        raise UserError(f"{field}: {folder} cannot be made, {reason}; choose another {field}") from None
