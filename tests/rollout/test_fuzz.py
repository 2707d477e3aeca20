"""The fuzz of tools/fuzz_tokens.py in small, and that it notices what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gigpo_mega.config import EngineConfig
from gigpo_mega.learner import targets
from gigpo_mega.learner.samples import Samples
from gigpo_mega.rollout.gateway.conversations import Conversations
from gigpo_mega.rollout.gateway.session import Session
from gigpo_mega.rollout.prompt import EpisodePrompt
from gigpo_mega.types import RowTable
from tests import preloaded
from tools.bench.fuzz.audit import WRONG
from tools.bench.fuzz.play import CUT, KINDS, SERVED, UNCUT, Fuzz, Kind

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with Fuzz(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


def wrong(counts: dict[str, int]) -> set[str]:
    return {name for name in WRONG if counts[name]}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_trained_on_was_sampled(fuzz: Fuzz, kind: Kind) -> None:
    found = fuzz.run(kind, 24, seed=KINDS.index(kind) + 100)
    assert wrong(found) == set()
    assert found["episodes"] == 24
    assert found["rows_trained"] > 24
    assert found["tokens_trained"] > 5 * found["rows_trained"]
    assert (found["histories"] > 20) == (kind.longest != CUT and kind.context != "window")


APPEND, GATEWAY = SERVED[0], SERVED[-1]


def test_what_is_trained_on_was_sampled_by_a_real_server(fuzz: Fuzz, tmp_path: Path) -> None:
    with preloaded.engine(fuzz.model, EngineConfig(max_total_tokens=4 * UNCUT), tmp_path / "log") as server:
        found = fuzz.run(APPEND, 16, seed=3, url=server.url)
    assert (found["episodes"], wrong(found)) == (16, set())


def rolled(original: Callable[..., Any]) -> Callable[..., Any]:
    """The same arrays, one token later."""
    return lambda *arguments: np.roll(original(*arguments), 1)


def re_encoded(advance: Callable[..., None]) -> Callable[..., None]:
    """Answers enter the conversation as their texts do."""

    def broken(self: EpisodePrompt, action: str, observation: Any, said: Any = ()) -> None:
        tokenizer = self._builder._tokenizer
        advance(self, action, observation, [*tokenizer.encode(tokenizer.decode(said)), said[-1]])

    return broken


def re_rendered(answered: Callable[..., None]) -> Callable[..., None]:
    """A conversation forgets every answer."""
    return lambda *arguments: None


def forgetful(record: Callable[..., None]) -> Callable[..., None]:
    """The third call of an episode is lost."""
    return lambda self, number, *rest: None if number == 3 else record(self, number, *rest)


def neighbors(item: Callable[..., Any]) -> Callable[..., Any]:
    """A row's log-probs are those of the first row, as many as it needs."""

    def broken(self: Samples, row: int) -> Any:
        found, first = item(self, row), item(self, int(self.rows[0]))
        return replace(found, logprobs=np.resize(first.logprobs, len(found.logprobs)))

    return broken


def doubled(from_groups: Callable[..., RowTable]) -> Callable[..., RowTable]:
    """The last group is laid out twice."""
    return lambda groups: from_groups([*groups, groups[-1]])


@pytest.mark.parametrize(
    ("kind", "owner", "name", "breaking", "seen"),
    [
        (APPEND, targets, "_sampled", rolled, {"rows_not_as_sampled"}),
        (APPEND, targets, "_versions", rolled, {"rows_not_as_sampled"}),
        (APPEND, Samples, "__getitem__", neighbors, {"rows_not_as_sampled"}),
        (APPEND, RowTable, "from_groups", doubled, {"rows_trained_twice"}),
        (APPEND, EpisodePrompt, "advance", re_encoded, {"histories_not_as_said"}),
        (GATEWAY, Conversations, "answered", re_rendered, {"histories_not_as_said"}),
        (GATEWAY, Session, "_record", forgetful, {"sessions_trained_in_part"}),
    ],
)  # fmt: skip
def test_a_broken_alignment_is_noticed(
    fuzz: Fuzz,
    kind: Kind,
    owner: Any,
    name: str,
    breaking: Callable[..., Any],
    seen: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    assert seen <= wrong(fuzz.run(kind, 16, seed=7))
