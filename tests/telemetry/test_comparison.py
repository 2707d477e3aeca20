"""The page of two runs says what each of them says, and what was set otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gigpo_mega.commands import report
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.report.comparison import aligned, differences, write_comparison
from tests.telemetry.test_report import Balance, evaluation, points


def write_run(folder: Path, iterations: int, success: float, gamma: float, **panel: Any) -> Path:
    """A run whose success, score and panel are constant."""
    folder.mkdir(parents=True)
    metrics = {"rollout/success": success, "rollout/score": 10 * success, "loss/approx_kl": 1e-3}
    rows = [json.dumps({"iteration": i, **metrics}) + "\n" for i in range(iterations)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    record = evaluation(iterations, success) | panel
    (folder / f"evaluation_{iterations:06d}.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(f"output: {folder}\nadvantage: {{gamma: {gamma}, omega: 1.0}}\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "first", 6, 0.3, 0.95), write_run(tmp_path / "second", 4, 0.5, 0.9)


def test_the_page_is_complete_and_next_to_the_first_run(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(run) for run in runs])
    path = runs[0] / "report_against_second.html"
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Success rate", "Reward", "KL divergence: sampled"]


def test_headlines_are_both_panels_and_their_difference(runs: tuple[Path, Path]) -> None:
    text = write_comparison(*runs).read_text()
    assert re.findall(r"<b>(.*?)</b>", text) == ["30.0%", "50.0%", "+20.0"]
    assert "points of second over first, standard error 2.8" in text
    assert "The panels differ" not in text
    (total,) = re.findall(r'<tr class="all">(.*?)</tr>', text)
    assert re.findall(r"<td[^>]*>(.*?)</td>", total) == ["ALL", "400", "30.0%", "50.0%", "+20.0"]


def test_each_run_has_a_line_as_long_as_the_run(runs: tuple[Path, Path]) -> None:
    text = write_comparison(*runs).read_text()
    one, other = points(text, "Reward")
    assert (len(one), len(other)) == (6, 4)
    assert one[0] > other[0]  # downwards: 3 is below 5
    assert points(text, "Success rate")[0] != points(text, "Success rate")[1]
    assert re.findall(r'class="mark" style="stroke:var\(--c(\d)\)"', text) == ["0", "1"] * 2


def test_values_are_put_at_their_iterations() -> None:
    assert aligned([0, 2], [5.0, 6.0], [0, 2, 3])[:2] == [5.0, 6.0]
    assert str(aligned([0, 2], [5.0, 6.0], [0, 1, 2])) == "[5.0, nan, 6.0]"


def test_only_settings_that_differ_are_listed(runs: tuple[Path, Path]) -> None:
    one, other = ((run / "config.yaml").read_text() for run in runs)
    assert differences(one, other) == [("advantage.gamma", "0.95", "0.9")]
    assert differences(one, one) == []
    assert differences("seed: 1\n", "") == [("seed", "1", "-")]
    text = write_comparison(*runs).read_text()
    assert "<td>advantage.gamma</td><td>0.95</td><td>0.9</td>" in text


def test_panels_that_are_not_alike_are_said_so(runs: tuple[Path, Path], tmp_path: Path) -> None:
    hotter = write_run(tmp_path / "hotter", 4, 0.5, 0.9, temperature=1.0)
    text = write_comparison(runs[0], hotter).read_text()
    assert "The panels differ: episodes 400, split valid_unseen, temperature 0.4; episodes 400," in text


def test_runs_in_folders_of_one_name_are_told_apart(runs: tuple[Path, Path], tmp_path: Path) -> None:
    namesake = write_run(tmp_path / "elsewhere" / "first", 4, 0.5, 0.9)
    assert "<h1>first (1) and first (2)</h1>" in write_comparison(runs[0], namesake).read_text()


def test_a_folder_without_a_run_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is not a run folder"):
        write_comparison(runs[0], tmp_path / "empty")


def test_a_headline_is_of_the_run_that_was_evaluated(runs: tuple[Path, Path]) -> None:
    """The second run's panel used to stand under the first one's name."""
    for record in runs[0].glob("evaluation_*.json"):
        record.unlink()
    text = write_comparison(*runs).read_text()
    assert re.findall(r"<b>(.*?)</b>", text) == ["50.0%"]
    assert "second, held-out at iteration 4" in text
