"""What a cold start is refused for, and what it clones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from envs import registry
from envs.base import Demonstration, EnvError, EnvironmentKind, Observation, Task
from gigpo_mega.coldstart.clone import clone, cloning_loss
from gigpo_mega.coldstart.demonstrations import ClonedStep, demonstrate
from gigpo_mega.config import (
    ColdstartConfig,
    Config,
    EnvironmentConfig,
    EvaluationConfig,
    PromptConfig,
)
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout
from gigpo_mega.run.output import lock
from gigpo_mega.stack import decide


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[Config]:
    """A cold start of seconds, from scratch."""
    yield Config(
        output=tmp_path / "cold",
        environment=EnvironmentConfig(
            name="sokoban", options={"view": "relative"}, tasks={"train": 8, "test": 1}
        ),
        prompt=PromptConfig(dialogue="compact"),
        evaluation=EvaluationConfig(split="test"),
        coldstart=ColdstartConfig(games=2, updates=1, rows_per_update=2),
    )
    layout.shutdown()


def test_a_cold_start_does_not_write_over_a_run(cfg: Config) -> None:
    (cfg.output / "policy").mkdir(parents=True)
    (cfg.output / "metrics.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(UserError) as caught:
        clone(cfg, decide())
    assert str(caught.value) == (
        f"output: {cfg.output} holds a run already, which a cold start cannot continue; choose another output"
    )
    assert sorted(path.name for path in cfg.output.iterdir()) == [".lock", "metrics.jsonl", "policy"]
    lock(cfg.output).close()  # it holds the folder no longer


def test_a_cold_start_does_not_write_into_a_folder_that_a_run_uses(cfg: Config) -> None:
    with lock(cfg.output), pytest.raises(UserError, match=r"is in use by another run \(process \d+ on "):
        clone(cfg, decide())
    assert not (cfg.output / "config.yaml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU whose memory can be released")
def test_what_this_machine_cannot_have_is_refused_before_a_cold_start_touches_anything(cfg: Config) -> None:
    with pytest.raises(UserError, match=r"engine\.release_memory true needs CUDA"):
        clone(replace(cfg, engine=replace(cfg.engine, release_memory=True)), decide())
    assert not cfg.output.exists()


class FakeEnvironment:
    """Never played: the expert makes its episodes up."""


def fake_expert(task: Task, *, seed: int, detour: float, max_steps: int, options: Any) -> Demonstration:
    """Succeeds with every third seed."""
    return Demonstration(((Observation(f"seed {seed}"), "go"),), success=seed % 3 == 0)


@pytest.fixture
def faked(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    kind = EnvironmentKind(cast(Any, FakeEnvironment), demonstrate=fake_expert)
    monkeypatch.setattr(registry, "_REGISTRY", {"fake": kind})
    cloned = replace(cfg.coldstart, games=7)
    return replace(cfg, environment=EnvironmentConfig(name="fake"), coldstart=cloned)


def shown(demonstrations: Sequence[Demonstration]) -> list[str]:
    return [episode.turns[0][0].text for episode in demonstrations]


def test_failed_expert_episodes_are_cloned_only_if_asked(
    faked: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(demonstrate(faked)) == ["seed 0", "seed 3", "seed 6"]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "4 of 7 expert episodes failed and are not cloned (coldstart.failures)"
    )
    everything = replace(faked, coldstart=replace(faked.coldstart, failures=True))
    assert shown(demonstrate(everything)) == [f"seed {seed}" for seed in range(7)]
    assert "not cloned" not in capsys.readouterr().err


def test_an_expert_that_cannot_play_a_task_names_environment_and_task(
    faked: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnError(EnvError):
        def __init__(self) -> None:
            super().__init__("no goal to read")

    def lost(task: Task, **_: Any) -> Demonstration:
        raise OwnError

    monkeypatch.setitem(
        registry._REGISTRY, "fake", EnvironmentKind(cast(Any, FakeEnvironment), demonstrate=lost)
    )
    with pytest.raises(EnvError, match=r"^environment fake, task train/\d+, expert: no goal to read$"):
        demonstrate(faked)


def test_an_expert_that_never_succeeds_is_refused(faked: Config) -> None:
    with pytest.raises(UserError) as caught:
        demonstrate(replace(faked, seed=1, coldstart=replace(faked.coldstart, games=2)))
    assert str(caught.value) == (
        "coldstart.games 2: no expert episode succeeded; raise environment.max_steps, lower coldstart.detour "
        "0.2, or set coldstart.failures to clone them anyway"
    )


@pytest.mark.parametrize("prompt_weight", [0.0, 0.25, 1.0])
def test_the_loss_of_the_action_is_of_its_tokens_whatever_the_prompt_weighs(prompt_weight: float) -> None:
    """At a weight of 1 the prompt's tokens used to count as an action's."""
    step = ClonedStep.of([5, 6, 7], [8, 9], prompt_weight)
    logprob = torch.full([len(step.response_ids)], -1.0)
    logprob[-2:] = torch.tensor([-4.0, -6.0])
    loss, report = cloning_loss((step.weight, step.action), logprob, torch.zeros_like(logprob))
    assert loss.item() == pytest.approx(10 + prompt_weight * (len(logprob) - 2))
    assert float(report.sums["loss/action"]) / float(report.sums["loss/action_tokens"]) == 5.0
