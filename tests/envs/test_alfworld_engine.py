"""The native engine: official transcripts, the laws of its language, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from envs.alfworld.engine import Play, compile_game, display_names
from envs.alfworld.expert import Expert, solve
from envs.alfworld.expression import Attribute, parse_expression
from envs.alfworld.games import load_game
from envs.alfworld.grammar import parse_grammar, parse_symbols
from envs.alfworld.pddl import parse_domain, parse_problem
from envs.alfworld.transcripts import read_transcript, replay
from envs.alfworld.wheel import load_wheel
from envs.base import EnvError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden_alfworld").glob("*.json.gz"))
GENUINE = os.environ.get("ALFWORLD_GENUINE_DIR", "")  # a folder with a game of the official data

DOMAIN = """
(define (domain toy)
 (:requirements :adl :typing)
 (:types room thing)
 (:predicates (at ?r - room) (in ?t - thing ?r - room) (lit ?t - thing) (shut ?r - room) (seen ?t - thing))
 (:action walk :parameters (?a - room ?b - room) :precondition (and (at ?a) (not (shut ?b)))
  :effect (and (not (at ?a)) (at ?b)))
 (:action burn :parameters (?r - room) :precondition (and (at ?r) (exists (?t - thing) (in ?t ?r)))
  :effect (and (forall (?t - thing) (when (in ?t ?r) (lit ?t)))))
 (:action rest :parameters (?r - room)
  :precondition (and (at ?r) (forall (?t - thing) (imply (in ?t ?r) (lit ?t)))) :effect (and (shut ?r)))
)
"""
GRAMMAR = '''
grammar :: """ {"intro": [{"rhs": "Go. #task#"}], "task": [{"rhs": "Your task is to: win."}],
 "list_empty": [{"rhs": "nothing"}], "list_separator": [{"rhs": ", "}],
 "list_last_separator": [{"rhs": ", and "}],
 "here": [{"rhs": "Here: [{t.name | in(t:thing, b:room)}]."}]} """;
action walk { template :: "walk to {b}"; feedback :: "#here#"; }
action burn { template :: "burn {r}"; feedback :: "Hot."; }
action rest { template :: "rest in {r}"; feedback :: "Ah."; }
'''
PROBLEM = """
(define (problem p) (:domain toy)
 (:objects hall_bar_1 den_bar_1 - room cup_bar_1 cup_bar_2 pan_bar_1 - thing)
 (:init (at hall_bar_1) (in cup_bar_1 den_bar_1) (in cup_bar_2 den_bar_1) (in pan_bar_1 den_bar_1))
 (:goal (and (forall (?t - thing) (lit ?t)) (exists (?x - room) (and (at ?x) (shut ?x))))))
