"""Where the programs in tools/ write their records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish


def test_a_record_is_printed_and_saved_if_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {**provenance(), "rows": 3}
    publish(record, parser("").parse_args([]))
    assert capsys.readouterr().out == ""
    publish(record, parser("").parse_args(["--json", "--save", str(tmp_path / "a.json")]))
    assert json.loads(capsys.readouterr().out) == record
    assert json.loads((tmp_path / "a.json").read_text()) == record


def test_a_record_without_its_command_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="provenance"):
        publish({"rows": 3}, parser("").parse_args(["--json"]))


def test_a_folder_that_does_not_exist_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (tmp_path / "absent" / "a.json", tmp_path):
        with pytest.raises(SystemExit):
            parser("").parse_args(["--save", str(target)])
        assert f"argument --save: {target} cannot be written: " in capsys.readouterr().err
