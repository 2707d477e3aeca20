"""The commands and numbers of README.md and docs: they parse, and what they print is what the page says."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gigpo_mega.commands import plan
from gigpo_mega.config.load import load_config
from gigpo_mega.program import COMMANDS, UNLISTED
from tools.bench.seeds import Experiment
from tools.codebase_stats import TOOLS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", ROOT / "SECURITY.md",
    ROOT / "kernels/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip
TEXTS = {page: page.read_text() for page in PAGES if page.name != "mutations.md"}
# Pages whose Python and YAML are files of a program that a test runs.
RUN_BY = {
    "agents.md": "tests/test_agents_page.py",
    "concepts.md": "tests/test_site.py",
    "adapters.md": "tests/envs/test_adapters_page.py",
    "your_own.md": "tests/test_own_environment.py",
    "estimators.md": "tests/algorithms/test_estimators.py",
    "experiments.md": "tests/experiment/test_experiment.py",
}
# Lines of code blocks that no test runs, and why not.
NOT_RUN = {
    "pip ": "needs a package index; tests/test_wheel.py builds and installs the wheel",
    "docker ": "needs Docker",
    "ray ": "starts a cluster on machines of the reader's; tests/rollout/test_ray_pool.py has one of its own",
    "cd ": "only the reader's shell has a folder",
    ". .venv/bin/activate": "only the reader's shell has a PATH",
}
NO_COMMANDS = {  # pages with blocks of another kind
    "kernels/README.md": "formulas",
    "docs/agents.md": "a signature",
    "docs/environments/search.md": "a protocol",
}
# What stands for a reader's own file or choice.
PLACEHOLDERS = {"COMMAND": "train", "h100|h200|a100": "h100", "N": "2"} | dict.fromkeys(
    ("CONFIG", "CONFIG.yaml", "configs/x.yaml", "corridor.yaml", "cold.yaml", "courier.yaml", "locks.yaml"),
    "configs/quickstart.yaml",
)
PLAN = (
    "gigpo-mega plan configs/alfworld/qwen2.5-1.5b.yaml --gpu h100 --nodes 1 --gpus-per-node 2 "
    "--prompt-tokens 600 --response-tokens 100 --episode-steps 25"
)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each code block; of an indented one the language is empty."""
    text = text.replace("\\\n", " ")
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = "\n".join(re.findall(r"^    (\S.*)$", prose, re.MULTILINE))
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [*fenced, ("", indented)]


def command(line: str) -> str | None:
    """A line without variables and torchrun if it begins with a program of ours, else None."""
    line = re.sub(r"^(\w+=\S+ +)*(torchrun .*?(?=-m ))?", "", " ".join(line.split()))
    modules = "|".join(path.stem for path in (ROOT / "tools").glob("*.py") if path not in TOOLS)
    start = rf"gigpo-mega |(python3? )?(tools/(?!({modules})\.)\w+\.py|-m (gigpo_mega|tools|envs)\b)"
    return line if re.match(start, line) else None


