"""What programs that measure have in common: --json, --save, and the record behind both."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --json and --save, whose help shows `description` as it stands."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=description, formatter_class=raw)
    made.add_argument("--json", action="store_true", help="print the record as the last line")
    made.add_argument("--save", type=_writable, metavar="FILE", help="write the record to this file")
    return made


def publish(record: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write and print `record`, which has the fields of `provenance`, as the options of `parser` say."""
    assert {"command", "commit"} <= record.keys(), "a record begins with provenance()"
    if options.save:
        options.save.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(record))


def _writable(text: str) -> Path:
    """The file `text`, which is written long after the options are read, and perhaps from another folder."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {why}")
    return path
