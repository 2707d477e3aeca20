"""Playing the panel into a folder, which may be that of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gigpo_mega import evaluate as program
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.evaluate import evaluate, main
from gigpo_mega.rollout.engines import servers
from gigpo_mega.run.output import lock
from tests.tiny import write_agent


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    agent, games = write_agent(tmp_path / "agent"), tmp_path / "games"
    return load_config(
        [str(Path(__file__).with_name("tiny.yaml")), "--model.path", str(agent),
         "--environment.tasks.data", str(games), "--output", str(tmp_path / "run")], "gigpo-mega evaluate",
    )  # fmt: skip


def test_a_folder_that_a_run_uses_is_refused(cfg: Config) -> None:
    with lock(cfg.output), pytest.raises(UserError, match=r"is in use by another run \(process \d+ on "):
        evaluate(cfg)


def test_a_policy_that_does_not_exist_is_said_so(cfg: Config, tmp_path: Path) -> None:
    nowhere = tmp_path / "nope"
    with pytest.raises(UserError, match=rf"^model\.path: {nowhere}/config\.json does not exist; give a"):
        evaluate(replace(cfg, model=replace(cfg.model, path=nowhere)))


def test_the_log_of_its_engine_is_not_that_of_the_run(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        """Raised in place of a server, with the folder of its log."""

    def start(model: Path, config: object, folder: Path, launch: object) -> None:
        raise Started(folder)

    monkeypatch.setattr(servers, "Servers", start)
    with pytest.raises(Started) as caught:
        evaluate(cfg)
    (folder,) = caught.value.args
    assert folder == cfg.output / "evaluation"
    assert folder.is_dir()


def test_it_says_what_the_numbers_are_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"episodes": 24, "success": 0.5, "standard_error": 0.1, "kinds": {}}
    monkeypatch.setattr(program, "evaluate", lambda _cfg: record)
    main(["--output", str(tmp_path), "--evaluation.split", "seen"])
    assert capsys.readouterr().out.splitlines() == [
        "success in %, 24 episodes of seen:", "         ALL", "50.0 +- 10.0",
        f"record: {tmp_path / 'evaluation.json'}",
    ]  # fmt: skip
