"""What a run sampled is shown whole, with the advantages that the learner got."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.coldstart.vocabulary import train_tokenizer
from gigpo_mega.commands import trace
from gigpo_mega.config import AdvantageConfig, Config, ModelConfig, ObjectiveConfig, RolloutConfig
from gigpo_mega.config.load import save_config
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.storage.journal import Journal
from gigpo_mega.trace import page
from gigpo_mega.trace.recorded import Place, RecordedRun
from gigpo_mega.types import Float32, Group, Step, Trajectory
from tests.telemetry.test_report import Balance

KITCHEN, HALL = b"k" * 16, b"h" * 16


def step(
    tokenizer: Tokenizer,
    said: str,
    anchor: bytes,
    reward: float = 0.0,
    valid: bool = True,
    prompt: str = "Go.",
) -> Step:
    ids = [*tokenizer.encode(said), tokenizer.end(chat=False)]
    asked = np.array(tokenizer.encode(prompt), dtype=np.int32)
    logprobs = np.linspace(-0.01, -3.5, len(ids)).astype(np.float32)
    return Step(
        asked,
        np.array(ids, dtype=np.int32),
        logprobs,
        reward,
        valid,
        anchor,
        np.full(len(ids), 4, dtype=np.int32),
        prompt,
        said.strip(),
        next_anchor=HALL,
    )


def group(name: str, *episodes: tuple[Step, ...]) -> Group:
    task = Task(name, "pick", f"{name}.game")
    scores = [sum(s.reward for s in steps) for steps in episodes]
    return Group(task, tuple(
        Trajectory(task, steps, score, score > 0, "success" if score else "limit")
        for steps, score in zip(episodes, scores, strict=True)
    ))  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two iterations; in the first a group of two episodes meets the kitchen three times."""
    train_tokenizer(["go to desk 1\nlook <b> & take mug 1"] * 4, 300, tmp_path / "policy")
    tokenizer = Tokenizer(tmp_path / "policy")
    won = (
        step(tokenizer, "look", KITCHEN, prompt="A kitchen.\n\nIt has a <door> & \x1b[31m paint."),
        step(tokenizer, "go to desk 1", HALL),
        step(tokenizer, "take mug 1", KITCHEN, 10.0),
    )
    lost = (step(tokenizer, "look\nlook", KITCHEN, valid=False),)
    other = group("b", (step(tokenizer, "look", HALL, 5.0),), (step(tokenizer, "look", HALL),))
    output = tmp_path / "run"
    journal = Journal(output / "groups")
    for iteration in (0, 1):
        journal.keep(iteration, 0, group("a", won, lost))
        journal.keep(iteration, 2, other)
    journal.finish(0)
    save_config(config(tmp_path), output / "config.yaml")
    return output


def config(folder: Path, omega: float = 2.0) -> Config:
    return Config(
        iterations=2,
        model=ModelConfig(path=folder / "policy"),
        rollout=RolloutConfig(group_size=2, equal_returns="replace", spare_groups=1),
        advantage=AdvantageConfig(normalization="mean", gamma=0.5, omega=omega, invalid_penalty=0.0),
    )


def scored(run: Path, *, far: float = 0.0) -> Float32:
    """Log-probs of the learner beside those of iteration 0: near the engine's, but for the `far` last one of
    group 0; NaN in its episode 1."""
    journal = Journal(run / "groups")
    first, other = ([s for t in journal.group(0, at).trajectories for s in t.steps] for at in (0, 2))
    learner = np.concatenate([s.logprobs for s in (*first, *other)]) + np.float32(1e-3)
    end = sum(len(s.logprobs) for s in first[:3])
    learner[end - 1] += np.float32(far)
    learner[end : end + len(first[3].logprobs)] = np.nan
    journal.keep_learner(0, learner)
    return learner


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    trace.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_a_step_has_the_advantages_that_the_learner_got(run: Path) -> None:
    """By hand: scores 10 and 0; returns 2.5, 5, 10 and 0 at gamma 0.5, three of them of the kitchen."""
    first, second = RecordedRun(run).traced(0, 0).episodes
    assert [s.advantages for s in (*first, *second)] == [
        pytest.approx((5, 2.5 - 12.5 / 3, 5 + 2 * (2.5 - 12.5 / 3)), abs=1e-5),
        pytest.approx((5, 0, 5), abs=1e-5),
        pytest.approx((5, 10 - 12.5 / 3, 5 + 2 * (10 - 12.5 / 3)), abs=1e-5),
        pytest.approx((-5, -12.5 / 3, -5 - 2 * 12.5 / 3), abs=1e-5),
    ]


