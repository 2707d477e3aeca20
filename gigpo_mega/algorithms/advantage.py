"""The advantage estimators by name: built-in ones, and the user's own as `module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np

from envs.base import LARGEST_REWARD, EnvError
from envs.imports import imported
from gigpo_mega.algorithms.device import column_device
from gigpo_mega.algorithms.estimators.g2po import g2po
from gigpo_mega.algorithms.estimators.gagpo import gagpo
from gigpo_mega.algorithms.estimators.gigpo import gigpo
from gigpo_mega.algorithms.estimators.graphgpo import graphgpo
from gigpo_mega.algorithms.estimators.grpo import grpo
from gigpo_mega.algorithms.estimators.hgpo import hgpo
from gigpo_mega.algorithms.estimators.reinforce_plus_plus_baseline import reinforce_plus_plus_baseline
from gigpo_mega.algorithms.estimators.rloo import rloo
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.errors import ConfigError, UserError
from gigpo_mega.types import Advantages, RowTable

Estimator = Callable[[RowTable, AdvantageConfig], Advantages]


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """An estimator of ours, and what of AdvantageConfig concerns it."""

    function: Estimator
    reads: tuple[str, ...]  # besides estimator, preset, backend and invalid_penalty
    on_gpu: bool = True  # its columns may be on a GPU
    official: bool = True  # there is official code, which `preset` reference follows


_TWO_LEVELS = ("gamma", "omega", "episode_weight", "normalization", "epsilon", "similarity")
_STEPS_ONLY = ("gamma", "normalization", "epsilon", "similarity")

BUILT_IN = {
    "gigpo": BuiltIn(gigpo, _TWO_LEVELS),
    "grpo": BuiltIn(grpo, ("normalization", "epsilon")),
    "rloo": BuiltIn(rloo, ("normalization",)),  # which is `mean`, whatever it says
    "reinforce_plus_plus_baseline": BuiltIn(reinforce_plus_plus_baseline, ("epsilon",)),
    "hgpo": BuiltIn(hgpo, (*_STEPS_ONLY, "history_length", "history_alpha"), on_gpu=False),
    "g2po": BuiltIn(g2po, _TWO_LEVELS, on_gpu=False),
    "graphgpo": BuiltIn(graphgpo, (*_TWO_LEVELS, "distance", "goal_reward"), on_gpu=False),
    "gagpo": BuiltIn(gagpo, (*_STEPS_ONLY, "gae_lambda"), on_gpu=False, official=False),
}


def estimate(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The advantage of every row by `cfg.estimator`; all rows of a task group must be in `rows`.

    Raises UserError for a reward that is not finite, naming task and step, and if a user's estimator returns
    anything but an Advantages with one finite value per row; ConfigError if the estimator has no such preset
    or backend; ValueError for a trajectory whose steps are not 0, 1, 2, ... exactly once (rows are copied or
    padded after this, with weight 0).
    """
    _check_choices(cfg)
    estimator = lookup_estimator(cfg.estimator)
    _check_rewards(rows)
    found = estimator(rows, cfg)
    _check_result(found, len(rows), cfg.estimator)
    return found


def lookup_estimator(name: str) -> Estimator:
    """The estimator called `name`: a built-in one, or `module:function` of an importable module.

    Modules are found in the working directory, too. Raises ConfigError naming the known ones, or saying why
    one cannot be imported or called with rows and configuration.
    """
    if name in BUILT_IN:
        return BUILT_IN[name].function
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(
            f"advantage.estimator: unknown estimator {name!r}; known: {', '.join(BUILT_IN)}, or your own "
            "function as module:function (docs/estimators.md)"
        )
    try:
        found = imported(name, "advantage.estimator", "functions", inspect.isfunction)
    except EnvError as error:
        raise ConfigError(str(error)) from None
    if not callable(found):
        raise ConfigError(f"advantage.estimator {name} is {type(found).__name__}, not a function")
    _check_parameters(found, name)
    return cast(Estimator, found)


def check_advantage(cfg: AdvantageConfig) -> None:
    """Raise ConfigError for an estimator that does not exist or cannot run so on this machine.

    Also for a field that was changed although the estimator, if it is ours, does not read it.
    """
    lookup_estimator(cfg.estimator)
    _check_choices(cfg)
    column_device(cfg.backend, rows=0)
    if cfg.estimator not in BUILT_IN:
        return
    read = {"estimator", "preset", "backend", "invalid_penalty", *BUILT_IN[cfg.estimator].reads}
    for name, value in asdict(cfg).items():
        if name not in read and value != (default := getattr(AdvantageConfig, name)):
            raise ConfigError(
                f"advantage.{name} {value} has no effect on advantage.estimator {cfg.estimator}; "
                f"leave it at {default}"
            )


def _check_parameters(function: Callable[..., Any], name: str) -> None:
    try:
        parameters = inspect.signature(function)
    except ValueError:  # one of C may not tell its parameters
        return
    try:
        parameters.bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"advantage.estimator {name} cannot be called as {name.partition(':')[2]}(rows, cfg): {error}; "
            "give it these two parameters (docs/estimators.md)"
        ) from None


def _check_choices(cfg: AdvantageConfig) -> None:
    built_in = BUILT_IN.get(cfg.estimator)
    if built_in is None:
        return
    if cfg.preset == "reference" and not built_in.official:
        raise ConfigError(
            f"advantage.preset reference follows official code, which advantage.estimator {cfg.estimator} "
            "does not have; set it to paper"
        )
    if cfg.backend == "triton" and not built_in.on_gpu:
        raise ConfigError(
            f"advantage.backend triton: advantage.estimator {cfg.estimator} runs on the host only; set it to "
            "auto or numpy"
        )


def _check_rewards(rows: RowTable) -> None:
    bad = np.flatnonzero(~(np.abs(rows.reward) <= LARGEST_REWARD))
    if len(bad):
        row = int(bad[0])
        group = int(rows.group[row])
        task = f"task {rows.tasks[group]}" if 0 <= group < len(rows.tasks) else f"group {group}"
        raise UserError(
            f"reward of row {row} ({task}, trajectory {rows.trajectory[row]}, step {rows.step[row]}) is "
            f"{rows.reward[row]}: the environment must return finite rewards, at most {LARGEST_REWARD:g} in "
            "size"
        )


def _check_result(found: Any, rows: int, name: str) -> None:
    if not isinstance(found, Advantages):
        raise UserError(
            f"advantage.estimator {name} returned {type(found).__name__}; "
            "it must return gigpo_mega.types.Advantages"
        )
    for field in fields(Advantages):
        values: Any = getattr(found, field.name)
        given = f"{getattr(values, 'dtype', type(values).__name__)}{[*getattr(values, 'shape', ())]}"
        wanted = f"{'int64' if field.name == 'step_group' else 'float32'}[{rows}]"
        if given != wanted:
            raise UserError(
                f"advantage.estimator {name} returned {field.name} as {given}; it must be a numpy array "
                f"{wanted}, one value per row"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise UserError(
                f"advantage.estimator {name} returned {field.name} {values[bad[0]]} for row {bad[0]}; "
                "all values must be finite"
            )
