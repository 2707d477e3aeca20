"""Files of records as people have them: a row becomes a task, or is refused with file and row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from envs.base import EnvError, SeedTasks
from envs.records import RecordTasks, records_or_seeds


def test_every_object_becomes_a_task_whatever_its_fields_hold(tmp_path: Path) -> None:
    rows = [{"a": None}, {"data_source": 7, "html": "<b>\u2028</b>"}, {"x": math.nan, "y": "y" * 10**6}, {}]
    text = "\r\n\r\n".join(map(json.dumps, rows))
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    tasks = RecordTasks(str(tmp_path)).tasks("train")
    assert [(task.id, task.kind) for task in tasks] == [
        ("train/0", "row"), ("train/1", "7"), ("train/2", "row"), ("train/3", "row")]  # fmt: skip
    assert [repr(json.loads(task.source)) for task in tasks] == [repr(row) for row in rows]


@pytest.mark.parametrize("line", [b"null", b"[]", b"3", b'"a"', b"{", b"{'a': 1}", b'{"a": "\xeb"}'])
def test_a_line_that_is_no_object_is_refused_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(EnvError, match=r"train\.jsonl:3 is [^\n]+$"):
        RecordTasks(str(tmp_path)).tasks("train")


def test_tasks_are_seeds_without_a_folder(tmp_path: Path) -> None:
    assert records_or_seeds(train=3) == SeedTasks(3)
    with pytest.raises(EnvError, match=r"there is no .*train\.jsonl and no train\.parquet"):
        records_or_seeds(str(tmp_path)).tasks("train")


def test_odd_values_of_parquet_become_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from datetime import date
    from decimal import Decimal

    columns = {"day": [date(2020, 1, 2)], "cost": [Decimal("1.50")], "raw": [b"a"], "none": pyarrow.nulls(1)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    (task,) = RecordTasks(str(tmp_path)).tasks("train")
    assert json.loads(task.source) == {"day": "2020-01-02", "cost": "1.50", "raw": "b'a'", "none": None}
