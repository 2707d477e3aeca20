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

from gigpo_mega.commands import report
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.report.build import write_report
from gigpo_mega.telemetry.report.curve import plot_seeds, reference
from gigpo_mega.telemetry.report.numbers import percent, scientific, smooth

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Fails if a tag is closed that was not open, and knows what is left open."""

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


def evaluation(iteration: int, success: float) -> dict[str, Any]:
    return {"iteration": iteration, "episodes": 400, "temperature": 0.4, "split": "valid_unseen",
            "success": success, "standard_error": 0.02, "length": 20.0, "invalid": 0.1,
            "kinds": {"pick_and_place_simple": {"episodes": 300, "success": success},
                      "look_at_obj_in_light": {"episodes": 100, "success": success - 0.1}}}


def recorded() -> dict[str, Any]:
    step = {"observation": "You see a <mug> & a key.", "action": "take mug", "reward": 0.0, "valid": True,
            "episode": 0.5, "step": -1.25, "group": 7, "shared": 3}
    odd = {**step, "action": "fly", "valid": False, "group": 8, "shared": 0}
    return {"iteration": 0, "task": "trial_1", "kind": "pick_and_place_simple", "episodes": [
        {"success": True, "score": 10.0, "ended_by": "success", "steps": [step, odd]},
        {"success": False, "score": 0.0, "ended_by": "limit", "steps": [step]},
    ]}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rows = [{"iteration": i, "rollout/success": 0.3 + i / 100, "rollout/score": 3.0, "rollout/length": 20.0,
             "rollout/invalid": 0.1, "advantage/episode_abs": 0.8, "advantage/step_abs": 0.5,
             "anchor/size_1": 0.4, "anchor/size_2_3": 0.3, "anchor/size_4_7": 0.2, "anchor/size_8_plus": 0.1,
             "engine/logprob_gap_mean": 1e-7 * (i + 1), "engine/logprob_gap_max": 1e-6, "time/rollout": 6.0,
             "time/update": 4.0, "time/total": 30.0, "rollout/success/look_at_obj_in_light": 0.1 + i / 100,
             "rollout/success/pick_and_place_simple": 0.5, "loss/approx_kl": 1e-3, "loss/clip_fraction": 0.02}
            for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for iteration, success in ((0, 0.30), (10, 0.45)):
        (tmp_path / f"evaluation_{iteration:06d}.json").write_text(json.dumps(evaluation(iteration, success)))
    (tmp_path / "episodes.jsonl").write_text(json.dumps(recorded()) + "\n")
    (tmp_path / "config.yaml").write_text("iterations: 10\nadvantage:\n  gamma: 0.95\n")
    (tmp_path / "provenance.jsonl").write_text(start(0, "a" * 40) + start(4, "a" * 40))
    return tmp_path


def start(iteration: int, commit: str) -> str:
    row = {"iteration": iteration, "processes": 2, "commit": commit, "device": "A CPU, 2 threads",
           "versions": {"python": "3.11.2", "torch": "2.11.0"}}
    return json.dumps(row) + "\n"


def test_report_is_complete_and_self_contained(run_folder: Path):
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
    assert titles == ["Success rate", "Success by task type", "Reward", "Episode length", "Invalid actions",
                      "Advantage split",
                      "Anchor groups", "Stage times", "Engine against learner", "KL divergence", "Clipping",
                      "Iteration 0: pick and place simple"]
    assert text.count("<svg") == 12  # that of the success rate for desks, and for phones
    assert text.count('class="mark"') == 2 * 2


def points(text: str, title: str) -> list[list[float]]:
    """The heights of each line of a card, from top to bottom of the page."""
    found = re.search(rf"<h3>{re.escape(title)}</h3>.*?</section>", text, re.DOTALL)
    assert found
    lines = re.findall(r'<polyline class="line" [^>]*points="([^"]*)"', found.group())
    return [[float(pair.partition(",")[2]) for pair in line.split()] for line in lines]


def test_success_by_task_type_is_a_line_for_each(run_folder: Path):
    look, pick = points(write_report(run_folder).read_text(), "Success by task type")
    assert len(set(pick)) == 1
    assert look[0] > look[-1] > pick[0]  # downwards: 0.1 rises to 0.19, below 0.5


def test_the_panel_by_task_type_is_drawn_over_three_evaluations(run_folder: Path):
    assert "Held-out success by task type" not in write_report(run_folder).read_text()
    (run_folder / "evaluation_000005.json").write_text(json.dumps(evaluation(5, 0.40)))
    text = write_report(run_folder).read_text()
    look, pick = points(text, "Held-out success by task type")
    assert len(look) == len(pick) == 3
    assert look[0] - look[1] == pytest.approx(2 * (look[1] - look[2]), abs=0.2)  # 20%, 30%, 35%


def test_one_task_type_has_no_chart_of_its_own(run_folder: Path):
    text = (run_folder / "metrics.jsonl").read_text().replace("rollout/success/look_at_obj_in_light", "other")
    (run_folder / "metrics.jsonl").write_text(text)
    assert "Success by task type" not in write_report(run_folder).read_text()


def test_commit_and_machine_are_named_once_unless_they_change(run_folder: Path):
    where = "\u00b7 A CPU, 2 threads \u00b7 2 processes \u00b7 python 3.11.2, torch 2.11.0"
    assert f'>commit {"a" * 12} {where}<' in write_report(run_folder).read_text()
    with (run_folder / "provenance.jsonl").open("a") as file:
        file.write(start(7, "b" * 40))
    text = write_report(run_folder).read_text()
    assert f'>from iteration 0: commit {"a" * 12} {where}<' in text
    assert f'>from iteration 7: commit {"b" * 12} {where}<' in text


def test_shared_states_have_one_color_and_lone_ones_none(run_folder: Path):
    text = write_report(run_folder).read_text()
    colors = re.findall(r'<i class="g" style="(--g:[^"]*)" title="take mug">', text)
    assert len(colors) == 2
    assert len(set(colors)) == 1
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
    assert write_report(run_folder).read_text().count("<svg") == 12


@pytest.mark.parametrize("value", [1e9, 1e15, 1e17, 1e30, 1.7e308, -1.7e308, math.inf, math.nan])
def test_a_large_constant_is_drawn(tmp_path: Path, value: float):
    """A reward may be a price in a small currency; the report after each iteration must not end the run."""
    names = ("rollout/score", "loss/policy", "optimizer/grad_norm", "engine/logprob_gap_mean", "time/total",
             "time/update", "anchor/size_1")
    rows = [{"iteration": i, **dict.fromkeys(names, value)} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(tmp_path).read_text()
    assert text.count("<svg") == 8
    assert re.findall(r'"[^"<>]*\b(?:nan|inf)\b[^"<>]*"', text) == []  # no coordinate is undefined


def test_empty_folder_is_no_run(tmp_path: Path):
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)


def test_tool_rebuilds_the_report_or_says_why_not(run_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    empty = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-m", "gigpo_mega", "report"]
    good = subprocess.run([*command, str(run_folder)], capture_output=True, text=True, cwd=ROOT, check=False)
    bad = subprocess.run([*command, str(empty)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (good.returncode, good.stdout) == (0, f"{run_folder / 'report.html'}\n")
    assert bad.returncode == 2
    assert bad.stderr.splitlines() == [
        f"error: {empty} is not a run folder: it has neither metrics.jsonl nor evaluation_*.json"]


def test_a_report_that_cannot_be_written_is_one_line(run_folder: Path):
    (run_folder / "report.html").mkdir()
    with pytest.raises(UserError, match=f"^no report can be made of it: {run_folder}"):
        report.main([str(run_folder)])


def test_smooth_is_a_centered_mean_that_leaves_out_missing_values():
    assert smooth([1, 2, 6], 3) == [1.5, 3.0, 4.0]
    assert smooth([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert smooth([], 5) == []


def test_numbers_are_short():
    assert [percent(0.314), percent(0.314, 1), percent(math.nan)] == ["31%", "31.4%", "-"]
    assert [scientific(0.0), scientific(1e-7), scientific(3.2e-7)] == ["0", "1e-7", "3.2e-7"]


def seeds_record(kinds: bool, *overrides: str) -> dict[str, Any]:
    """Two seeds whose training success rises, the second one's a tenth above the first one's."""
    runs = []
    for seed in range(2):
        training = [0.3 + 0.1 * seed, 0.4 + 0.1 * seed, 0.5 + 0.1 * seed]
        panel = {"success": 0.3, "standard_error": 0.02}
        run = {"seed": seed, "commit": "abcdef0123", "training": training, "before": panel,
               "after": {**panel, "success": 0.45}}
        runs.append(run | ({"kinds": {"look": training, "pick": [None, 0.2, None]}} if kinds else {}))
    return {"overrides": list(overrides), "seeds": runs}


@pytest.mark.parametrize(
    ("kinds", "beside", "height"), [(False, False, 624), (True, False, 1184), (True, True, 1184)]
)
def test_picture_over_seeds_is_a_png(kinds: bool, beside: bool, height: int, tmp_path: Path):
    (tmp_path / "seeds.json").write_text(json.dumps(seeds_record(kinds)))
    other = tmp_path / "grpo.json"
    other.write_text(json.dumps(seeds_record(True, "--advantage.estimator", "grpo")))
    plot_seeds(tmp_path / "seeds.json", tmp_path / "seeds.png", other if beside else None)
    header = (tmp_path / "seeds.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (1600, height)


def test_a_reference_is_the_mean_of_the_seeds_of_a_record():
    record = seeds_record(True, "--seed", "3", "--advantage.estimator", "grpo")
    assert reference(record) == {
        "estimator": "GRPO", "name": "GRPO, mean of 2 seeds, recorded at abcdef0",
        "training": [0.35, 0.45, 0.55], "kinds": {"look": [0.35, 0.45, 0.55], "pick": [None, 0.2, None]},
    }
    assert reference(seeds_record(False))["name"].startswith("GiGPO, mean of 2 seeds")


def test_a_reference_is_drawn_beside_the_run_as_far_as_the_run_got(run_folder: Path):
    name = "GRPO, mean of 2 seeds, recorded at abcdef0"
    plain = write_report(run_folder).read_text()
    assert "dashed" not in plain.partition("<main>")[2]
    held = {"estimator": "GRPO", "name": name, "training": [0.25] * 36,
            "kinds": {"pick_and_place_simple": [0.2] * 36, "unknown": [0.1] * 36}}
    (run_folder / "reference.json").write_text(json.dumps(held))
    page = write_report(run_folder).read_text().partition("<main>")[2]
    assert page.count(f"</i>{name}</span>") == 1
    assert page.count("</i>pick and place simple, GRPO</span>") == 1
    assert "unknown" not in page
    assert f"{name}: 25%" in page
    dashed = re.findall(r'<polyline class="line dashed"[^>]* points="([^"]*)"', page)
    assert [len(points.split()) for points in dashed] == [10] * 3  # the wide card, the narrow one, one type
