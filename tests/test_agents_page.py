"""The files of docs/agents.md, in a folder of their own: an agent with the real openai client learns."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import EnvError, Task
from gigpo_mega.coldstart.demonstrations import cloned_steps, demonstrate
from gigpo_mega.coldstart.scratch import write_scratch
from gigpo_mega.config.load import load_config
from gigpo_mega.rollout.gateway.conversations import Conversations
from gigpo_mega.rollout.gateway.requests import ChatRequest, read_message
from gigpo_mega.rollout.pools.host import Host
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.tasks import environment_options, load_tasks
from tests.programs import run_python

PAGE = Path(__file__).parents[1] / "docs/agents.md"
FILES = ("locks.py", "locks.yaml", "cold.yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, of which `locks` can be imported."""
    blocks = re.findall(r"^`([\w.]+)`: .*?^```\w+\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert tuple(name for name, _ in blocks) == FILES
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("locks", "other_agent"):
        sys.modules.pop(module, None)


@pytest.mark.engine
@pytest.mark.learn
def test_the_pages_agent_learns(folder: Path) -> None:
    """The page's files, for fewer iterations."""
    for command in re.findall(r"^python (-m .*)$", PAGE.read_text(), re.MULTILINE):
        shorter = ["--iterations", "8"] if "train" in command else []
        done = run_python(*command.split(), *shorter, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    output = folder / "runs/locks"
    before, after = (json.loads((output / f"evaluation_{i:06d}.json").read_text()) for i in (0, 8))
    assert after["success"] > before["success"] + 0.12
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(row["engine/logprob_gap_mean"] for row in rows) < 1e-5


def test_the_cold_start_clones_what_the_agent_will_ask_and_be_answered(folder: Path) -> None:
    cfg = load_config([str(folder / "locks.yaml"), str(folder / "cold.yaml"), "--coldstart.games", "3"], "")
    demonstrations = demonstrate(cfg)
    assert len(demonstrations) == 3
    write_scratch(cfg, demonstrations, folder / "model")
    tokenizer, locks = Tokenizer(folder / "model"), importlib.import_module("locks")
    steps = iter(cloned_steps(cfg, demonstrations, tokenizer))
    tools = ({"type": "function", "function": locks.TURN["function"]},)
    for demonstration in demonstrations:
        conversations, messages = Conversations(tokenizer), list[Any]()
        for observation, way in demonstration.turns:
            said = "tool" if messages else "user"
            messages.append({"role": said, "content": observation.text})
            request, step = ChatRequest("policy", tuple(messages), tools), next(steps)
            whole = [*step.prompt_ids.tolist(), *step.response_ids.tolist()]
            prompt = conversations.prompt(request)
            assert whole[: len(prompt)] == prompt
            response = np.array(whole[len(prompt) :], np.int32)
            assert tokenizer.decode(response.tolist()) == locks.call(way)
            answer = read_message("answer", {"role": "assistant", "content": "", "tool_calls": [
                {"id": "1", "function": {"name": "turn", "arguments": json.dumps({"way": way})}}
            ]})  # fmt: skip
            conversations.answered(request, prompt, answer, response)
            messages.append(answer)
    assert next(steps, None) is None


def test_tasks_without_an_environment_need_an_agent(folder: Path) -> None:
    assert len(load_tasks(load_config([str(folder / "locks.yaml")], "")).training) > 64
    locks = importlib.import_module("locks")

    class FakeMark:
        def set(self, slot: int) -> None: ...
        def clear(self) -> None: ...

    _, well, error = Host(FakeMark(), locks.KIND, {}).answer(7, 0, "reset", Task("a", "b", "c"))
    assert not well
    assert isinstance(error, EnvError)
    assert "set rollout.agent" in str(error)


def test_the_agents_arguments_are_environment_options(folder: Path) -> None:
    (folder / "other_agent.py").write_text("def play(task, connection, patience: int, max_steps: int): ...\n")
    files = [str(folder / "locks.yaml"), "--rollout.agent", "other_agent:play"]
    with pytest.raises(EnvError, match=r"environment.options.patience is missing; it must be int"):
        load_tasks(load_config(files, ""))
    cfg = load_config([*files, "--environment.options.patience", "2"], "")
    load_tasks(cfg)
    assert environment_options(cfg) == {"patience": 2, "max_steps": 16}
    with pytest.raises(EnvError, match=r"unknown key environment.options.patience; known: none"):
        load_tasks(load_config([files[0], "--environment.options.patience", "2"], ""))
