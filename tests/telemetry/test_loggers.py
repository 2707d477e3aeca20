"""What TensorBoard, W&B and MLflow get of a run; the latter two with the real packages, if installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gigpo_mega.config import Config, TelemetryConfig
from gigpo_mega.config.load import load_config
from gigpo_mega.config.telemetry import LoggerName
from gigpo_mega.errors import ConfigError, UserError
from gigpo_mega.storage.files import mark_latest
from gigpo_mega.telemetry.loggers import Forgiving, check_loggers, open_loggers
from gigpo_mega.telemetry.metrics import MetricsWriter
from tests.helpers import wait_for

RECORD: dict[str, Any] = {
    "iteration": 2, "episodes": 4, "success": 0.75, "standard_error": 0.2, "score": 0.7, "length": 3.5,
    "invalid": 0.1, "kinds": {"pick & place": {"episodes": 4, "success": 0.75}},
}  # fmt: skip
EVALUATED = {
    "evaluation/success": 0.75, "evaluation/standard_error": 0.2, "evaluation/score": 0.7,
    "evaluation/length": 3.5, "evaluation/invalid": 0.1, "evaluation/success/pick_place": 0.75,
}  # fmt: skip


class FakeLogger:
    """Keeps what it is given; fails from the first row of an iteration on."""

    def __init__(self, fails_from: int = 10**9) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self._fails_from = fails_from

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        if iteration >= self._fails_from:
            raise OSError("the server is gone")
        self.rows.append((iteration, dict(values)))

    def close(self) -> None:
        self.closed = True


def config(output: Path, *loggers: LoggerName) -> Config:
    telemetry = TelemetryConfig(loggers=list(loggers), project="agents", name="first")
    return Config(output=output, telemetry=telemetry)


def record(cfg: Config, iterations: range, resume_at: int = 0) -> None:
    writer = MetricsWriter(cfg.output, open_loggers(cfg, resume_at), resume_at)
    for iteration in iterations:
        if iteration == RECORD["iteration"]:
            writer.evaluated(RECORD)
        writer.write(iteration, {"rollout/success": iteration / 4})
    writer.close()


def needs(package: str) -> Any:
    """The package, or a skip; `tensorboard` and `envs` may be found by a name of ours."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return importlib.import_module(package)


def logged(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, as W&B writes it after 7 bytes: each in whole chunks."""
    place, parts = 0, b""
    while place < len(log):
        size, kind = struct.unpack("<HB", log[place + 4 : place + 7])  # after a checksum
        parts += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, or the last of several
            yield parts
            parts = b""


def test_an_evaluation_reaches_every_logger_and_not_the_rows(tmp_path: Path) -> None:
    first, second = FakeLogger(), FakeLogger()
    writer = MetricsWriter(tmp_path, [first, second])
    writer.evaluated(RECORD)
    writer.close()
    assert first.rows == second.rows == [(2, EVALUATED)]
    assert first.closed
    assert second.closed
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_logger_that_fails_is_dropped_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing, other = FakeLogger(fails_from=1), FakeLogger()
    writer = MetricsWriter(tmp_path, [Forgiving("wandb", failing), other])
    for iteration in range(3):
        writer.write(iteration, {"x": 1.0})
    writer.close()
    assert [iteration for iteration, _ in failing.rows] == [0]
    assert [iteration for iteration, _ in other.rows] == [0, 1, 2]
    said = capsys.readouterr().err
    assert said == "telemetry.loggers: wandb gets no more metrics: OSError('the server is gone')\n"


def test_tensorboard_gets_evaluations_and_hyper_parameters(tmp_path: Path) -> None:
    record(config(tmp_path, "tensorboard"), range(3))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    read = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert read["rollout/success"] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert read["evaluation/success"] == [(2, 0.75)]
    assert read["config/advantage.gamma"] == [(0, pytest.approx(0.95))]
    assert "config/parallel.tensor" not in read


def test_wandb_writes_offline_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    record(config(tmp_path, "wandb"), range(3))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")

    def read(kind: str) -> list[Any]:
        found = map(wandb_internal_pb2.Record.FromString, logged(file.read_bytes()[7:]))
        return [getattr(r, kind) for r in found if r.WhichOneof("record_type") == kind]

    wait_for(lambda: read("exit"))  # another process writes the file
    history = [{"/".join(i.nested_key) or i.key: i.value_json for i in row.item} for row in read("history")]
    runs = [(run.project, run.display_name) for run in read("run")]
    assert runs[0] == ("agents", "first")
    assert [row["rollout/success"] for row in history] == ["0", "0.25", "0.5"]
    assert history[2]["evaluation/success"] == "0.75"
    identity = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    record(config(tmp_path, "wandb"), range(3, 5), resume_at=3)
    files = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert {path.name for path in files} == {f"run-{identity}.wandb"}
    assert json.loads((tmp_path / "loggers.json").read_text())["wandb"] == identity


def test_mlflow_keeps_metrics_and_fields_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = needs("mlflow")
    needs("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record(config(tmp_path, "mlflow"), range(3))
    record(config(tmp_path, "mlflow"), range(3, 5), resume_at=3)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("agents")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "rollout/success")
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert run.data.metrics["evaluation/success/pick_place"] == 0.75
    assert run.data.params["advantage.gamma"] == "0.95"
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")


def test_a_logger_that_does_not_start_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cfg: Config) -> None:
        raise ConnectionError("no server at x:1")

    monkeypatch.setattr("gigpo_mega.telemetry.loggers.MLflow", refuse)
    with pytest.raises(UserError, match=r"mlflow does not start: ConnectionError\('no server at x:1'\)"):
        open_loggers(config(tmp_path, "tensorboard", "mlflow"))


def test_a_logger_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gigpo_mega.telemetry.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'gigpo-mega\[wandb\]', or"):
        check_loggers(config(tmp_path, "wandb"))
    check_loggers(config(tmp_path))


def test_loggers_are_checked_with_the_configuration() -> None:
    assert load_config(["--telemetry.loggers", "[]"], "").telemetry.loggers == []
    with pytest.raises(ConfigError, match=r"telemetry\.loggers names wandb twice"):
        load_config(["--telemetry.loggers", "[wandb, wandb]"], "")
    with pytest.raises(ConfigError, match=r"telemetry.loggers.0: .*'tensorboard', 'wandb' or 'mlflow'"):
        load_config(["--telemetry.loggers", "[swanlab]"], "")


def test_latest_is_the_run_that_started_last(tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "seeds"
    for folder in (runs / "a", runs / "b", elsewhere / "c"):
        folder.mkdir(parents=True)
        mark_latest(folder)
    assert (runs / "latest").resolve() == runs / "b"
    assert [path.name for path in elsewhere.iterdir()] == ["c"]
    (runs / "latest").unlink()
    (runs / "latest").mkdir()
    mark_latest(runs / "a")
    assert not (runs / "latest").is_symlink()
