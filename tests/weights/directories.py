"""Hugging Face directories that differ from what transformers wrote, and what becomes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gigpo_mega.weights import convert, verify
from gigpo_mega.weights.sharded import Grid
from tests.helpers import refused

ABSENT: Any = object()  # a field of config.json that is left out


def configured(source: Path, directory: Path, changes: dict[str, Any]) -> Path:
    """A copy of `source` with fields of its config.json changed or left out."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not ABSENT}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def assert_computes_what_transformers_does(hf: Path, tmp_path: Path) -> None:
    convert.import_hf(hf, tmp_path / "checkpoint", Grid())
    assert verify.different(hf, tmp_path / "checkpoint") == []
    gap = verify.logits_gap(hf, tmp_path / "checkpoint")
    assert gap.scale > 0.5
    assert gap.max <= 1e-5 * gap.scale


def refusal(hf: Path, tmp_path: Path) -> str:
    """The one line about a directory that cannot be imported; nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    line = refused(lambda: convert.import_hf(hf, tmp_path / "out", Grid()))
    assert sorted(tmp_path.rglob("*")) == before
    assert len(line) < 700
    return line
