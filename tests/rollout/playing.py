"""Sessions with fake SGLang servers, for tests of who plays; `FakeCounter` and `FakeFlaky` are played."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_engine import UP, WORDS
from word_tokenizer import write_tokenizer

from envs.base import Task
from gigpo_mega.config import (
    Config,
    EnvironmentConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptConfig,
    RolloutConfig,
    TelemetryConfig,
)
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.types import Group

SIZE = 4


class FakeSGLang(BaseHTTPRequestHandler):
    """Always says "up"."""

    def do_POST(self) -> None:
        self.say(self.payload())

    def payload(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def say(self, payload: dict[str, Any]) -> None:
        logprobs = [[-0.5, token, None] for token in (UP, 1)]
        meta = {"finish_reason": {"type": "stop"}, "weight_version": "0", "cached_tokens": 0}
        self.send_response(200)
        self.end_headers()
        for index in range(len(payload["input_ids"])):
            answer = {"index": index, "output_ids": [UP, 1]}
            line = json.dumps(answer | {"meta_info": meta | {"output_token_logprobs": logprobs}})
            self.wfile.write(f"data: {line}\n\n".encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def servers() -> Iterator[list[str]]:
    """The addresses of two."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), FakeSGLang) as one,
        ThreadingHTTPServer(("127.0.0.1", 0), FakeSGLang) as two,
    ):
        for server in (one, two):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [f"http://127.0.0.1:{server.server_port}" for server in (one, two)]
        one.shutdown()
        two.shutdown()


@contextmanager
def session(
    folder: Path,
    urls: list[str],
    workers: int = 2,
    kind: str = "KIND",
    options: dict[str, Any] | None = None,
    module: str = "fake_environment",
    **rollout: Any,
) -> Iterator[RolloutSession]:
    """One with `workers`, of environments `module:kind`; `rollout` are fields of RolloutConfig."""
    model = write_tokenizer(folder / "model", WORDS)
    name = f"{module}:{kind}"
    cfg = Config(
        environment=EnvironmentConfig(name=name, options=options or {}, max_steps=9, workers=2),
        model=ModelConfig(path=model),
        objective=ObjectiveConfig(old_logprob="engine"),
        telemetry=TelemetryConfig(timeline=True),
        prompt=PromptConfig(dialogue="compact"),
        rollout=RolloutConfig(workers=workers, max_prompt_tokens=64, concurrency=16, **rollout),
    )
    with RolloutSession(cfg, model, urls) as made:
        yield made


def tasks(*goals: int) -> list[Task]:
    return [Task(f"count-{goal}-{number}", "count", str(goal)) for number, goal in enumerate(goals)]


def content(groups: dict[int, Group]) -> dict[int, list[Any]]:
    """All that the groups hold, comparable."""
    return {
        number: [
            (t.task.id, t.score, t.success, t.ended_by, [
                (s.prompt_ids.tolist(), s.response_ids.tolist(), s.logprobs.tolist(), s.anchor, s.observation)
                for s in t.steps
            ])
            for t in group.trajectories
        ]
        for number, group in groups.items()
    }  # fmt: skip
