"""The documentation site: every page is in it, links lead somewhere, and it shows what the code does."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from gigpo_mega.config.load import FIELDS
from gigpo_mega.program import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}


def script(name: str) -> ModuleType:
    """A module of docs, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = script("mkdocs_hooks")
MADE: dict[str, str] = {name: make() for name, make in HOOKS.PAGES.items()}


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(entry)


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.CSafeLoader)
    assert sorted(leaves(settings["nav"])) == sorted([*PAGES, *MADE])
    assert settings["strict"] is True


@pytest.mark.parametrize("page", [*PAGES, *MADE])
def test_links_of_a_page_lead_to_files(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (PAGES | MADE)[page], flags=re.M | re.S)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"\w+:", target)]
    found = {target: (DOCS / page).parent / target for target in local}
    made = {(DOCS / name).resolve() for name in MADE}
    missing = [name for name, path in found.items() if not path.exists() and path.resolve() not in made]
    assert missing == []


def test_made_pages_hold_every_field_command_and_result() -> None:
    configuration, commands = MADE["reference/configuration.md"], MADE["reference/commands.md"]
    assert [path for path in FIELDS if f"### `{path}`" not in configuration] == []
    assert [name for name in COMMANDS if f"## gigpo-mega {name}\n" not in commands] == []
    assert "usage: gigpo-mega convert" in commands
    assert MADE["measured.md"].count("\n| ") > 15


def test_the_example_of_the_concepts_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGES["concepts.md"], re.M | re.S)
    exec(compile(block, "concepts.md", "exec"), {})


@pytest.mark.parametrize("name", ["advantage_levels", "anchor_groups", "data_flow", "placements"])
def test_a_picture_is_what_its_script_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)  # some scripts import others
    assert (DOCS / f"{name}.svg").read_text() == script(name).picture()


def test_the_anchor_groups_show_what_the_estimator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    drawn = script("anchor_groups")
    steps, found = drawn.returns(), drawn.advantages().step
    for state in drawn.COLORS:
        rows = [row for row, step in enumerate(steps) if step[0] == state]
        returns = np.array([steps[row][2] for row in rows])
        assert np.allclose(found[rows], returns - returns.mean(), atol=1e-6)


def test_a_link_out_of_the_docs_is_left_as_text() -> None:
    class FakePage:
        meta: ClassVar[dict[str, Any]] = {}

        class file:
            src_uri = "environments/your_own.md"

    said = HOOKS.on_page_markdown(
        "[a](../../README.md), [b](../faq.md#x), [c](#here), [d](https://x.org), ![e](../../x.png)",
        page=FakePage,
    )
    assert said == "a, [b](../faq.md#x), [c](#here), [d](https://x.org), ![e](../../x.png)"


def test_a_link_to_the_figures_leads_to_their_page() -> None:
    class FakePage:
        meta: ClassVar[dict[str, Any]] = {}

        class file:
            src_uri = "environments/your_own.md"

    said = HOOKS.on_page_markdown("[figures](../../README.md#measured)", page=FakePage)
    assert said == "[figures](../measured.md)"


def test_advantages_have_an_index_except_in_code() -> None:
    html = "<p>A_E, A_S and <code>A_E</code></p><pre><code>A_S</code></pre><p>LA_E A_S.</p>"
    assert HOOKS.on_page_content(html) == (
        "<p>A<sub>E</sub>, A<sub>S</sub> and <code>A_E</code></p><pre><code>A_S</code></pre>"
        "<p>LA_E A<sub>S</sub>.</p>"
    )


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: make docs")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'id="optimizerlr"' in (tmp_path / "reference/configuration/index.html").read_text()
