"""Config files and flags: what they mean, and how they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gigpo_mega.config import Config
from gigpo_mega.errors import ConfigError, UserError, run_main
from gigpo_mega.options import FIELDS, SECTIONS, describe, load, save


def parse(*argv: str) -> Config:
    return load(argv, "gigpo_mega.train")


def complaint(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def yaml_file(folder: Path, text: str, name: str = "run.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_no_arguments_give_the_defaults():
    assert parse() == Config()


def test_flags_override_files_and_later_files_override_earlier_ones(tmp_path: Path):
    first = yaml_file(tmp_path, "steps: 3\nadvantage: {gamma: 0.5, omega: 2}\n", "a.yaml")
    second = yaml_file(tmp_path, "advantage:\n  gamma: 0.6\nrollout:\n", "b.yaml")
    config = parse(first, second, "--advantage.omega", "0.25")
    assert (config.steps, config.advantage.gamma, config.advantage.omega) == (3, 0.6, 0.25)
    assert config.rollout == Config().rollout


def test_both_spellings_of_a_flag_and_the_last_one_wins():
    assert parse("--rollout.groups=4").rollout.groups == 4
    assert parse("--rollout.groups", "4", "--rollout.groups", "5").rollout.groups == 5


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("1E-6", 1e-6), ("0.5", 0.5), ("2", 2.0)])
def test_numbers_without_a_point_are_numbers(text: str, value: float):
    assert parse("--optimizer.lr", text).optimizer.lr == value


def test_exponents_in_files_are_numbers(tmp_path: Path):
    assert parse(yaml_file(tmp_path, "optimizer: {lr: 3e-5}")).optimizer.lr == 3e-5


def test_negative_value_is_no_flag():
    assert complaint("--optimizer.lr", "-1") == "optimizer.lr must be > 0, got -1.0"


def test_resume_alone_is_true():
    assert parse("--resume").resume
    assert parse("--resume", "--steps", "2").resume
    assert not parse("--resume", "false").resume
    assert not parse("--resume=false").resume


def test_flag_alone_leaves_the_next_file_alone(tmp_path: Path):
    config = parse("--resume", yaml_file(tmp_path, "steps: 7"))
    assert (config.resume, config.steps) == (True, 7)


def test_null_turns_off_and_lists_and_mappings_are_yaml():
    config = parse("--objective.dual_clip", "null", "--engine.arguments", "[--log-level, warning]",
                   "--environment.tasks", "{data: games, task_types: [a, b]}")
    assert config.objective.dual_clip is None
    assert config.engine.arguments == ["--log-level", "warning"]
    assert config.environment.tasks == {"data": "games", "task_types": ["a", "b"]}


def test_keys_of_a_mapping_are_set_one_by_one(tmp_path: Path):
    file = yaml_file(tmp_path, "environment: {tasks: {data: x, count: 3}}")
    config = parse(file, "--environment.tasks.data", "y", "--environment.tasks.deep.key", "1")
    assert config.environment.tasks == {"data": "y", "count": 3, "deep": {"key": 1}}


def test_text_fields_take_text_as_it_stands():
    config = parse("--output", "007", "--evaluation.split", "2020", "--engine.url", "http://host:30000")
    assert (config.output, config.evaluation.split) == (Path("007"), "2020")
    assert config.engine.url == "http://host:30000"


def test_yes_and_no_are_words(tmp_path: Path):
    config = parse(yaml_file(tmp_path, "environment: {tasks: {answer: no}}"))
    assert config.environment.tasks == {"answer": "no"}


@pytest.mark.parametrize(("flags", "expected"), [
    (["--advantage.gama", "1"],
     "unknown key advantage.gama (command line); "
     "did you mean advantage.gamma or advantage.omega or advantage?"),
    (["--gamma", "1"], "unknown key gamma (command line); did you mean advantage.gamma?"),
    (["--zzz", "1"], "unknown key zzz (command line); --help lists the fields"),
    (["--zzz"], "unknown key zzz (command line); --help lists the fields"),
    (["--steps"], "--steps needs a value"),
    (["--steps", "--resume"], "--steps needs a value"),
    (["--rollout.groups", "many"], "rollout.groups: expected an integer, got 'many'"),
    (["--rollout.groups", "1.5"], "rollout.groups: expected an integer, got 1.5"),
    (["--rollout.groups", "true"], "rollout.groups: expected an integer, got True"),
    (["--rollout.groups", "[1]"], "rollout.groups: expected an integer, got [1]"),
    (["--objective.dual_clip", "off"], "objective.dual_clip: expected a number or null, got 'off'"),
    (["--advantage.estimator", "ppo"], "advantage.estimator: expected one of gigpo, grpo, rloo, got 'ppo'"),
    (["--environment.tasks", "[1]"], "environment.tasks: expected a mapping, got [1]"),
    (["--engine.arguments", "[1]"], "engine.arguments.0: input should be a valid string, got 1"),
    (["--advantage", "3"], "advantage is a section, not a value (3 in command line); set advantage.<field>"),
    (["--advantage.gamma.x", "3"], "advantage.gamma has no field 'x' (command line): it takes a number"),
    (["--advantage.gamma", "[1"], "--advantage.gamma: '[1' is not a YAML value"),
    (["--advantage.gamma", "nan"], "advantage.gamma: expected a number, got 'nan'"),
])
def test_bad_flag_is_named_with_the_remedy(flags: list[str], expected: str):
    assert complaint(*flags) == expected


@pytest.mark.parametrize(("flags", "values"), [
    (["--advantage.estimator", "rloo", "--rollout.group_size", "1"], ("rloo", "rollout.group_size", "1")),
    (["--optimizer.lr", "1e-6", "--optimizer.min_lr", "1e-3"],
     ("optimizer.min_lr 0.001", "optimizer.lr 1e-06")),
    (["--optimizer.schedule", "cosine"], ("optimizer.schedule cosine", "optimizer.decay_updates")),
    (["--optimizer.warmup_updates", "9", "--optimizer.decay_updates", "5"],
     ("optimizer.decay_updates 5", "optimizer.warmup_updates 9")),
    (["--parallel.sequence_parallel", "--parallel.tensor", "1"],
     ("parallel.sequence_parallel", "parallel.tensor > 1, got 1")),
])
def test_conflicts_name_both_values(flags: list[str], values: tuple[str, ...]):
    message = complaint(*flags)
    assert all(value in message for value in values), message


def test_every_complaint_of_a_bad_config_comes_at_once():
    message = complaint("--rollout.groups", "x", "--advantage.gamma", "7")
    assert "rollout.groups: expected an integer" in message
    assert "advantage.gamma must be in (0, 1], got 7.0" in message


@pytest.mark.parametrize(("text", "expected"), [
    ("advantage: {gama: 1}", "unknown key advantage.gama ({file}); did you mean"),
    ("steps: 1\nsteps: 2", "{file}:2: key 'steps' comes twice"),
    ("a: [1", "{file}:1: "),
    ("- 1\n- 2", "config file {file} must hold a mapping of sections, not [1, 2]"),
    ("advantage: 3", "advantage is a section, not a value (3 in {file})"),
    ("!!python/object/apply:os.system [exit]", "{file}:1: could not determine a constructor"),
])
def test_bad_file_is_named(tmp_path: Path, text: str, expected: str):
    file = yaml_file(tmp_path, text)
    assert complaint(file).startswith(expected.format(file=file))


def test_missing_and_binary_files_are_named(tmp_path: Path):
    assert complaint("absent.yaml") == "cannot read config file absent.yaml: No such file or directory"
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert complaint(str(tmp_path / "b.yaml")) == f"config file {tmp_path / 'b.yaml'} is not UTF-8 text"


def test_stray_argument_is_refused():
    assert complaint("--resume", "yes").startswith("unexpected argument 'yes'")
    assert complaint("-x").startswith("unexpected argument '-x'")


@pytest.mark.parametrize("flags", [
    [],
    ["--optimizer.lr", "1e-6", "--optimizer.epsilon", "1e-12", "--resume", "--objective.dual_clip", "null"],
    ["--environment.tasks", "{a: '1e-6', b: 'true', c: '', d: null, e: [1, 2.5], f: 'no', g: 'äß: #'}"],
    ["--evaluation.split", "\"null\"", "--model.path", "some/where"],
])
def test_saved_config_loads_back_equal(tmp_path: Path, flags: list[str]):
    config = parse(*flags)
    save(config, tmp_path / "config.yaml")
    assert parse(str(tmp_path / "config.yaml")) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_help_shows_every_field_with_its_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse("--advantage.gamma", "oops", "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text == describe("gigpo_mega.train")
    assert "--advantage.gamma  a number [0.95]\n        Discount of the step returns (Eq. 5)." in text
    assert all(f"--{path}  " in text for path in FIELDS)
    assert all(f"\n{name}: " in text for name in SECTIONS)


def test_every_field_has_a_docstring():
    assert [path for path, item in FIELDS.items() if not item.help] == []


def test_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]):
    def main() -> int:
        raise UserError("disk full\n  while saving")

    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: disk full while saving\n"


def test_bug_keeps_its_traceback():
    def main() -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_main(main)


def test_config_error_is_told_once_in_a_launch():
    program = ("from gigpo_mega.errors import run_main; from gigpo_mega.options import load;"
               "run_main(lambda: load(['--gamma', '1'], 'x') and 0)")
    for rank, lines in (("0", 1), ("1", 0)):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                              env={"RANK": rank, "PYTHONPATH": str(Path(__file__).parent.parent)})
        assert (done.returncode, len(done.stderr.splitlines())) == (2, lines)
