"""TensorBoard, Weights & Biases and MLflow, as `telemetry.loggers` asks for them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from gigpo_mega.config import Config
from gigpo_mega.config.load import FIELDS
from gigpo_mega.errors import UserError
from gigpo_mega.storage.files import replace_text

IDS = "loggers.json"  # in a run's folder: under which ids a resumed run goes on
_MODULES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy")}
_LEARNED = ("rollout", "advantage", "objective", "optimizer", "batch", "lora")  # sections of hyper-parameters


class Logger(Protocol):
    """Receives the scalars of a run."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record `values` at `iteration`, which never decreases."""
        ...

    def close(self) -> None:
        """Finish whatever is under way."""
        ...


def check_loggers(cfg: Config) -> None:
    """Raise UserError for a logger of `telemetry.loggers` that is not installed."""
    for name in cfg.telemetry.loggers:
        if any(find_spec(module) is None for module in _MODULES[name]):
            raise UserError(
                f"telemetry.loggers: {name} is not installed; pip install 'gigpo-mega[{name}]', or "
                "leave it out"
            )


def open_loggers(cfg: Config, resume_at: int = 0) -> list[Logger]:
    """The loggers that `cfg` asks for; rows from iteration `resume_at` on will be written (again).

    Raises UserError if W&B or MLflow does not start, e.g. as its server does not answer.
    """
    others: dict[str, Callable[[Config], Logger]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    opened: list[Logger] = []
    for name in cfg.telemetry.loggers:
        if name == "tensorboard":
            opened.append(TensorBoard(cfg.output, resume_at, cfg))
            continue
        try:
            opened.append(Forgiving(name, others[name](cfg)))
        except Exception as error:  # of somebody else's library and server
            raise UserError(f"telemetry.loggers: {name} does not start: {error!r}") from error
    return opened


class TensorBoard:
    """Event files in `output`/tensorboard, with the numeric hyper-parameters of `cfg` as scalars."""

    def __init__(self, output: Path, resume_at: int = 0, cfg: Config | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # takes seconds to import

        self._events = SummaryWriter(str(output / "tensorboard"), purge_step=resume_at)
        for path, value in settings(cfg).items() if cfg else ():
            if path.split(".")[0] in _LEARNED and type(value) in (int, float):
                self._events.add_scalar(f"config/{path}", value, resume_at)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Other processes can read the values when this returns."""
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)
        self._events.flush()

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


class WeightsAndBiases:
    """A run of W&B: offline in `output`/wandb unless WANDB_MODE or WANDB_API_KEY says otherwise."""

    def __init__(self, cfg: Config) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        known = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = wandb.init(
            project=cfg.telemetry.project,
            name=_name(cfg),
            id=_read_id(cfg.output, "wandb"),
            resume="allow",
            dir=str(cfg.output),
            mode=None if known else "offline",
            config=settings(cfg),
            settings=wandb.Settings(console="off", silent=True),
        )
        _keep_id(cfg.output, "wandb", self._run.id)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """W&B drops iterations before the newest it has, those that a resumed run does again."""
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        """Upload, or finish the files of an offline run."""
        self._run.finish()


class MLflow:
    """A run of MLflow: in `output`/mlflow.db unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, cfg: Config) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(cfg.output / 'mlflow.db').absolute()}")
        self._client, known = MlflowClient(uri), _read_id(cfg.output, "mlflow")
        if known is None:
            project = cfg.telemetry.project
            found = self._client.get_experiment_by_name(project)
            experiment = found.experiment_id if found else self._client.create_experiment(project)
            known = str(self._client.create_run(experiment, run_name=_name(cfg)).info.run_id)
            for path, value in settings(cfg).items():
                self._client.log_param(known, path, str(value))
        self._id = known
        _keep_id(cfg.output, "mlflow", self._id)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """A resumed run's iterations come twice, the later one last."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=iteration)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


class Forgiving:
    """A logger whose failure, e.g. of a network, ends it and not the run."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._failed = False

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Say once on stderr what failed, and write nothing more."""
        self._try(lambda: self._logger.write(iteration, values))

    def close(self) -> None:
        """As `write`."""
        self._try(self._logger.close)

    def _try(self, act: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # of somebody else's library and server
            self._failed = True
            sys.stderr.write(f"telemetry.loggers: {self._name} gets no more metrics: {error!r}\n")


def settings(cfg: Config) -> dict[str, Any]:
    """Every field of `cfg` by its path; paths as text."""
    values = {path: attrgetter(path)(cfg) for path in FIELDS}
    return {path: str(value) if isinstance(value, Path) else value for path, value in values.items()}


def _name(cfg: Config) -> str:
    return cfg.telemetry.name or cfg.output.resolve().name


def _read_id(output: Path, logger: str) -> str | None:
    file = output / IDS
    return json.loads(file.read_text(encoding="utf-8")).get(logger) if file.exists() else None


def _keep_id(output: Path, logger: str, identity: str) -> None:
    file = output / IDS
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    replace_text(file, json.dumps(kept | {logger: identity}, indent=1))