def test_members_are_all_steps_of_a_state_in_any_episode(run: Path) -> None:
    traced = RecordedRun(run).traced(0, 0)
    assert traced.anchors() == [(Place(0, 0), Place(0, 2), Place(1, 0))]
    assert [s.members for s in traced.episodes[0]] == [
        traced.anchors()[0], (Place(0, 1),), traced.anchors()[0]
    ]  # fmt: skip


def test_states_are_compared_without_an_estimator_that_does(run: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    save_config(replace(cfg, advantage=AdvantageConfig(estimator="grpo")), run / "config.yaml")
    traced = RecordedRun(run).traced(0, 0)
    assert traced.anchors() == [(Place(0, 0), Place(0, 2), Place(1, 0))]
    assert traced.episodes[0][0].advantages is not None


def test_an_iteration_has_the_configuration_of_its_time(run: Path, tmp_path: Path) -> None:
    for until, omega in ((1, 0.25), (7, 0.5)):
        save_config(config(tmp_path, omega=omega), run / f"config.until_{until:06d}.yaml")
    recorded = RecordedRun(run)
    assert [recorded.config(i).advantage.omega for i in (0, 1, 6, 7)] == [0.25, 0.5, 0.5, 2.0]


def test_groups_that_are_not_learned_from_are_shown_and_move_no_advantage(run: Path) -> None:
    journal = Journal(run / "groups")
    equal = journal.group(0, 0)
    equal = replace(equal, trajectories=equal.trajectories[:1] * 2)
    for number, one in enumerate([equal, journal.group(0, 0)]):
        journal.keep(3, number, one)
    recorded = RecordedRun(run)
    assert recorded.traced(3, 1).fate == "advantages not known yet: the iteration is not finished"
    journal.finish(3)
    lone, learned = recorded.traced(3, 0), recorded.traced(3, 1)
    assert lone.fate == "no advantages: its episodes have equal returns, it is not learned from"
    assert lone.episodes[0][0].advantages is None
    assert [s.advantages for s in learned.episodes[1]] == [
        s.advantages for s in recorded.traced(0, 0).episodes[1]
    ]


def test_an_episode_keeps_its_lines_and_cannot_move_the_terminals_cursor(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, run, "--task", "a", "--episode", 0)
    assert "\nA kitchen.\n\nIt has a <door> & \\x1b[31m paint.\n" in text
    assert (
        "--- step 2 of 3 --- valid  reward 10  A_E +5.000  A_S +5.833  total +16.667  weights 4 ---" in text
    )
    assert re.search(
        r"\n  episode 1 step 0: look look \(invalid\)  reward 0  A_S -4\.167  .*step limit", text
    )
    assert said(capsys, run, "--task", "a", "--episode", 1).count("\n> ") == 2  # its answer has two lines
    logprobs = re.findall(r"log-prob of the engine, mean (\S+): .* (\S+)\n", text)
    assert logprobs[0] == ("-1.755", "-3.50")


def test_the_learners_logprobs_stand_beside_the_engines_and_large_differences_are_marked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = scored(run, far=0.6)
    first, second = RecordedRun(run).traced(0, 0).episodes
    shown = [s.learner for s in first]
    assert np.concatenate([part for part in shown if part is not None]).tobytes() == kept[
        : sum(len(s.tokens) for s in first)
    ].tobytes()
    assert second[0].learner is None
    text = said(capsys, run, "--task", "a", "--episode", 0)
    count = sum(len(s.tokens) for s in first)
    assert f"1 of {count} tokens are more than 0.1 from the engine's, the farthest 0.6\n" in text
    assert "the learner's log-probs are those of the old policy" in text
    assert re.findall(r"\| -\d\.\d\d \(!(\S+)\)\n", text) == ["+0.60"]
    head = r"log-prob of the engine \| the learner, mean (\S+) \| (\S+), at most (\S+) apart"
    lines = re.findall(head, text)
    assert lines[0] == ("-1.755", "-1.754", "0.001")
    assert "log-prob of the engine, mean -1.755: " in said(capsys, run, "--task", "a", "--episode", 1)
    target = tmp_path / "group.html"
    said(capsys, run, "--group", 0, "--html", target)
    shown_page = target.read_text()
    assert shown_page.count('<span class="t4 far" title="-3.500, learner -2.899, weights 4">') == 1
    assert shown_page.count('<tr class="far">') == 1


def test_a_step_says_which_conversation_it_continues_if_there_are_several(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an agent has them at the same time; of one conversation, or of none, nothing is said."""

    def after(step: Step, before: Step) -> Step:
        said = np.concatenate([before.prompt_ids, before.response_ids, step.prompt_ids])
        return replace(step, prompt_ids=said)

    one, other, more = Journal(run / "groups").group(0, 0).trajectories[0].steps
    several = (one, other, after(more, one), after(more, other))
    talks = [several, (one, after(other, one)), (one, other)]
    Journal(run / "groups").keep(1, 7, group("c", *talks))
    traced = RecordedRun(run).traced(1, 7)
    found = [[s.continues for s in steps] for steps in traced.episodes]
    assert found == [[None, None, 0, 1], [None, 0], [None, None]]
    shown = [said(capsys, run, "--iteration", 1, "--group", 7, "--episode", number) for number in range(3)]
    heads = re.findall(r"--- step (\d) of \d --- (a new conversation|continues step \d)  ", shown[0])
    assert heads == [("1", "a new conversation"), ("2", "continues step 0"), ("3", "continues step 1")]
    assert not any("conversation" in text or "continues" in text for text in shown[1:])


def test_what_the_learners_logprobs_are_depends_on_what_the_ratio_compares_with(
    run: Path, tmp_path: Path
) -> None:
    recorded = RecordedRun(run)
    assert recorded.traced(0, 0).scored.startswith("no log-probs of the learner: ")
    assert recorded.traced(0, 0).episodes[0][0].learner is None
    scored(run)
    cfg = replace(config(tmp_path), objective=ObjectiveConfig(old_logprob="engine"))
    save_config(cfg, run / "config.yaml")
    assert recorded.traced(0, 2).scored.startswith("the ratio is to the engine's log-probs; the learner's")


def test_logprobs_of_other_groups_than_those_that_are_there_are_refused(run: Path) -> None:
    Journal(run / "groups").keep_learner(0, np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"there are 3 log-probs of the learner and \d+ sampled tokens"):
        RecordedRun(run).traced(0, 0)
    (run / "groups" / "000000" / "learner.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"cannot read .*learner\.npy: .*; remove it to go without"):
        RecordedRun(run).traced(0, 0)


def test_a_run_and_a_group_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = said(capsys, run).splitlines()
    assert listed[0] == "iteration 0: 2 groups, 2 of 4 episodes succeeded"
    assert [line.split()[:5] for line in listed[1:]] == [
        ["group", "0", "1/2", "succeeded", "scores"], ["group", "2", "1/2", "succeeded", "scores"]
    ]  # fmt: skip
    shown = said(capsys, run, "--group", 0).splitlines()
    assert "episode 0: success, score 10, 3 steps, 0 invalid, A_E +5.000" in shown
    assert [line for line in shown if line.startswith("anchor group #0, 3 steps: A kitchen. It has")]
    assert said(capsys, run, "--iteration", 1).startswith("iteration 1, not finished: 2 groups")


def test_a_page_is_whole_links_what_it_has_and_loads_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "group.html"
    assert said(capsys, run, "--group", 0, "--html", target) == f"{target}\n"
    text = target.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    names, links = re.findall(r'id="(.*?)"', text), re.findall(r'href="#(.*?)"', text)
    assert names == ["episode0-step0", "episode0-step1", "episode0-step2", "episode1-step0"]
    assert sorted(links) == sorted(2 * ["episode0-step0", "episode0-step2", "episode1-step0"])
    assert not re.search(r"https?:|<script|src=|@import|url\(", text)
    assert "A kitchen.\n\nIt has a &lt;door&gt; &amp; \\x1b[31m paint." in text
    tokens = re.findall(r'<span class="t(\d)" title="(\S+), weights 4">', text)
    assert (tokens[0], tokens[-1]) == (("0", "-0.010"), ("4", "-3.500"))
    assert "<th>token</th><th>engine</th><th>weights</th></tr>" in text


@pytest.mark.parametrize(("probability", "level"), [(1, 0), (0.6, 1), (0.3, 2), (0.1, 3), (0.01, 4)])
def test_unlikely_tokens_are_darker(probability: float, level: int) -> None:
    assert page.shade(float(np.log(probability))) == level


def test_following_gives_every_group_once_as_it_is_finished(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(run / "groups")
    late = journal.group(0, 0)

    def sleep(seconds: float) -> None:
        if not journal.has(1):
            journal.keep(1, 5, late)
            journal.finish(1)

    monkeypatch.setattr("gigpo_mega.commands.trace.time.sleep", sleep)
    found = [(iteration, number) for iteration, number, _ in trace.follow(RecordedRun(run), 1)]
    assert found == [(0, 0), (0, 2), (1, 0), (1, 2), (1, 5)]


def test_a_run_that_has_nothing_left_to_follow_ends(run: Path, tmp_path: Path) -> None:
    save_config(replace(config(tmp_path), iterations=0), run / "config.yaml")
    assert len(list(trace.follow(RecordedRun(run), 1))) == 4


def test_a_run_whose_groups_were_dropped_at_its_end_is_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoint.groups_gib 0, as in the quickstart, --follow used to wait for ever; and a run that was
    extended was left at its old end."""
    save_config(replace(config(tmp_path), iterations=1), run / "config.until_000001.yaml")
    save_config(replace(config(tmp_path), iterations=9), run / "config.yaml")
    rows, looks = run / "metrics.jsonl", list[float]()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        rows.write_text("".join(f'{{"iteration": {6 + number}}}\n' for number in range(len(looks))))

    monkeypatch.setattr("gigpo_mega.commands.trace.time.sleep", sleep)
    assert len(list(trace.follow(RecordedRun(run), 1))) == 4
    assert len(looks) == 3  # until iteration 8 has its row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iteration", 9], r"has no groups of iteration 9; it has those of 0, 1$"),
        (["--group", 1], r"iteration 0 has no group 1; it has 0, 2$"),
        (["--task", "c"], r"--task c: in iteration 0 no group is of it"),
        (["--group", 0, "--episode", 2], r"--episode 2: the group has 2, from 0 to 1$"),
        (["--html", "x.html"], r"name it by --group or --task$"),
        (["--prompts"], r"name it by --group or --task$"),
        (["--group", 0, "--prompts"], r"name it by --episode$"),
        (["--group", 0, "--html", "/dev/null/x.html"], r"^--html /dev/null/x.html cannot be written: "),
    ],
)
def test_what_a_run_does_not_have_is_one_line(run: Path, arguments: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace.main([str(run), *map(str, arguments)])


def test_groups_that_a_live_run_drops_meanwhile_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "numbers", lambda *_: [0, 1])
    with pytest.raises(UserError, match="has dropped iteration 0 just now"):
        RecordedRun(run).groups(0)


def test_a_folder_without_a_run_or_without_groups_is_one_line(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        trace.main([str(tmp_path / "policy")])
    Journal(run / "groups").forget(9)
    with pytest.raises(UserError, match=r"holds no groups; checkpoint\.groups_gib"):
        trace.main([str(run)])
