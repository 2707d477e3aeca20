"""What is tried before an engine starts."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from word_tokenizer import write_tokenizer

from envs.base import EnvError, Task
from gigpo_mega.config import Config, EnvironmentConfig, ModelConfig, PromptConfig
from gigpo_mega.rollout.local import try_environment
from gigpo_mega.rollout.pools.base import PoolError


def attempt(tmp_path: Path, trial: Task, kind: str = "KIND") -> None:
    model = write_tokenizer(tmp_path, "up down")
    cfg = Config(
        environment=EnvironmentConfig(name=f"fake_environment:{kind}"),
        model=ModelConfig(path=model),
        prompt=PromptConfig(dialogue="compact"),
    )
    try_environment(cfg, trial)


def test_a_trial_that_fails_names_environment_and_task_and_leaves_no_process(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(
        EnvError, match=r"^environment fake_environment:KIND, task game-3, reset: no such game"
    ):
        attempt(tmp_path, Task("game-3", "count", "missing"))
    with pytest.raises(
        PoolError, match=r"^environment fake_environment:KIND, task game-4, reset: ValueError"
    ):
        attempt(tmp_path, Task("game-4", "count", "many"))
    faulty = Task("game-5", "faulty", "reset nothing")
    with pytest.raises(
        EnvError, match=r"^environment fake_environment:FAULTY, task game-5, reset: the observat"
    ):
        attempt(tmp_path, faulty, "FAULTY")
    assert psutil.Process().children() == before
