"""Config files and flags: what they mean, and how they fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from gigpo_mega.config import Config, recipes
from gigpo_mega.config.load import FIELDS, RENAMED, load_config, save_config
from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main
from tests.helpers import refused
from tests.programs import ROOT, TORCHRUN, run_python


def parse(*argv: str) -> Config:
    return load_config(argv, "gigpo-mega train")


def complaint(*argv: str) -> str:
    return refused(lambda: parse(*argv))


def yaml_file(folder: Path, text: str, name: str = "run.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_no_arguments_give_the_defaults():
    assert parse() == Config()


def test_flags_override_files_and_later_files_override_earlier_ones(tmp_path: Path):
    first = yaml_file(tmp_path, "iterations: 3\nadvantage: {gamma: 0.5, omega: 2}\n", "a.yaml")
    second = yaml_file(tmp_path, "advantage:\n  gamma: 0.6\nrollout:\n", "b.yaml")
    config = parse(first, second, "--advantage.omega", "0.25")
    assert (config.iterations, config.advantage.gamma, config.advantage.omega) == (3, 0.6, 0.25)
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
    assert parse("--resume", "--iterations", "2").resume
    assert not parse("--resume", "false").resume
    assert not parse("--resume=false").resume


def test_flag_alone_leaves_the_next_file_alone(tmp_path: Path):
    config = parse("--resume", yaml_file(tmp_path, "iterations: 7"))
    assert (config.resume, config.iterations) == (True, 7)


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
    (["--iterations"], "--iterations needs a value"),
    (["--iterations", "--resume"], "--iterations needs a value"),
    (["--rollout.groups", "many"], "rollout.groups: expected an integer, got 'many'"),
    (["--rollout.groups", "1.5"], "rollout.groups: expected an integer, got 1.5"),
    (["--rollout.groups", "true"], "rollout.groups: expected an integer, got True"),
    (["--rollout.groups", "[1]"], "rollout.groups: expected an integer, got [1]"),
    (["--objective.dual_clip", "off"], "objective.dual_clip: expected a number or null, got 'off'"),
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
    ("advantage: 3", "advantage is a section, not a value (3 in {file})"),
])
def test_bad_file_is_named(tmp_path: Path, text: str, expected: str):
    file = yaml_file(tmp_path, text)
    assert complaint(file).startswith(expected.format(file=file))


@pytest.mark.parametrize(("field", "flag"), [
    ("output", "--output=runs/\udcff"),
    ("model.path", "--model.path=\udcff"),
    ("environment.tasks.data", '--environment.tasks={data: "\\udcff"}'),
])
def test_bytes_that_are_no_text_are_refused_by_field(field: str, flag: str):
    assert complaint(flag).startswith(f"{field}: ")
    assert "holds a surrogate, which is no character" in complaint(flag)


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
    save_config(config, tmp_path / "config.yaml")
    assert parse(str(tmp_path / "config.yaml")) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_field_is_refused_with_its_new_name(old: str, tmp_path: Path):
    assert RENAMED[old] in FIELDS
    assert complaint(f"--{old}", "1") == f"{old} (command line) is called {RENAMED[old]} now"
    section, _, name = old.rpartition(".")
    file = yaml_file(tmp_path, f"{section}: {{{name}: 1}}" if section else f"{name}: 1")
    assert complaint(file) == f"{old} ({file}) is called {RENAMED[old]} now"


def test_a_second_step_limit_is_refused():
    assert complaint("--environment.options.max_steps", "9") == (
        "environment.options.max_steps 9 is a second limit: set environment.max_steps, which the environment "
        "gets too"
    )


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


@pytest.mark.distributed
@pytest.mark.parametrize("late", ["0", "1"])
def test_config_error_is_told_once_in_a_launch_whichever_rank_is_late(late: str):
    program = ("from gigpo_mega.program import run_main; from gigpo_mega.config.load import load_config;"
               "run_main(lambda: load_config(['--gamma', '1'], 'x') and 0)")
    rank = f'[ $RANK = {late} ] && sleep 1; exec {sys.executable} -c "{program}"'
    start = time.monotonic()
    done = run_python(*TORCHRUN, "2", "--no-python", "bash", "-c", rank)
    assert time.monotonic() - start < 60
    assert [line for line in done.stderr.splitlines() if line.startswith(("error: ", "[rank"))] == [
        "error: unknown key gamma (command line); did you mean advantage.gamma?"
    ]


@pytest.mark.parametrize(("flags", "message"), [
    (["--seed", "-1"], "seed must be in 0..4294967295, got -1"),
    (["--optimizer.lr", ".inf"], "optimizer.lr: expected a number, got"),
    (["--optimizer.lr", "1e999"], "optimizer.lr: expected a number, got"),
    (["--optimizer.warmup_updates", "-5"], "optimizer.warmup_updates must be >= 0, got -5"),
    (["--optimizer.beta1", "1"], "optimizer.beta1 must be in [0, 1), got 1.0"),
    (["--optimizer.beta2", "-0.1"], "optimizer.beta2 must be in [0, 1), got -0.1"),
    (["--optimizer.epsilon", "0"], "optimizer.epsilon must be > 0, got 0.0"),
    (["--optimizer.grad_clip", "0"], "optimizer.grad_clip must be > 0, got 0.0"),
    (["--optimizer.weight_decay", "-1"], "optimizer.weight_decay must be >= 0, got -1.0"),
    (["--optimizer.max_skips", "-1"], "optimizer.max_skips must be >= 0, got -1"),
    (["--batch.rows_per_update", "0"], "batch.rows_per_update must be >= 1 or null, got 0"),
    (["--advantage.invalid_penalty", "-0.1"], "advantage.invalid_penalty must be >= 0, got -0.1"),
    (["--advantage.episode_weight", "-1"], "advantage.episode_weight must be >= 0, got -1.0"),
    (["--advantage.history_length", "-1"], "advantage.history_length must be >= 0, got -1"),
    (["--advantage.history_alpha", "-1"], "advantage.history_alpha must be >= 0, got -1.0"),
    (["--advantage.gae_lambda", "1.1"], "advantage.gae_lambda must be in [0, 1], got 1.1"),
    (["--advantage.goal_reward", "0"], "advantage.goal_reward must be > 0, got 0.0"),
    (["--objective.entropy_coef", "-1"], "objective.entropy_coef must be >= 0, got -1.0"),
    (["--objective.clip_low", "1.5"], "objective.clip_low must be in (0, 1], got 1.5"),
    (["--objective.surrogate", "cispo", "--objective.dual_clip", "2"],
     "objective.dual_clip 2.0 has no effect without objective.surrogate ppo; leave it at 3.0"),
    (["--objective.rollout_is_high", "3"],
     "objective.rollout_is_high 3.0 has no effect without objective.rollout_is; leave it at 2.0"),
    (["--objective.rollout_is", "token", "--objective.rollout_is_low", "3"],
     "objective.rollout_is_high must be > 0 and >= objective.rollout_is_low 3.0, got 2.0"),
    (["--objective.rollout_is", "token", "--objective.old_logprob", "engine"],
     "objective.rollout_is token compares the learner's log-probabilities with the engine's, but "
     "objective.old_logprob is engine; set it to learner"),
    (["--objective.rollout_mask_high", "1.01", "--objective.old_logprob", "engine"],
     "objective.rollout_mask_high 1.01 compares the learner's log-probabilities with the engine's, but "
     "objective.old_logprob is engine; set it to learner"),
    (["--objective.rollout_mask_high", "0.9", "--objective.rollout_mask_low", "0.99"],
     "objective.rollout_mask_low must be >= 0 and below rollout_mask_high 0.9, got 0.99"),
    (["--objective.rollout_mask_low", "-1"],
     "objective.rollout_mask_low must be >= 0 and below rollout_mask_high None, got -1.0"),
    (["--engine.placement", "separate"], "engine.placement separate needs engine.replicas, the number of "
     "servers, and no engine.url or engine.port; got None, None and None"),
    (["--engine.placement", "separate", "--engine.replicas", "2"], "engine.placement separate: "
     "weights.transport tensor reaches engines beside the learner alone; set it to broadcast or disk"),
    (["--rollout.max_staleness", "-1"], "rollout.max_staleness must be >= 0, got -1"),
    (["--rollout.max_staleness", "1"],
     "rollout.max_staleness 1 learns from tokens that older weights sampled: set "
     "objective.old_logprob engine, so that the ratio is to what they gave, or objective.rollout_is"),
    (["--rollout.max_staleness", "2", "--objective.rollout_is", "token", "--engine.release_memory", "true"],
     "engine.release_memory true stops the engines while the learner learns, but rollout.max_staleness 2 "
     "lets them go on; set one of them to false or 0"),
    (["--engine.port", "70000"], "engine.port must be in 1..65535, got 70000"),
    (["--engine.startup_timeout", "0"], "engine.startup_timeout must be > 0 seconds, got 0.0"),
    (["--engine.request_timeout", "-1"], "engine.request_timeout must be > 0 seconds, got -1.0"),
    (["--engine.memory_fraction", "1"], "engine.memory_fraction must be in (0, 1), got 1.0"),
    (["--engine.max_total_tokens", "0"], "engine.max_total_tokens must be >= 1 or null, got 0"),
    (["--engine.threads", "0"], "engine.threads must be >= 1, got 0"),
    (["--weights.bucket_mib", "0"], "weights.bucket_mib must be >= 1, got 0"),
    (["--weights.folder", "/shared"],
     "weights.folder /shared is read by weights.transport disk only, and that is tensor; drop one"),
    (["--weights.max_logprob_gap", "0"], "weights.max_logprob_gap must be > 0 or null, got 0.0"),
    (["--coldstart.detour", "1.5"], "coldstart.detour must be in [0, 1], got 1.5"),
    (["--rollout.retries", "-1"], "rollout.retries must be >= 0, got -1"),
    (["--environment.step_timeout", "0"], "environment.step_timeout must be > 0 seconds or null, got 0.0"),
    (["--coldstart.games", "0"], "coldstart.games must be >= 1, got 0"),
    (["--scratch.heads", "5"], "scratch.heads 5 does not divide scratch.hidden 96"),
    (["--rollout.group_size", "1"], "it needs rollout.group_size >= 2, got 1"),
    (["--rollout.group_size", "1", "--advantage.estimator", "grpo"], "rollout.group_size >= 2, got 1"),
    (["--rollout.group_size", "1", "--advantage.estimator", "graphgpo"], "rollout.group_size >= 2, got 1"),
    (["--rollout.group_size", "1", "--advantage.estimator", "hgpo", "--advantage.preset", "reference"],
     "advantage.estimator hgpo compares the episodes of a task: it needs rollout.group_size >= 2, got 1"),
])  # fmt: skip
def test_values_that_no_run_could_use_are_refused(flags: list[str], message: str):
    assert message in complaint(*flags)


def test_cispo_takes_the_default_dual_clip_and_none_and_no_lower_clip():
    for flags in ((), ("--objective.dual_clip", "null"), ("--objective.clip_low", "1")):
        assert parse("--objective.surrogate", "cispo", *flags).objective.surrogate == "cispo"


def test_a_lone_episode_is_allowed_if_its_score_counts():
    assert parse("--rollout.group_size", "1", "--advantage.preset", "reference").rollout.group_size == 1


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("08", 8), ("-007", -7)])
def test_leading_zeros_are_decimal(text: str, value: int, tmp_path: Path):
    assert parse("--environment.tasks", f"{{seed: {text}}}").environment.tasks == {"seed": value}
    assert parse(yaml_file(tmp_path, f"environment: {{tasks: {{seed: {text}}}}}")).environment.tasks == {
        "seed": value
    }


@pytest.mark.parametrize("text", ["runs/try #3", "08", "1e3", "yes", "a: b", "[x", "null.d", " spaced "])
def test_a_path_on_the_command_line_is_taken_as_it_stands(text: str):
    assert str(parse("--output", text).output) == text


def test_home_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home-of-mine")
    monkeypatch.setenv("SCRATCH", "/fast")
    file = yaml_file(tmp_path, "output: ~/runs\nmodel: {path: $SCRATCH/model}\n"
                               "environment: {tasks: {data: '${SCRATCH}/games', note: 'costs $3'}}")
    config = parse(file)
    assert (str(config.output), str(config.model.path)) == ("/home-of-mine/runs", "/fast/model")
    assert config.environment.tasks == {"data": "/fast/games", "note": "costs $3"}
    assert str(parse("--output", "$SCRATCH/x").output) == "/fast/x"


@pytest.mark.parametrize("text", ["$NOT_SET_ANYWHERE/x", "${NOT_SET_ANYWHERE}/x", "~nobody-of-that-name/x"])
def test_a_variable_that_is_not_set_is_refused(text: str):
    assert complaint("--output", text).endswith("is not set on this machine; write the path out")


def test_resume_takes_auto():
    assert parse("--resume", "auto").resume == "auto"
    assert parse("--resume=auto").resume == "auto"
    assert "resume: expected true or false or auto" in complaint("--resume=maybe")


def test_a_name_is_the_recipe_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    by_path = parse(str(ROOT / "configs/alfworld/qwen2.5-7b.yaml"), "--iterations", "3")
    monkeypatch.chdir(tmp_path)
    assert parse("alfworld/qwen2.5-7b", "--iterations", "3") == by_path
    assert parse("--iterations", "3", "alfworld/qwen2.5-7b") == by_path
    assert complaint("alfworld/qwen2.5-7").startswith(
        "unknown recipe 'alfworld/qwen2.5-7' (did you mean alfworld/qwen2.5-7b"
    )
    assert complaint("zzz") == "unknown recipe 'zzz' (see --help); a config file must end in .yaml"
    assert complaint("configs/search/small.yaml").endswith("for the recipe of the package write search/small")


def test_a_path_of_the_package_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(recipes.FOLDER.parent)
    assert parse("quickstart").model.path == Path("configs/quickstart_policy")
    monkeypatch.chdir(tmp_path)
    assert parse("quickstart").model.path == recipes.FOLDER / "quickstart_policy"
    assert complaint("--model.path", "package:nothing").startswith("package:nothing: the package has no such")
