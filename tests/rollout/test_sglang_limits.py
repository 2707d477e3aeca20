"""The client at its limits: answers of any length, and no file left to open."""

from __future__ import annotations

import os
import resource

import pytest
from fake_server import FakeServer, talk

from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import Completion, EngineError, Sampling
from gigpo_mega.rollout.engines.fleet import Fleet
from gigpo_mega.rollout.engines.sglang import SGLangEngine


def test_an_answer_may_have_any_length() -> None:
    """It is one line of the stream, of 4 MiB here."""
    server = FakeServer()
    server.tokens = 90_000

    async def conversation(engine: SGLangEngine) -> Completion:
        return await engine.generate([7], Sampling(max_new_tokens=90_000))

    assert len(talk(server, conversation).response_ids) == 90_000


def test_too_many_open_files_are_not_the_engine_s_fault() -> None:
    async def conversation(engine: SGLangEngine) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(first_free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            await Fleet([engine], patience=60).generate([7], Sampling())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(UserError, match=r"too many files are open .* \(ulimit -n\)") as caught:
        talk(FakeServer(), conversation)
    assert not isinstance(caught.value, EngineError)
