"""Behaviour cloning: `python -m gigpo_mega.coldstart configs/x.yaml --output DIR`.

Plays expert episodes on training tasks, renders them exactly as the rollout would, and fits the policy to the
expert's actions with the same learner. With `model.path` it continues that policy; without, it trains a
tokenizer on the games' text and starts a small Qwen2 policy from scratch. The result is the Hugging Face
directory `output`/policy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.base import Demonstration, lookup
from envs.dialogue import choose
from gigpo_mega import options
from gigpo_mega.config import Config
from gigpo_mega.control import shared
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.learner import parallel
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.learner.policy import Cloning
from gigpo_mega.learner.update import Learner, UpdateStats, seed_everything
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.rollout.vocabulary import train_tokenizer
from gigpo_mega.tasks import TaskStream, load_tasks
from gigpo_mega.telemetry.metrics import MetricsWriter
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.types import Float32, Int64, Step
from gigpo_mega.weights import export as weights

_LOG_EVERY = 50


def coldstart(cfg: Config) -> Path:
    """Clone the environment's expert; returns the policy's Hugging Face directory. All ranks call this."""
    if cfg.lora.rank and cfg.model.path is None:
        raise UserError(f"lora.rank {cfg.lora.rank} needs a policy to adapt; set model.path")
    layout = parallel.initialize(cfg.parallel, cfg.seed)
    seed_everything(cfg.seed)
    cfg.output.mkdir(parents=True, exist_ok=True)
    shared(layout, lambda: options.save(cfg, cfg.output / "config.yaml"))
    demonstrations = shared(layout, lambda: demonstrate(cfg))
    source = cfg.model.path or cfg.output / "scratch"
    if cfg.model.path is None:
        shared(layout, lambda: _write_scratch(cfg, demonstrations, source))
    shape = ModelShape.from_hf(source)
    learner = Learner(cfg, shape, layout)
    if cfg.model.path is not None:
        weights.load(learner.policy, shape, layout, source)
        learner.refresh()
    _fit(cfg, learner, _rows(cfg, demonstrations, Tokenizer(source)), layout)
    policy = cfg.output / "policy"
    weights.save(learner.policy, shape, layout, source, policy)
    return policy


def demonstrate(cfg: Config) -> tuple[Demonstration, ...]:
    """`coldstart.games` expert episodes on training tasks; raises UserError where there is no expert."""
    expert = lookup(cfg.environment.name).demonstrate
    if expert is None:
        raise UserError(f"environment.name {cfg.environment.name}: there is no expert to clone for it")
    training, _ = load_tasks(cfg)
    games = cfg.coldstart.games
    played: list[Demonstration] = []
    with stage("expert", games, "games") as bar:
        for i, task in enumerate(TaskStream(training, cfg.seed).draw(0, games)):
            played.append(
                expert(
                    task,
                    seed=cfg.seed + i,
                    detour=cfg.coldstart.detour,
                    max_steps=cfg.environment.max_steps,
                    options=cfg.environment.options,
                )
            )
            bar.advance()
    return tuple(played)


def _rows(
    cfg: Config, demonstrations: Sequence[Demonstration], tokenizer: Tokenizer
) -> list[tuple[Step, Float32]]:
    """One row per expert action, with the prompt that a rollout would have shown, and each token's weight.

    Where prompt tokens weigh too, the whole prompt but its first token counts as the row's response.
    """
    dialogue = choose(lookup(cfg.environment.name), cfg.environment.dialogue)
    prompts = PromptBuilder(cfg.environment, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
    stop = tokenizer.stop_token_ids[0]
    rows: list[tuple[Step, Float32]] = []
    for demonstration in demonstrations:
        if not demonstration.turns:
            continue
        episode = prompts.start(demonstration.turns[0][0])
        followers = [observation for observation, _ in demonstration.turns[1:]]
        for (_, action), following in zip(demonstration.turns, [*followers, None], strict=True):
            said = [*tokenizer.encode(dialogue.answer(action)), stop]
            rows.append(_row(episode.ids(), said, cfg.coldstart.prompt_weight))
            if following is not None:
                episode.advance(action, following, said)
    return rows


def _row(prompt: list[int], action: list[int], prompt_weight: float) -> tuple[Step, Float32]:
    start = 1 if prompt_weight else len(prompt)
    ids = np.array([*prompt, *action], dtype=np.int32)
    weight = np.full(len(ids) - start, prompt_weight, dtype=np.float32)
    weight[-len(action) :] = 1.0
    step = Step(ids[:start], ids[start:], np.zeros(len(weight), np.float32), 0.0, True, bytes(16), 0)
    return step, weight


def _fit(cfg: Config, learner: Learner, rows: Sequence[tuple[Step, Float32]], layout: Layout) -> None:
    """`coldstart.updates` updates on shuffled rows; the loss goes to metrics.jsonl now and then."""
    steps = [step for step, _ in rows]
    loss = Cloning([weight for _, weight in rows])
    rng = np.random.default_rng(cfg.seed)
    writer = MetricsWriter(cfg.output) if layout.leader else None
    queue: Int64 = np.zeros(0, dtype=np.int64)
    with stage("clone", cfg.coldstart.updates, "updates", quiet=not layout.leader) as bar:
        for update in range(cfg.coldstart.updates):
            while len(queue) < cfg.coldstart.rows:
                queue = np.concatenate([queue, rng.permutation(len(rows))])
            chosen, queue = queue[: cfg.coldstart.rows], queue[cfg.coldstart.rows :]
            stats = learner.update(learner.pack(steps, chosen), loss)
            if writer and (update % _LOG_EVERY == 0 or update == cfg.coldstart.updates - 1):
                writer.write(update, _metrics(stats))
            bar.advance()
    learner.synchronize()
    if writer:
        writer.close()


def _metrics(stats: UpdateStats) -> dict[str, float]:
    """`loss/action` is per action token, whatever the prompt's tokens weigh."""
    means = dict(stats.means)
    means["loss/action"] /= means.pop("loss/action_tokens")
    return means | {"optimizer/grad_norm": stats.grad_norm, "optimizer/lr": stats.lr}


def _write_scratch(cfg: Config, demonstrations: Sequence[Demonstration], directory: Path) -> None:
    """A tokenizer trained on the games' text, and the configuration of a small Qwen2 policy."""
    c = cfg.coldstart
    texts = (
        text for demonstration in demonstrations for observation, action in demonstration.turns
        for text in (f"Task: {observation.instruction}", observation.text, f"> {action}",
                     *(f" {admissible}," for admissible in observation.admissible))
    )  # fmt: skip
    tokens = train_tokenizer(texts, c.vocabulary, directory)
    hf = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": -(-tokens // 64) * 64,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "max_position_embeddings": max(2048, cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": cfg.model.dtype,
    }
    (directory / "config.json").write_text(json.dumps(hf, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, clone, and say where the policy is."""
    cfg = options.load(sys.argv[1:] if argv is None else argv, "gigpo_mega.coldstart")
    policy = coldstart(cfg)
    print(f"policy: {policy}")


if __name__ == "__main__":
    run_main(main)
