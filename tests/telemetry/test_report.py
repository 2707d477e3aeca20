"""The report says what the files of a run say, and needs nothing else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.curve import plot_seeds
from gigpo_mega.telemetry.report import percent, scientific, smooth, write_report

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Fails on a tag closed that was not open, and knows what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def evaluation(step: int, success: float) -> dict[str, Any]:
    return {"step": step, "episodes": 400, "temperature": 0.4, "split": "valid_unseen", "success": success,
            "standard_error": 0.02, "length": 20.0, "invalid": 0.1,
            "kinds": {"pick_and_place_simple": {"episodes": 300, "success": success},
                      "look_at_obj_in_light": {"episodes": 100, "success": success - 0.1}}}


def recorded() -> dict[str, Any]:
    step = {"observation": "You see a <mug> & a key.", "action": "take mug", "reward": 0.0, "valid": True,
            "episode": 0.5, "step": -1.25, "group": 7, "shared": 3}
    odd = {**step, "action": "fly", "valid": False, "group": 8, "shared": 0}
    return {"step": 0, "task": "trial_1", "kind": "pick_and_place_simple", "episodes": [
        {"success": True, "score": 10.0, "ended_by": "success", "steps": [step, odd]},
        {"success": False, "score": 0.0, "ended_by": "limit", "steps": [step]},
    ]}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rows = [{"step": i, "rollout/success": 0.3 + i / 100, "rollout/score": 3.0, "rollout/length": 20.0,
             "rollout/invalid": 0.1, "advantage/episode_abs": 0.8, "advantage/step_abs": 0.5,
             "anchor/size_1": 0.4, "anchor/size_2_3": 0.3, "anchor/size_4_7": 0.2, "anchor/size_8_plus": 0.1,
             "engine/logprob_gap_mean": 1e-7 * (i + 1), "engine/logprob_gap_max": 1e-6, "time/rollout": 6.0,
             "time/update": 4.0, "time/total": 30.0} for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, success in ((0, 0.30), (10, 0.45)):
        (tmp_path / f"evaluation_{step:06d}.json").write_text(json.dumps(evaluation(step, success)))
    (tmp_path / "episodes.jsonl").write_text(json.dumps(recorded()) + "\n")
    (tmp_path / "config.yaml").write_text("steps: 10\nadvantage:\n  gamma: 0.95\n")
    return tmp_path


def test_report_is_whole_and_self_contained(run_folder: Path):
    path = write_report(run_folder)
    text = path.read_text()
    assert path == run_folder / "report.html"
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert re.findall(r'(?:src|href)="|@import|url\(|<script', text) == []
    assert not list(run_folder.glob("*.partial"))


def test_headline_is_the_panel_before_and_after(run_folder: Path):
    tiles = re.findall(r"<b>(.*?)</b>", write_report(run_folder).read_text())
    assert tiles == ["30.0%", "45.0%", "+15.0", "5.0 min", "1.0e-06"]


def test_panel_table_has_every_type_and_all(run_folder: Path):
    text = write_report(run_folder).read_text()
    table = re.search(r"task type.*?</table>", text, re.DOTALL)
    assert table
    rows = re.findall(r"<tr[^>]*>(<td>.*?)</tr>", table.group(), re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells == [
        ["look at obj in light", "100", "20.0%", "35.0%", "+15.0"],
        ["pick and place simple", "300", "30.0%", "45.0%", "+15.0"],
        ["ALL", "400", "30.0%", "45.0%", "+15.0"],
    ]


def test_every_chart_is_there(run_folder: Path):
    text = write_report(run_folder).read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == ["Success rate", "Reward", "Episode length", "Invalid actions", "Advantage split",
                      "Anchor groups", "Stage times", "Engine against learner",
                      "Iteration 0: pick and place simple"]
    assert text.count("<svg") == 8
    assert text.count('class="mark"') == 2


def test_shared_states_have_one_colour_and_lone_ones_none(run_folder: Path):
    text = write_report(run_folder).read_text()
    colours = re.findall(r'<i class="g" style="(--g:[^"]*)" title="take mug">', text)
    assert len(colours) == 2
    assert len(set(colours)) == 1
    assert '<i title="fly">' in text
    assert "#7 \u00b7 3 more" in text
    assert "#8 \u00b7 alone" in text
    assert "fly \u2717" in text


def test_text_of_games_cannot_break_the_page(run_folder: Path):
    text = write_report(run_folder).read_text()
    assert "You see a &lt;mug&gt; &amp; a key." in text
    assert "<mug>" not in text


def test_run_without_training_shows_its_evaluation(tmp_path: Path):
    (tmp_path / "evaluation_000000.json").write_text(json.dumps(evaluation(0, 0.3)))
    text = write_report(tmp_path).read_text()
    assert re.findall(r"<b>(.*?)</b>", text) == ["30.0%"]
    assert re.findall(r"<th[^>]*>(.*?)</th>", text) == ["task type", "episodes", "iteration 0"]
    assert "<h2>Training</h2>" not in text


def test_run_after_one_iteration_has_a_report(run_folder: Path):
    first = (run_folder / "metrics.jsonl").read_text().splitlines()[0]
    (run_folder / "metrics.jsonl").write_text(first + "\n")
    assert write_report(run_folder).read_text().count("<svg") == 8


def test_empty_folder_is_no_run(tmp_path: Path):
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path)


def test_tool_rebuilds_the_report_or_says_why_not(run_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    empty = tmp_path_factory.mktemp("empty")
    command = [sys.executable, str(ROOT / "tools" / "report.py")]
    good = subprocess.run([*command, str(run_folder)], capture_output=True, text=True, cwd=ROOT, check=False)
    bad = subprocess.run([*command, str(empty)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (good.returncode, good.stdout) == (0, f"{run_folder / 'report.html'}\n")
    assert bad.returncode == 2
    assert bad.stderr.splitlines() == [
        f"error: {empty} is no run folder: it has neither metrics.jsonl nor evaluation_*.json"]


def test_smooth_is_a_centred_mean_that_forgets_what_is_missing():
    assert smooth([1, 2, 6], 3) == [1.5, 3.0, 4.0]
    assert smooth([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert smooth([], 5) == []


def test_numbers_are_short():
    assert [percent(0.314), percent(0.314, 1), percent(math.nan)] == ["31%", "31.4%", "-"]
    assert [scientific(1e-7), scientific(3.2e-7)] == ["1e-7", "3.2e-7"]


def test_picture_over_seeds_is_a_png(tmp_path: Path):
    point = {"success": 0.3, "standard_error": 0.02}
    seeds = [{"seed": s, "training": [0.3, 0.4, 0.5], "before": point, "after": {**point, "success": 0.45}}
             for s in range(2)]
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": seeds}))
    plot_seeds(tmp_path / "seeds.json", tmp_path / "seeds.png")
    header = (tmp_path / "seeds.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (1600, 624)
