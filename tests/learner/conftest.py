"""A place for tests of the learner in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gigpo_mega.learner import layout as parallel
from tests.learner import ranks
from tests.tiny import write_policy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ranks.Place]:
    """A tiny random policy, in the layout of one process."""
    cfg = ranks.config()
    layout = parallel.initialize(cfg.parallel, seed=0)
    folder = tmp_path_factory.mktemp("policy")
    yield ranks.Place(cfg, write_policy(folder), folder, layout)
    parallel.shutdown()
