"""Tasks that are rows of a file, a file per split: JSON lines or parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError, SeedTasks, Task, TaskSource

_SUFFIXES = (".jsonl", ".parquet")


def split_file(data: Path, split: str) -> Path:
    """`data`/`split`.jsonl or .parquet; raises EnvironmentError where there is neither."""
    files = [data / f"{split}{suffix}" for suffix in _SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise EnvironmentError(f"environment.tasks.data: there is no {files[0]} and no {files[1].name}")
    return file


def read_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of `file` in order; raises EnvironmentError for a line that is no JSON."""
    if file.suffix == ".parquet":
        if find_spec("pyarrow") is None:
            raise EnvironmentError(f"{file} needs pyarrow: pip install pyarrow")
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

        yield from parquet.read_table(file).to_pylist()
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise EnvironmentError(f"{file}:{number} is no JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class RowTasks:
    """A task per row of `data`/<split>.jsonl or .parquet; its source is the row as JSON."""

    data: str

    def tasks(self, split: str) -> list[Task]:
        """The rows of a split, their `data_source` as kind."""
        rows = enumerate(read_rows(split_file(Path(self.data), split)))
        return [
            Task(f"{split}/{i}", str(row.get("data_source") or "row"), json.dumps(row, default=str))
            for i, row in rows
        ]


def rows_or_seeds(data: str = "", train: int = 1024, test: int = 128) -> TaskSource:
    """RowTasks of the folder `data`, or SeedTasks where there is none."""
    return RowTasks(data) if data else SeedTasks(train, test)
