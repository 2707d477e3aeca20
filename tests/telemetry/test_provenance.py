"""Records say which command made them, in words that mean the same on another machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gigpo_mega.telemetry.provenance import command, provenance

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["tools/bench_envs.py", "--env", "sokoban"], "python tools/bench_envs.py --env sokoban"),
        ([f"{ROOT}/tools/check_webshop.py"], "python tools/check_webshop.py"),
        ([f"{ROOT}/gigpo_mega/__main__.py", "bench-kernels"], "python -m gigpo_mega bench-kernels"),
        (["/usr/bin/gigpo-mega", "bench-kernels", "--quick"], "gigpo-mega bench-kernels --quick"),
        (["tools/mutate.py", "--only", "dual clip"], "python tools/mutate.py --only 'dual clip'"),
        (["tools/x.py", f"{ROOT}/configs/a.yaml", f"--output={ROOT}/runs"],
         "python tools/x.py configs/a.yaml --output=runs"),
        (["tools/x.py", "--original", "/data/me/WebShop/", "--save=/data/me/out.json", "http://a/b"],
         "python tools/x.py --original WebShop/ --save=out.json http://a/b"),
    ],
)  # fmt: skip
def test_a_command_line_names_no_folder_of_the_machine(
    argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", argv)
    assert command() == provenance()["command"] == expected


def test_a_record_begins_with_what_made_it() -> None:
    assert list(provenance("numpy")) == ["command", "commit", "device", "load_average", "versions"]
