"""`gigpo-mega experiment` from its file to its page, with FakeTrainer; also killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from gigpo_mega.algorithms.advantage import check_advantage
from gigpo_mega.errors import UserError
from gigpo_mega.experiment import jobs as jobs_module
from gigpo_mega.experiment import program
from gigpo_mega.experiment.analysis import analyze
from gigpo_mega.experiment.jobs import jobs
from gigpo_mega.experiment.runner import Progress
from gigpo_mega.experiment.spec import load_spec
from gigpo_mega.experiment.store import Store, flat
from gigpo_mega.experiment.tables import markdown
from tests.experiment.fake_experiment import FAKE
from tests.helpers import wait_for

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "docs" / "experiments").glob("*.yaml"))
SPEC = """
recipe: RECIPE
coldstart: COLDSTART
seeds: [1, 2, 3]
settings: {iterations: 4, environment.tasks.data: GAMES, evaluation.before: false}
variants:
  gigpo: {advantage.gamma: 0.9}
  grpo: {advantage.estimator: grpo, advantage.gamma: 0.95}
references: [grpo]
main: [gigpo, grpo]
power_for: [5, 8]
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an experiment whose runs take half a second."""
    monkeypatch.setattr(jobs_module, "PROGRAM", FAKE)
    cold = tmp_path / "cold.yaml"
    cold.write_text("coldstart: {updates: 7}\n")
    text = SPEC.replace("RECIPE", str(ROOT / "tests" / "tiny.yaml")).replace("COLDSTART", str(cold))
    path = tmp_path / "small.yaml"
    path.write_text(text.replace("GAMES", str(tmp_path / "games")))
    return path


def words(spec: Path, *more: str) -> list[str]:
    folder = spec.parent
    return [str(spec), "--output", str(folder / "runs"), "--store", str(folder / "store"), *more]


def records(spec: Path) -> dict[str, Any]:
    files = (spec.parent / "store" / "records").glob("*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}


def test_every_seed_is_complete_before_the_next_begins(spec: Path):
    names = [job.name for job in jobs(load_spec(spec), Path("runs"))]
    assert names == [
        *("cold start, seed 1", "panel before, seed 1", "gigpo, seed 1", "grpo, seed 1"),
        *("cold start, seed 2", "panel before, seed 2", "gigpo, seed 2", "grpo, seed 2"),
        *("cold start, seed 3", "panel before, seed 3", "gigpo, seed 3", "grpo, seed 3"),
    ]


def test_variants_of_a_seed_differ_in_their_settings_alone(spec: Path):
    made = {job.name: job for job in jobs(load_spec(spec), Path("runs"))}
    ours, theirs = set(made["gigpo, seed 2"].words), set(made["grpo, seed 2"].words)
    assert ours - theirs == {"--advantage.gamma=0.9", "--output=runs/gigpo_2"}
    assert theirs - ours == {
        "--advantage.estimator=grpo", "--advantage.gamma=0.95", "--output=runs/grpo_2",
    }  # fmt: skip
    assert {"--seed=2", "--model.path=runs/coldstart_2/policy", "--resume=auto"} <= ours
    cold = made["cold start, seed 2"].words
    assert "--seed=2" in cold
    assert not any(word.startswith(("--iterations", "--evaluation")) for word in cold)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_experiments_of_this_repository_can_run(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    spec = load_spec(file)
    for variant in spec.variants:
        check_advantage(spec.config(variant).advantage)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_summaries_of_this_repository_are_those_of_its_records(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    folder, spec = file.with_suffix(""), load_spec(file)
    if not (records := Store(folder).read(spec)):
        assert not folder.exists()
        return
    for summary in (analyze(spec, records), json.loads((folder / "summary.json").read_text())):
        assert markdown(file.stem, spec, summary) == (folder / "summary.md").read_text()


def test_the_example_of_the_page_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # no checkout
    example = (ROOT / "docs" / "experiments.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "omega.yaml").write_text(example)
    spec = load_spec(tmp_path / "omega.yaml")
    assert [spec.config(name).advantage.omega for name in spec.variants] == [1.0, 0.0, 2.0]


def test_seeds_can_share_a_cold_start(spec: Path):
    spec.write_text(spec.read_text() + "seeds_per_coldstart: 2\n")
    made = jobs(load_spec(spec), Path("runs"))
    assert [job.seed for job in made if job.kind == "coldstart"] == [1, 3]
    policies = [job.words[-1] for job in made if job.kind == "run"]
    assert policies == [f"--model.path=runs/coldstart_{seed}/policy" for seed in (1, 1, 1, 1, 3, 3)]


def test_an_experiment_ends_with_records_summary_pictures_and_page(
    spec: Path, capsys: pytest.CaptureFixture[str]
):
    program.main(words(spec, "--jobs", "2"))
    said = capsys.readouterr()
    assert "[12/12]" in said.err
    assert "; 0 s left" in said.err
    found = records(spec)
    assert sorted(found) == sorted(f"{v}_{s}" for v in ("coldstart", "gigpo", "grpo") for s in (1, 2, 3))
    run = found["gigpo_2"]
    assert {"commit", "device", "versions", "attempts", "config", "before", "after", "curves"} <= run.keys()
    assert (run["config"]["advantage.gamma"], run["config"]["seed"]) == (0.9, 2)
    assert run["config"]["model.path"] == "coldstart_2/policy"
    assert "output" not in run["config"]
    assert (run["before"]["success"], run["after"]["success"]) == pytest.approx((0.25, 0.25 + 0.45 - 0.002))
    assert len(run["curves"]["rollout/success"]) == 4
    summary = json.loads((spec.parent / "store" / "summary.json").read_text())
    assert (summary["runs"], summary["planned"], summary["complete_seeds"]) == (6, 6, [1, 2, 3])
    assert summary["differences"]["panel"]["grpo"]["gigpo"]["mean"]["value"] == pytest.approx(-0.025)
    assert summary["variants"]["gigpo"]["panel"]["deviation"] == pytest.approx(0.001)
    five, eight = summary["power"]["panel"]["grpo"]
    assert (five["seeds"], five["detectable"], eight["seeds"]) == (5, None, 8)
    assert eight["deviation"] == pytest.approx(2**0.5 * 0.001)
    page = (spec.parent / "runs" / "report.html").read_text()
    assert "The main question is gigpo minus grpo, success on the panel" in page
    assert page.count("data:image/png;base64,") == 4
    assert 'src="http' not in page


def test_a_run_with_a_record_is_not_run_again(spec: Path, capsys: pytest.CaptureFixture[str]):
    keep_records(spec, 1, 2)
    kept = records(spec)
    program.main(words(spec, "--seeds", "1,2"))
    assert records(spec) == kept
    assert not list((spec.parent / "runs").glob("gigpo*"))
    capsys.readouterr()
    program.main(words(spec, "--dry-run"))
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["done"] * 8 + ["todo"] * 4


def test_a_cold_start_is_made_again_only_for_runs_that_need_it(
    spec: Path, capsys: pytest.CaptureFixture[str]
):
    keep_records(spec, 1, 2)
    (spec.parent / "store" / "records" / "grpo_2.json").unlink()
    program.main(words(spec, "--seeds", "1,2", "--dry-run"))
    listed = capsys.readouterr().out.splitlines()
    todo = [line for line in listed if line.startswith("todo")]
    assert todo == ["todo cold start, seed 2", "todo grpo, seed 2"]


def test_a_variant_that_is_added_later_begins_where_the_others_did(spec: Path):
    """Their panel is not played again, on a machine that has the records alone."""
    keep_records(spec, 1)
    kept = records(spec)
    more = "variants:\n  rloo: {advantage.estimator: rloo}\n"
    spec.write_text(spec.read_text().replace("variants:\n", more))
    program.main(words(spec, "--seeds", "1"))
    found = records(spec)
    assert found["rloo_1"]["before"] == kept["coldstart_1"]["before"]
    assert {name: found[name] for name in kept} == kept


def test_after_kill_9_the_run_under_way_is_continued(spec: Path):
    """What had ended is kept, what ran dies with the experiment and goes on from the iteration it was in."""
    spec.write_text(spec.read_text().replace("iterations: 4", "iterations: 20"))
    command = [sys.executable, "-m", "tests.experiment.fake_experiment", *words(spec, "--seeds", "1")]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    running = spec.parent / "runs" / "grpo_1"
    wait_for(lambda: count(running / "metrics.jsonl") >= 3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    child = int((running / "pid").read_text())
    wait_for(lambda: not alive(child))
    stopped_at = count(running / "metrics.jsonl")
    assert 3 <= stopped_at < 20
    kept = records(spec)["gigpo_1"]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    found = records(spec)
    assert found["gigpo_1"] == kept
    assert [attempt["status"] for attempt in found["grpo_1"]["attempts"]] == [None, 0]
    processes = found["grpo_1"]["curves"]["process"]
    assert [processes.count(one) for one in dict.fromkeys(processes)] == [stopped_at, 20 - stopped_at]


def test_the_time_left_is_told_when_all_kinds_have_shown_what_they_take(spec: Path):
    made, said = jobs(load_spec(spec), Path("runs")), StringIO()
    progress = Progress(made[1:], done=1, parallel=2, stream=said)
    progress.started(made[4])
    for job, seconds in zip((made[4], made[1], *made[2:4]), (300.0, 60.0, 200.0, 400.0), strict=True):
        progress.ended(job, seconds, "well")
    start, cold, panel, first, second = said.getvalue().splitlines()
    assert start == "cold start, seed 2: started, log in runs/coldstart_2.log"
    assert cold == "[2/12] cold start, seed 2: well, 300 s"
    assert panel.endswith("60 s")
    assert first.endswith("200 s; 12 min left")  # a cold start, 2 panels, 5 runs, two at once
    assert second.endswith("400 s; 14 min left")


def test_a_failed_run_keeps_no_other_from_running(spec: Path, capsys: pytest.CaptureFixture[str]):
    spec.write_text(spec.read_text().replace("[1, 2, 3]", "[13, 1]"))
    with pytest.raises(UserError, match=r"4 jobs failed or wait .*cold start, seed 13"):
        program.main(words(spec))
    assert sorted(records(spec)) == ["coldstart_1", "gigpo_1", "grpo_1"]
    assert "cold start, seed 13: failed, see" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new", "said"), [
    ("gamma: 0.9}", "gamma: 0.8}", "gigpo, seed 1, was made with advantage.gamma 0.9, and .* says 0.8; move"),
    ("iterations: 4", "iterations: 6", "gigpo, seed 1, was made with iterations 4, and .* says 6; move"),
    ("updates: 7", "updates: 8", "coldstart, seed 1, was made with coldstart.updates 7, and .* says 8; move"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["--analyze", "--dry-run", "--jobs=1"])
def test_records_of_other_settings_are_refused(spec: Path, old: str, new: str, said: str, how: str):
    keep_records(spec, 1, 2)
    for file in (spec, spec.parent / "cold.yaml"):
        file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        program.main(words(spec, how))
    assert not (spec.parent / "runs").exists()


def test_a_field_that_is_newer_than_a_record_counts_if_the_experiment_sets_it(spec: Path):
    keep_records(spec, 1)
    older = dict(records(spec)["gigpo_1"]["config"])
    del older["optimizer.beta2"], older["advantage.omega"]
    change(spec, "gigpo_1", config=older)
    program.main(words(spec, "--analyze"))
    spec.write_text(spec.read_text().replace("gamma: 0.9}", "gamma: 0.9, advantage.omega: 2.0}"))
    with pytest.raises(UserError, match=r"made with advantage.omega None, and the experiment says 2.0"):
        program.main(words(spec, "--analyze"))


def test_records_of_seeds_and_variants_that_the_experiment_no_longer_has_are_left_out(spec: Path):
    keep_records(spec, 1, 2)
    spec.write_text(spec.read_text().replace("[1, 2, 3]", "[1]"))
    program.main(words(spec, "--analyze"))
    assert json.loads((spec.parent / "store" / "summary.json").read_text())["runs"] == 2


def test_a_store_without_runs_because_they_failed_says_so(spec: Path):
    spec.write_text(spec.read_text().replace("[1, 2, 3]", "[13]"))
    with pytest.raises(UserError, match=r"4 jobs failed or wait .*cold start, seed 13"):
        program.main(words(spec))


def test_runs_of_several_commits_are_shown_as_such(spec: Path):
    keep_records(spec, 1, 2)
    change(spec, "gigpo_1", attempts=[{"commit": "f" * 40, "seconds": 1.0, "status": 0}])
    program.main(words(spec, "--analyze"))
    page = (spec.parent / "runs" / "report.html").read_text()
    assert "Mixed commits: " in page
    assert "fffffff (1)" in page
    assert "4 of 6 runs; seeds with all variants: 1, 2;" in page
    assert "Incomplete" in page


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("advantage.gamma: 0.9}", "advantage.gama: 0.9}", "variants.gigpo: unknown key advantage.gama"),
        ("[1, 2, 3]", "[1, 2, 1]", "seeds [1, 2, 1] names one twice"),
        ("[grpo]", "[ppo]", "references: 'ppo' is none of the variants"),
        ("[gigpo, grpo]", "[grpo, gigpo]", "main ['grpo', 'gigpo']: name a variant and the reference"),
        ("[5, 8]", "[1, 8]", "power_for [1, 8]: numbers of seeds, from 2"),
        ("  gigpo:", "  coldstart:", "'coldstart' must be a word"),
        ("{iterations: 4", "{coldstart.game: 4, iterations: 4", "coldstart: unknown key coldstart.game"),
        ("{advantage.gamma: 0.9}", "{model.dtype: bfloat16}", "variants.gigpo sets model"),
        ("{advantage.gamma: 0.9}", "{seed: 7}", "gigpo: seed is set for each run by the experiment"),
        ("{iterations: 4", "{output: x, iterations: 4", "settings: output is set for each run"),
        ("{iterations: 4", "{iterations: 0", "variants.gigpo: iterations is 0; a run needs one"),
        ("[1, 2, 3]", "[1, 4294967296]", "seeds must be < 2^32, got 4294967296"),
        ("[gigpo, grpo]", "[grpo, grpo]", "main ['grpo', 'grpo']: name a variant and the reference"),
    ],
)
def test_a_spec_that_cannot_run_is_refused_in_one_line(spec: Path, old: str, new: str, said: str):
    spec.write_text(spec.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        load_spec(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_in_sections_are_those_of_the_cold_start_too(spec: Path):
    """They used to be left out of it: it was cloned with other limits than the runs had."""
    nested = "{environment: {max_steps: 9}, iterations: 4,"
    spec.write_text(spec.read_text().replace("{iterations: 4,", nested))
    found = load_spec(spec)
    assert [found.config(name).environment.max_steps for name in ("coldstart", "gigpo")] == [9, 9]
    assert found.settings["environment.max_steps"] == 9


def keep_records(spec: Path, *seeds: int) -> None:
    """Put records of all jobs of `seeds` into the store."""
    store = Store(spec.parent / "store")
    experiment = load_spec(spec)
    for job in jobs(experiment, spec.parent / "runs"):
        if job.seed in seeds and job.kind != "coldstart":
            panel = {"success": 0.5 + job.seed / 100, "kinds": {"look": {"episodes": 4, "success": 0.5}}}
            store.write(job, {
                "variant": job.variant, "seed": job.seed, "device": "FakeDevice",
                "before": panel, "after": panel,
                "attempts": [{"commit": "0" * 40, "seconds": 1.0, "status": 0}],
                "config": flat(experiment.config(job.variant)) | {"seed": job.seed},
                "curves": {"rollout/success": [0.5, 0.5, 0.6, 0.7], "loss/entropy": [0.5, None, 0.4, 0.3]},
            })  # fmt: skip


def change(spec: Path, name: str, **fields: Any) -> None:
    path = spec.parent / "store" / "records" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def count(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("old", "new", "said"), [
    ("variants:", "variant:", "unknown key variant; did you mean variants?"),
    ("power_for", "zzz", "unknown key zzz; known: recipe, seeds, variants, settings, references, main, "
     "power_for, coldstart, seeds_per_coldstart"),
    ("seeds: [1, 2, 3]", "", "seeds is missing; docs/experiments.md has an example"),
    ("recipe: ", "recipe: nowhere.yaml  #", "recipe: cannot read config file nowhere.yaml: No such file"),
    ("recipe: ", "recipe: quickstrt  #", "recipe: unknown recipe 'quickstrt' (did you mean quickstart"),
    ("coldstart: ", "coldstart: nowhere.yaml  #", "coldstart: cannot read config file nowhere.yaml: No such"),
])  # fmt: skip
def test_what_is_wrong_in_a_spec_is_named(
    old: str, new: str, said: str, spec: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(spec.parent)
    spec.write_text(spec.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_spec(spec)
    assert str(caught.value).startswith(f"{spec}: {said}")


def test_recipes_by_name_and_by_a_checkouts_path(spec: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(spec.parent)
    spec.write_text("{recipe: quickstart, coldstart: quickstart_coldstart, seeds: [1], variants: {a: {}}}")
    assert load_spec(spec).config("a").iterations == 36
    spec.write_text(spec.read_text().replace("recipe: quickstart", "recipe: configs/quickstart.yaml"))
    with pytest.raises(UserError, match=r": recipe: configs/quickstart.yaml is not in this folder; for the"):
        load_spec(spec)
