"""The tagger behind the original's reward: asked for before anything is made, and loaded or refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.base import EnvError
from envs.webshop import noun_extraction
from gigpo_mega.config import Config, EnvironmentConfig
from gigpo_mega.tasks import load_tasks


@pytest.fixture(autouse=True)
def _loaded_anew() -> Iterator[None]:
    noun_extraction._spacy.cache_clear()
    yield
    noun_extraction._spacy.cache_clear()


@pytest.mark.parametrize("absent", ["spacy", "en_core_web_sm"])
def test_an_absent_tagger_is_refused_before_a_catalog_is_made(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith(absent) else find(name)
    )
    tasks = {"data": str(tmp_path / "shop"), "generate": {"products": 600}}
    with pytest.raises(
        EnvError, match=r"^environment\.tasks\.nouns spacy: .* pip install .* or set it to li"
    ):
        load_tasks(Config(environment=EnvironmentConfig(name="webshop", tasks=tasks)))
    assert not (tmp_path / "shop").exists()


def test_a_tagger_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(exclude: object) -> None:
        raise OSError("[E053] Could not read config file\nfrom there")

    monkeypatch.setattr(noun_extraction.importlib, "import_module", lambda name: SimpleNamespace(load=load))
    monkeypatch.setattr(noun_extraction.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(
        EnvError, match=r"^environment\.tasks\.nouns spacy: en_core_web_sm cannot be loaded \(OSE"
    ):
        noun_extraction.noun_extractor("spacy")
