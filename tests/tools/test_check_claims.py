"""The checker of claims: a number on a page is the record's, or says what proves it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.claims import check, evaluate, rewrite

ROOT = Path(__file__).parents[2]
PAGE = """# Thing

It rises from 39.8% to 61.2% (mean of five
seeds), recorded at abc1234 and def5678.

## Measured

| what | result |
|---|---|
| steps per second | 8,225 |
| gap | 3.2e-07 |

It took 7 minutes on `--rows 51200`, see [here](x_90.png). GRPO ended at 56.8%.
"""
CLAIMS = """
- page: README.md
  recorded:
  - rises from {run.summary.before:.1%} to {run.summary.after:.1%} (mean of {len(run.seeds):words} seeds)
  - recorded at {run.seeds[0].commit:commits} and {run.seeds[1].commit:commits}.
  - "| steps per second | {speed.fast:,} |"
  - "| gap | {max(run.seeds.gap):.1e} |"
  - GRPO ended at {experiments.rooms.variants.grpo.panel.value:.1%}.
  proven:
  - {text: It took 7 minutes, by: tools/time.py}
"""
SEEDS = [{"commit": c * 2, "gap": g} for c, g in (("abc12345", 1e-7), ("def56789", 3.2e-7), ("abc12345", 0.0),
                                                  ("abc12345", 0.0), ("abc12345", 0.0))]  # fmt: skip
SUMMARY = {"variants": {"grpo": {"panel": {"value": 0.5675}}}}
RUN = {"summary": {"before": 0.398125, "after": 0.611875}, "seeds": SEEDS}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = tmp_path / "docs" / "benchmarks"
    records.mkdir(parents=True)
    (records / "run.json").write_text(json.dumps(RUN))
    (records / "speed.json").write_text(json.dumps({"fast": 8225}))
    (tmp_path / "docs" / "experiments" / "rooms").mkdir(parents=True)
    (tmp_path / "docs" / "experiments" / "rooms" / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "docs" / "claims.yaml").write_text(CLAIMS)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "time.py").write_text("LIMIT = 7 * 60\n")
    return tmp_path


def edit(root: Path, name: str, before: str, after: str) -> None:
    text = (root / name).read_text()
    assert before in text
    (root / name).write_text(text.replace(before, after))


def test_right_numbers_pass(root: Path) -> None:
    assert check(root) == []


@pytest.mark.parametrize(("right", "wrong", "line"), [
    ("39.8%", "39.9%", 3), ("five", "six", 3), ("8,225", "8,226", 10), ("3.2e-07", "3e-07", 11),
    ("abc1234", "abc1235", 4), ("61.2%", "62%", 3), ("56.8%", "56.7%", 13),
])  # fmt: skip
def test_a_wrong_number_is_told_with_line_and_record(root: Path, right: str, wrong: str, line: int) -> None:
    edit(root, "README.md", right, wrong)
    [problem] = check(root)
    assert problem.startswith(f"README.md:{line}: {wrong} ")
    assert f" {right} " in problem


def test_a_record_that_changed_is_noticed_and_written(root: Path) -> None:
    edit(root, "docs/benchmarks/run.json", "0.611875", "0.55")
    assert ["61.2%" in problem and "55.0%" in problem for problem in check(root)] == [True]
    assert rewrite(root) == ["README.md:3: 61.2% -> 55.0%"]
    assert (root / "README.md").read_text() == PAGE.replace("61.2%", "55.0%")
    assert check(root) == []
    assert rewrite(root) == []


@pytest.mark.parametrize(("added", "number"), [
    ("Success is 50% there.", "50%"), ("It took 12.5 seconds.", "12.5"), ("It is 3 times as fast.", "3"),
    ("It took 9 to 16 minutes.", "9"), ("It is within 3e-07.", "3e-07"), ("A peak of 775 MiB.", "775"),
    ("A gain of 12 points.", "12"),
    ("| rows | 307 |", "307"), ("It plays 29,000 steps per second.", "29,000"),
    ("From 1.2e-6.", "1.2e-6"), ("1 GiB", "1"), ("takes 5 ms", "5"), ("40 to 60% of it", "40"),
])  # fmt: skip
def test_a_number_in_no_claim_is_told(root: Path, added: str, number: str) -> None:
    edit(root, "README.md", "| gap", f"{added}\n| gap" if added.startswith("|") else "| gap")
    if not added.startswith("|"):
        edit(root, "README.md", "It took 7", f"{added}\n\nIt took 7")
    problems = check(root)
    assert problems
    assert problems[0].split(": ")[1].startswith(f"{number} is in no claim")


def test_pages_under_docs_are_searched_for_numbers_too(root: Path) -> None:
    (root / "docs" / "environments").mkdir()
    (root / "docs" / "environments" / "x.md").write_text("Success\nis 50%.\n")
    [problem] = check(root)
    assert problem.startswith("docs/environments/x.md:2: 50% is in no claim")


def test_numbers_in_code_links_versions_and_names_are_not_claims(root: Path) -> None:
    text = "Run `x --share 50%` of Qwen2.5-7B, torch 2.13.0 on 8 GPUs, [page](a-50%.md).\n\n```\n50%\n```\n"
    (root / "docs" / "x.md").write_text(text)
    assert check(root) == []


def test_a_claim_whose_sentence_is_gone_is_told(root: Path) -> None:
    edit(root, "README.md", "It rises from", "It climbs from")
    first, *_ = check(root)
    assert first.startswith("docs/claims.yaml: README.md has no text 'rises from")


def test_a_proof_that_does_not_exist_is_told(root: Path) -> None:
    (root / "tools" / "time.py").unlink()
    [problem] = check(root)
    assert "'It took 7 minutes' of README.md:13 is proven by tools/time.py, which does not exist" in problem


@pytest.mark.parametrize(("claim", "file", "proven"), [
    ("at most 1.2e-6 of it", "LIMIT = 1e-5", False), ("at most 1.2e-6 of it", "LIMIT = 1.2e-06", True),
    ("51200 points", "ROWS = 51_200", True), ("takes 95% of it", "USABLE = 0.95", True),
    ("takes 95% of it", "USABLE = 0.195", False), ("takes 95% of it", "name95 = v1.95.0", False),
    ("2 of 320 points", "two = 2", False), ("2 of 320 points", "many = 320", True),
    ("takes 2 points", "two = 2", True),
])  # fmt: skip
def test_a_proof_holds_one_of_the_claims_numbers(root: Path, claim: str, file: str, proven: bool) -> None:
    edit(root, "README.md", "It took 7 minutes", claim)
    edit(root, "docs/claims.yaml", "It took 7 minutes", claim)
    (root / "tools" / "time.py").write_text(file)
    where = f"docs/claims.yaml: {claim!r} of README.md:13 is proven by tools/time.py"
    assert check(root) == ([] if proven else [f"{where}, in which none of its numbers stands"])


@pytest.mark.parametrize(("before", "after", "said"), [
    ("see [here]", "see [here]", False),
    ("see [here](x_90.png).", "see [here](x_90.png).\n\nOf it no record is kept.", False),
    ("see [here](x_90.png).", "see [here](x_90.png).\n- no record is kept", False),
    ("| gap |", "| gap (no record is kept) |", False),
    ("see [here]", "no record\nis kept, see [here]", True),
])  # fmt: skip
def test_an_observation_without_a_record_must_say_so_in_its_paragraph(
    root: Path, before: str, after: str, said: bool
) -> None:
    edit(root, "docs/claims.yaml", "by: tools/time.py", "by: note")
    edit(root, "docs/claims.yaml", '"| gap |', '"| gap... |')
    edit(root, "README.md", before, after)
    where = "docs/claims.yaml: 'It took 7 minutes' is a note, but the paragraph of README.md:13"
    assert check(root) == ([] if said else [f"{where} does not say that no record is kept"])


def test_a_recorded_sentence_may_not_hide_a_literal_number(root: Path) -> None:
    edit(root, "docs/claims.yaml", "{speed.fast:,}", "8,225")
    assert any("8,225 is written out in a recorded claim" in problem for problem in check(root))


def test_a_record_without_the_field_is_one_line(root: Path) -> None:
    edit(root, "docs/claims.yaml", "run.summary.before", "run.summary.befor")
    assert "docs/claims.yaml: README.md: run.summary.befor: 'befor'" in check(root)
    edit(root, "docs/claims.yaml", "run.summary.befor", "walk.x")
    assert "docs/claims.yaml: README.md: walk.x: 'walk'" in check(root)


def test_expressions() -> None:
    records = {"a": {"x": [1.0, 3.0], "deep": [{"b c": {"n": 2}}, {"b c": {"n": 4}}], "y": 10}}
    assert evaluate("mean(a.x) * 60", records) == 120.0
    assert evaluate("max(a.x - a.y)", records) == -7.0
    assert evaluate('sum(a.deep["b c"].n) / a.y', records) == pytest.approx(0.6)
    assert evaluate("a.x[1]", records) == 3.0
    for bad, why in {
        "a.x.__class__": "string indices|float",
        "open('x')": "is no field, item",
        "a.nothing": "'nothing'",
        "lambda: 1": "is no field, item",
        "b.x": "'b'",
    }.items():
        with pytest.raises(ValueError, match=rf"^{re.escape(bad)}: .*({why})"):
            evaluate(bad, records)


def test_the_command_ends_with_status_1_if_a_number_is_wrong(tmp_path: Path) -> None:
    """On this repository's own pages and records."""
    for part in ("README.md", "docs"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part)
    for part in ("tools", "tests", "gigpo_mega", "envs", "kernels", "configs"):
        (tmp_path / part).symlink_to(ROOT / part)
    command = [sys.executable, str(ROOT / "tools" / "check_claims.py"), "--root", str(tmp_path)]
    right = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (right.returncode, right.stdout) == (0, "")
    page = tmp_path / "README.md"
    page.write_text(page.read_text().replace("8,225", "8,252"))
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "8,252" in wrong.stdout
    assert "8,225" in wrong.stdout
    written = subprocess.run([*command, "--write"], capture_output=True, text=True, check=False)
    assert written.returncode == 0
    assert page.read_text() == (ROOT / "README.md").read_text()


def test_every_claim_of_this_repository_is_the_records() -> None:
    assert check(ROOT) == []