def commands(text: str) -> list[str]:
    """The command lines of a page: inline code, and the lines of its code blocks."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks(text) if not language for line in block.splitlines()]
    return [found for line in [*re.findall(r"`([^`]+)`", prose), *lines] if (found := command(line))]


CASES = sorted({(page, line) for page, text in TEXTS.items() for line in commands(text)})


class Parsed(Exception):
    """Raised where a program would begin to work, once it has read its options."""


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> NoReturn:
        raise Parsed

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for name in ("train.train", "quickstart.train", "evaluate.evaluate", "coldstart.clone.clone",
                 "dry_run.describe_run", "commands.rollout.collect"):  # fmt: skip
        monkeypatch.setattr(f"gigpo_mega.{name}", stop)
    monkeypatch.setattr("tools.bench.emulation.emulate", stop)

    def seeds(experiment: Experiment, seeds: int, folder: Path) -> NoReturn:
        for layer in (experiment.coldstart, experiment.panel):
            experiment.load(*([layer] if layer else []))
        raise Parsed

    def replay(source: Path, output: Path, overrides: list[str]) -> NoReturn:
        load_config(overrides, "gigpo-mega replay")
        raise Parsed

    monkeypatch.setattr("tools.bench.seeds.bench", seeds)
    monkeypatch.setattr("gigpo_mega.commands.replay.replay", replay)
    monkeypatch.chdir(ROOT)


def start(line: str, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Run the program of a command line in this process, without optional parts like [--json]."""
    words = shlex.split(re.sub(r"\[[^]]*\]", "", line), comments=True)
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if words[0].startswith("python"):
        words = words[1:]
    if words[0] == "-m":
        words = words[1:]
    program = words[0].removesuffix(".py").replace("/", ".")
    if program in ("gigpo-mega", "gigpo_mega"):
        words = words[1:] or ["train"]
        program = UNLISTED.get(words[0]) or COMMANDS[words[0]][0]
    elif program == "gigpo_mega.coldstart":
        program = COMMANDS["coldstart"][0]
    if len(words) == 1 or (words[0] == "convert" and len(words) == 2):
        words = [*words, "--help"]  # a name alone stands for the program, whatever else that needs
    monkeypatch.setattr(sys, "argv", words)
    return importlib.import_module(program).main()


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page.stem}: {line}" for page, line in CASES])
def test_a_command_of_a_page_parses(
    page: Path, line: str, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((Parsed, SystemExit)) as ended:
        sys.exit(start(line, monkeypatch))
    assert getattr(ended.value, "code", 0) == 0  # of --help, or of a plan, which runs


def test_a_command_that_does_not_parse_is_noticed(
    nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in ("tools/bench_envs.py --environment sokoban", "gigpo-mega convert import --hf DIR",
                 "python tools/bench_advantage.py --rows many"):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            start(line, monkeypatch)
        assert ended.value.code == 2
    with pytest.raises(KeyError):
        start("gigpo-mega trian CONFIG", monkeypatch)


def test_every_line_of_a_code_block_is_run_or_says_why_not() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = tuple(NOT_RUN) + tuple(f"make {target}" for target in targets) + (".venv/bin/python -m pytest",)
    lines = [(str(page.relative_to(ROOT)), line.strip()) for page, text in TEXTS.items()
             for language, block in blocks(text) if not language for line in block.splitlines()]  # fmt: skip
    left = [(page, line) for page, line in lines if line and not command(line) and not line.startswith(known)]
    assert [found for found in left if found[0] not in NO_COMMANDS] == []
    assert {page for page, _ in left} == set(NO_COMMANDS)
    assert [start for start in NOT_RUN if not any(line.startswith(start) for _, line in lines)] == []


def test_every_block_of_python_and_yaml_is_run_or_loads(tmp_path: Path) -> None:
    code = [(page.name, language, block) for page, text in TEXTS.items()
            for language, block in blocks(text) if language in ("python", "yaml")]  # fmt: skip
    assert {name for name, _, _ in code} >= set(RUN_BY)
    assert [name for name, test in RUN_BY.items() if name not in (ROOT / test).read_text()] == []
    others = [(name, language, block) for name, language, block in code if name not in RUN_BY]
    assert [name for name, language, _ in others if language == "python"] == []
    for _, _, block in others:
        (tmp_path / "block.yaml").write_text(block)
        load_config([str(tmp_path / "block.yaml")], "test")


def test_links_of_the_pages_at_the_top_lead_to_files() -> None:
    pages = [page for page in PAGES if not page.is_relative_to(ROOT / "docs")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s#]+)", TEXTS[page])]
    assert len(links) > 30
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_files_that_pages_name_exist() -> None:
    folders = "tools|tests|kernels|gigpo_mega|envs|configs"
    path = rf"(?<![\w/.])(?:{folders})/[\w./-]*\w\.(?:py|md|yaml|sh|sbatch)\b"
    named = {(page.name, name) for page, text in TEXTS.items() for name in re.findall(path, text)}
    assert len(named) > 50
    assert [pair for pair in named if not (ROOT / pair[1]).exists() and pair[1] not in PLACEHOLDERS] == []


def test_every_record_is_named_by_a_page_or_a_claim() -> None:
    pages = "\n".join(TEXTS.values())
    claims = (ROOT / "docs/claims.yaml").read_text()
    used = re.findall(r"\w+", " ".join(re.findall(r"\{([^}]*)\}", claims)))
    records = sorted((ROOT / "docs/benchmarks").iterdir())
    assert [r.name for r in records if r.name not in pages and r.stem not in used] == []


def test_the_plan_takes_as_long_as_its_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*shlex.split(PLAN)[2:], "--json"]) == 0
    seconds = sum(json.loads(capsys.readouterr().out)["seconds"].values())
    page = " ".join((ROOT / "docs/planning.md").read_text().split())
    assert f"`{PLAN}` says {seconds:.0f} s" in page
