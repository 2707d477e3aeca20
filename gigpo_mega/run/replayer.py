"""A run that learns from the groups of another one, without engine and environments."""

from __future__ import annotations

from gigpo_mega.config import Config
from gigpo_mega.run.ranks import Signals
from gigpo_mega.run.recorder import Recorder
from gigpo_mega.storage.journal import Journal


class Replayer(Recorder):
    """Takes the groups of every iteration from the journal `recorded`, which stays as it is."""

    def __init__(self, cfg: Config, recorded: Journal, start: int, signals: Signals) -> None:
        super().__init__(cfg, start, signals)
        self._recorded = recorded

    def _sample(self, iteration: int) -> None:
        self._journal.copy(iteration, self._recorded)