"""


def toy(domain: str = DOMAIN, grammar: str = GRAMMAR, problem: str = PROBLEM) -> Play:
    return compile_game(domain, grammar, problem).play()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_official_transcripts_replay_without_a_difference(path: Path) -> None:
    transcript = read_transcript(path)
    result = replay(transcript)
    assert (result.steps, result.differences, result.first) == (len(transcript["steps"]), 0, "")


def test_all_twelve_transcripts_are_there() -> None:
    assert len(GOLDEN) == 12
    assert len({read_transcript(path)["task_type"] for path in GOLDEN}) == 6


def test_a_changed_string_in_a_transcript_is_found() -> None:
    transcript = read_transcript(GOLDEN[0])
    transcript["steps"][3]["feedback"] += "!"
    transcript["steps"][5]["admissible"].remove("look")
    result = replay(transcript)
    assert result.differences == 2
    assert result.first.startswith("step 4, ")


def test_the_checker_counts_and_exits_by_differences(tmp_path: Path) -> None:
    def check(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/check_alfworld.py", "--transcripts", str(folder)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    good = check(ROOT / "tests" / "golden_alfworld")
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1] == "12 files, 332 steps, 0 differences"
    empty = check(tmp_path)
    assert empty.returncode == 2
    assert "--record" in empty.stderr
    assert "Traceback" not in empty.stderr


@pytest.mark.skipif(not GENUINE, reason="ALFWORLD_GENUINE_DIR is not set")
def test_the_genuine_game_is_won_in_six_steps() -> None:
    game = load_game(next(Path(GENUINE).rglob("game.tw-pddl")))
    play = game.play()
    assert play.feedback.endswith("Your task is to: put a hot potato in sinkbasin.")
    plan = solve(game)
    assert len(plan) == 6
    for command in plan[:-1]:
        assert play.step(command)
        assert not play.won
    assert play.step(plan[-1])
    assert play.won


@pytest.mark.parametrize("path", GOLDEN[:6], ids=lambda path: path.name)
def test_every_admissible_command_is_accepted_and_no_other(path: Path) -> None:
    from envs.alfworld.transcripts import game_of

    game = game_of(read_transcript(path))
    rng = Random(path.name)
    play = game.play()
    walked: list[str] = []
    for _ in range(12):
        for command in play.admissible:
            other = game.play()
            for earlier in walked:
                other.step(earlier)
            assert other.step(command), command
        assert not play.step("go to the moon")
        walked.append(rng.choice(play.admissible))
        assert play.step(walked[-1])


def test_an_inadmissible_command_changes_nothing() -> None:
    play = toy()
    before = play.admissible
    assert not play.step("WALK to den ")
    assert (play.feedback, play.admissible, play.won) == ("Nothing happens.", before, False)


def test_quantifiers_conditional_effects_and_lists() -> None:
    play = toy()
    assert play.feedback == "Go. Your task is to: win."
    # going where one is changes nothing, so the planner drops it; nothing is in the hall, so all of it is lit
    assert play.admissible == ("rest in hall 1", "walk to den 1")
    assert play.step(" walk to den 1\n")
    assert play.feedback == "Here: cup 2, cup 1, and pan 1."
    assert play.admissible == ("burn den 1", "walk to hall 1")
    assert play.step("burn den 1")
    assert play.admissible == ("burn den 1", "rest in den 1", "walk to hall 1")
    assert not play.won
    assert play.step("rest in den 1")
    assert play.won


def test_a_comma_in_a_typed_list_belongs_to_the_type_as_in_the_official_planner() -> None:
    # this is why `examine <object>` is only admissible for what is held
    domain = DOMAIN.replace("(exists (?t - thing) (in ?t ?r))", "(exists (?t - thing, ?x - room) (in ?t ?r))")
    play = toy(domain=domain)
    assert play.step("walk to den 1")
    assert not any(command.startswith("burn") for command in play.admissible)


def test_equality_keeps_two_things_apart() -> None:
    goal = "(:goal (exists (?a - thing ?b - thing) (and (not (= ?a ?b)) (lit ?a) (lit ?b)))))"
    text = PROBLEM[: PROBLEM.index("(:goal")] + goal
    one = text.replace("(in cup_bar_2 den_bar_1) (in pan_bar_1 den_bar_1)", "")
    for problem, won in ((text, True), (one, False)):
        play = toy(problem=problem)
        play.step("walk to den 1")
        play.step("burn den 1")
        assert play.won is won


def test_display_names_number_backwards_and_know_basins() -> None:
    ids = ["mug_bar_a", "mug_bar_b", "sink_bar_1_bar_sinkbasin", "sink_bar_1", "agent1"]
    assert display_names(ids) == {
        "agent1": "agent1 ",
        "mug_bar_a": "mug 2",
        "mug_bar_b": "mug 1",
        "sink_bar_1": "sink 1",
        "sink_bar_1_bar_sinkbasin": "sinkbasin 1",
    }


def test_expressions_parse_to_terms_and_alternatives() -> None:
    assert parse_expression("o.indefinite + ' ' + o.name ").alternatives == (
        (Attribute("o", "indefinite"), " ", Attribute("o", "name")),
    )
    assert parse_expression("r.name or r.id").alternatives == (
        (Attribute("r", "name"),),
        (Attribute("r", "id"),),
    )
    assert parse_expression(" r").alternatives == ((Attribute("r", "name"),),)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "o.__class__",
        "o.name.__class__",
        "open('/etc/passwd')",
        "(lambda: 1)()",
        "o.name * 3",
        "o.name + ",
        "or o.name",
        "f'{o}'",
        "'a' 'b'",
        "o[0]",
        "1",
        "",
    ],
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(EnvError, match="refused"):
        parse_expression(text)


def test_a_malicious_game_is_refused_before_anything_runs(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    grammar = GRAMMAR.replace("{t.name |", f"{{open('{flag}', 'w') |")
    with pytest.raises(EnvError, match="refused"):
        toy(grammar=grammar)
    assert not flag.exists()


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("", ("",)),
        (" (it is open)", ("(it is open)",)),  # white space at the start of a line does not count
        ("\nA:\n  b (c)  ", ("A:\n  b (c)  ",)),
        ("// note\nfoo", ("foo",)),
        ('"q" z', ("q", " z")),
        ("a;b", ("a",)),  # nothing matches a semicolon: the rest is dropped
    ],
)
def test_text_is_cut_as_the_official_parser_cuts_it(text: str, symbols: tuple[str, ...]) -> None:
    assert parse_symbols(text) == symbols


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("grammar :: 5;", "expected block"),
        ('grammar :: """ {"a": } """;', "not JSON"),
        ('grammar :: """ {"a": [{"lhs": "x"}]} """;', "'rhs'"),
        ('action a { template :: "x"; }', "needs a template and a feedback"),
        ('action a { size :: "x"; }', "unknown field 'size'"),
        ("nonsense", "expected 'action' or 'grammar'"),
        ('grammar :: """ {"a": [{"rhs": "x", "condition": "in(t:thing"}]} """;', "cannot read condition"),
    ],
)
def test_grammar_errors_say_what_is_wrong(grammar: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        parse_grammar(grammar)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("#here#", "#there#", "no rule is called 'there'"),
        ("t.name", "z.name", "'z' is not bound"),
        ("t:thing", "t:ghost", "type 'ghost'"),
        ("in(t:thing, b:room)", "lit(t:thing)", "conditional effects"),
        ("Your task is to: win.", "#task#", "refers to itself"),
        ("action rest", "action sleep", "'rest' of the domain has no template"),
    ],
)
def test_rules_that_cannot_work_are_refused(before: str, after: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        toy(grammar=GRAMMAR.replace(before, after))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(define (problem p) (:init) (:goal (and))", "truncated or malformed"),
        ("(define (problem p)))", "without an opening one"),
        ("(define (problem p) (:init))", "needs an .:init"),
        ("(define (problem p) (:init (at (x))) (:goal (and)))", "expected .predicate"),
        ("(define (problem p) (:init) (:goal (at ?x)))", "not declared"),
        ("(defin)", "expected .define"),
    ],
)
def test_problem_errors_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        parse_problem(text)


def test_a_fact_written_twice_is_one_fact() -> None:
    play = toy(problem=PROBLEM.replace("(at hall_bar_1)", "(at hall_bar_1) (in cup_bar_2 den_bar_1)"))
    play.step("walk to den 1")
    assert play.feedback == "Here: cup 2, cup 1, and pan 1."


def test_an_unsupported_domain_section_is_named() -> None:
    with pytest.raises(EnvError, match=":derived"):
        parse_domain("(define (domain d) (:derived (p) (q)))")


def test_a_game_with_an_undeclared_object_is_refused() -> None:
    with pytest.raises(EnvError, match="'attic'"):
        toy(problem=PROBLEM.replace("(at hall_bar_1)", "(at attic)"))


def test_rules_are_shared_between_games_that_differ_in_the_task_alone() -> None:
    one, other = toy(), toy(grammar=GRAMMAR.replace("win.", "lose."))
    assert other.feedback == "Go. Your task is to: lose."
    assert one.game.rules is other.game.rules


def test_three_thousand_random_steps_take_at_most_a_cpu_second() -> None:
    import time

    from envs.alfworld.transcripts import game_of

    game = game_of(read_transcript(GOLDEN[0]))
    rng, play = Random(0), game.play()
    start = time.process_time()
    for _ in range(3_000):
        play.step(rng.choice(play.admissible))
    assert time.process_time() - start < 1.0  # README.md has 8,225 steps/s of a quiet core


def test_the_expert_needs_one_of_the_six_goals() -> None:
    with pytest.raises(EnvError, match="six task types"):
        Expert(toy(), Random(0))


def test_the_wheel_is_read_not_imported() -> None:
    code = "import sys; from envs.alfworld.wheel import *; load_wheel(); print('alfworld' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
    wheel = load_wheel()
    assert (len(wheel.train), len(wheel.unseen)) == (96, 24)
    assert json.dumps(sorted(wheel.openable)) == '["Cabinet", "Drawer", "Fridge", "Microwave", "Safe"]'
