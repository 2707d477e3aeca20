"""The files that a release rests on: one version, a changelog in its form, hooks that are the lint."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog


def planned(target: str) -> list[str]:
    """The commands of a target of the Makefile, those of `setup` not counted."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = (line.strip() for line in done.stdout.splitlines())
    return [line for line in kept if line.startswith(".venv/bin/") and "pip install" not in line]


def test_the_version_is_in_one_place_and_the_citation_follows() -> None:
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert {"cff-version", "title", "message", "authors"} <= set(cited)
    others = [path for path in (ROOT / "gigpo_mega").rglob("*.py") if PROJECT["version"] in path.read_text()]
    assert others == []


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (.*)$", text, re.M)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= SECTIONS
    assert len(text.splitlines()) < 120


def test_the_hooks_before_a_commit_are_the_lint() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert sorted(hook["entry"] for hook in local["hooks"]) == sorted(planned("lint"))
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_make_check_is_the_lint_and_the_unit_tests_that_a_change_reaches() -> None:
    lines = planned("check")
    assert sorted(line for line in lines if "pytest" not in line) == sorted(planned("lint"))
    (tests,) = (line for line in lines if "pytest" in line)
    assert "-m pytest -m unit --changed" in tests


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md")), ids=lambda f: f.stem)
def test_an_issue_template_has_a_head_and_asks_for_the_report(file: Path) -> None:
    _, head, body = file.read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about"}
    assert ("gigpo-mega bug-report" in body) == (file.stem != "feature")
