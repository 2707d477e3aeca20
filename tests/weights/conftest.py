"""Random policies that the tests of this folder share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_policy


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Random policies as transformers wrote them, each once; the logits depend on the rotation."""
    folder, written = tmp_path_factory.mktemp("policies"), dict[str, Path]()

    def policy(family: str, **changes: Any) -> Path:
        key = json.dumps([family, changes], sort_keys=True)
        if key not in written:
            made = {"initializer_range": 0.3, "tie_word_embeddings": False} | changes
            written[key] = write_policy(folder / str(len(written)), family, **made)
        return written[key]

    return policy
