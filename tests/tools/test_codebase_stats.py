"""tools/codebase_stats.py: its numbers on a small example, and the start-up of the programs in tools/."""

from __future__ import annotations

import ast
import re

from tools import codebase_stats
from tools.codebase_stats import ROOT, Module, import_cycles, private_functions, sizes, time_help


def module(name: str, text: str) -> Module:
    return Module(ROOT / f"{name}.py", ast.parse(text), len(text.splitlines()))


EXAMPLE = [
    module("a", "import b\n\ndef f():\n    _once()\n    _twice(_twice())\n\ndef _once():\n    pass\n\n"
                "def _twice():\n    pass\n"),
    module("b", "import c\nimport os\n\ndef __getattr__(name):\n    return name\n"),
    module("c", "from b import x\n\ndef later():\n    import a\n"),
]  # fmt: skip


def test_private_functions_are_counted_by_the_places_that_refer_to_them() -> None:
    assert private_functions(EXAMPLE) == {
        "private functions": "2 (40.0% of all)",
        "private functions used once": "1 (20.0% of all)",
    }


def test_sizes_are_median_p90_and_largest() -> None:
    found = sizes(EXAMPLE)
    assert (found["files"], found["functions"]) == (3, 5)
    assert found["file lines: median, p90, largest"].split(" / ") == ["5", "10", "11"]
    assert found["function lines: median, p90, largest"].split(" / ") == ["2", "3", "3"]


def test_cycles_are_those_of_imports_at_the_top_level() -> None:
    assert import_cycles(EXAMPLE) == {"import cycles": "1 [('b', 'c')]"}
    assert import_cycles(EXAMPLE[:2]) == {"import cycles": "0"}


def test_this_checkout_has_no_cycle() -> None:
    assert codebase_stats.measure(start_up=False)["packages"]["import cycles"] == "0"


def test_start_up_says_what_is_loaded() -> None:
    assert re.fullmatch(r"\d+\.\d\d s, \d+, none", time_help(("tools/check_claims.py",)))
    assert "tools/check_claims.py" in [program[0] for program in codebase_stats.PROGRAMS]
