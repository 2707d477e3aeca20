"""GiGPO as a user's estimator, `tests.counted_estimator:gigpo`; notes in $COUNTED which rank called it."""

from __future__ import annotations

import os

from gigpo_mega.algorithms.estimators.gigpo import gigpo as built_in
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable


def gigpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The built-in estimator's advantages."""
    with open(os.environ["COUNTED"], "a", encoding="utf-8") as file:
        file.write(f"{os.environ.get('RANK', '0')}\n")
    return built_in(rows, cfg)
