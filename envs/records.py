"""Tasks that are records of a file, one file per split: JSON lines or parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.base import EnvError, SeedTasks, Task, TaskSource

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a file."""

    place: str  # file and row, for messages
    fields: Mapping[str, Any]


def split_file(data: Path, split: str) -> Path:
    """`data`/`split`.jsonl or .parquet; raises EnvError if neither exists."""
    files = [data / f"{split}{suffix}" for suffix in _SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise EnvError(f"environment.tasks.data: there is no {files[0]} and no {files[1].name}; add one")
    return file


def read_records(file: Path) -> Iterator[Record]:
    """The records of `file` in order; raises EnvError for a row that cannot be read."""
    return _parquet(file) if file.suffix == ".parquet" else json_lines(file)


def json_lines(file: Path) -> Iterator[Record]:
    """The objects in a JSON lines file in UTF-8; a byte order mark and blank lines are skipped.

    Raises EnvError with file and line for anything else.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                fields = json.loads(text)
            except UnicodeDecodeError as error:
                raise EnvError(f"{place} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise EnvError(f"{place} is not JSON: {error}; a line holds one JSON object") from None
            if not isinstance(fields, dict):
                raise EnvError(f"{place} is a JSON {type(fields).__name__}; a line holds one JSON object")
            yield Record(place, fields)


def _parquet(file: Path) -> Iterator[Record]:
    if find_spec("pyarrow") is None:
        raise EnvError(f"{file} needs pyarrow: pip install pyarrow")
    import pyarrow  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

    try:
        rows = parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise EnvError(f"{file} cannot be read as parquet: {error}; write it again") from None
    for number, fields in enumerate(rows, start=1):
        yield Record(f"{file}: row {number}", fields)


@dataclass(frozen=True, slots=True)
class RecordTasks:
    """A task per record of `data`/<split>.jsonl or .parquet; its source is the record as JSON.

    `check` raises EnvError for a record that the environment cannot use.
    """

    data: str
    check: Callable[[Record], None] | None = None

    def tasks(self, split: str) -> list[Task]:
        """The records of a split; a task's kind is the record's `data_source`.

        Raises EnvError with file and row for a record that cannot be used.
        """
        found: list[Task] = []
        for record in read_records(split_file(Path(self.data), split)):
            if self.check is not None:
                self.check(record)
            try:
                source = json.dumps(record.fields, default=str)
            except (TypeError, ValueError, RecursionError) as error:  # keys that are no texts
                raise EnvError(f"{record.place} cannot be written as JSON: {error}") from None
            kind = str(record.fields.get("data_source") or "row")
            found.append(Task(f"{split}/{len(found)}", kind, source))
        return found


def records_or_seeds(data: str = "", train: int = 1024, test: int = 128) -> TaskSource:
    """RecordTasks of the folder `data`, or SeedTasks if no folder is given."""
    return RecordTasks(data) if data else SeedTasks(train, test)
