"""tools/gpu_check.py: each part has its own time limit, outcome and line, and fails when it has to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from gigpo_mega.planning import memory
from gigpo_mega.planning.shapes import find
from gigpo_mega.stack import Stack
from tests import preloaded
from tools import gpu_check
from tools.bench.learner import CUDA_WORK, settings
from tools.gpu import engine, layers, state
from tools.gpu.setup import Setup, Wrong
from tools.gpu_check import Part, parts, run


def python(program: str, budget: float = 20.0) -> gpu_check.Outcome:
    return run(Part("part", (sys.executable, "-S", "-c", program), budget))


def test_what_the_learner_measures_fits_on_a_gpu_of_80_gb() -> None:
    """Micro-batches of 16,384 tokens used to need 76 GiB, emulated, at 1.5B."""
    measured = [part.command for part in parts(Path("unused")) if part.name.startswith("learner")]
    assert len(measured) == 2
    for command in measured:
        flags = dict(pairwise(command))
        shape = find(flags["--model"])
        shape = replace(shape, layers=int(flags.get("--layers", shape.layers)))
        cfg = settings(CUDA_WORK, "triton", cuda=True)
        need = sum(memory.stored(shape, cfg, 0, 1)) + sum(memory.passes(shape, cfg, 0, 1))
        assert 40 * 2**30 < need < 65 * 2**30


def test_the_last_line_is_the_result() -> None:
    done = python("print('table'); print('{\"tokens\": 5, \"seconds\": 2.5}')")
    assert (done.status, done.result, done.message) == ("ok", {"tokens": 5, "seconds": 2.5}, "seconds 2.5")
    assert python("print('3 passed, 1 skipped in 2s'); print('[1]')").message == "3 passed, 1 skipped in 2s"


def test_a_failure_shows_its_last_line() -> None:
    failed = python("import sys; print('half done'); sys.exit('no luck')")
    assert (failed.status, failed.message) == ("failed", "status 1: no luck")


def test_what_is_missing_is_named() -> None:
    assert python("import nowhere_to_be_found").message == "nowhere_to_be_found is not installed"
    assert python("import json.nowhere").status == "missing"


def test_a_part_that_hangs_is_ended_with_its_children() -> None:
    begin = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    late = python(child, budget=1.0)
    assert (late.status, late.message) == ("timeout", "not done after 1 s")
    assert time.monotonic() - begin < 30


def test_output_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """A part that is ended used to take with it all that it had said but the last lines."""
    late = python("import time; print('\\n'.join(map(str, range(200)))); time.sleep(300)", budget=3.0)
    assert late.status == "timeout"
    assert capsys.readouterr().out.splitlines()[1:] == [str(number) for number in range(200)]


def test_all_parts_take_less_than_ten_minutes() -> None:
    given = parts(Path("out"))
    assert sum(part.budget for part in given) <= 600 - 30
    assert [part.name for part in given] == [
        "engine", "iteration", "layers", "checkpoint", "repeat",
        "kernels", "learner-1.5b", "learner-7b", "tests",
    ]  # fmt: skip
    assert any(name.endswith("test_policy_loss.py") for name in given[-1].command)


def test_record_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fates = {"tests": "raise SystemExit('1 failed')", "kernels": "print('{}')", "learner": "import absent"}
    given = [Part(name, (sys.executable, "-S", "-c", fate), 20.0) for name, fate in fates.items()]
    monkeypatch.setattr(gpu_check, "parts", lambda *options: given)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"device": "Fake GPU 1", "kind": "cuda"})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(tmp_path)])
    assert gpu_check.main() == 1
    record = json.loads((tmp_path / "gpu_check_fake_gpu_1.json").read_text())
    assert record["command"].startswith("gpu_check --output")
    assert {"commit", "versions", "load_average"} <= record.keys()
    assert record["device"] == "Fake GPU 1"
    assert [part["status"] for part in record["parts"]] == ["failed", "ok", "missing"]
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        ["failed", "tests"], ["ok", "kernels"], ["missing", "learner"]
    ]  # fmt: skip


def test_the_record_holds_what_is_done_when_a_part_ends_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(part: Part) -> gpu_check.Outcome:
        if part.name == "second":
            raise KeyboardInterrupt
        return gpu_check.Outcome(part.name, "ok", 1.0, "done")

    monkeypatch.setattr(gpu_check, "parts", lambda *o: [Part(name, (), 1.0) for name in ("first", "second")])
    monkeypatch.setattr(gpu_check, "machine", lambda: {"device": "Fake GPU 1", "kind": "cuda"})
    monkeypatch.setattr(gpu_check, "run", ended)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main()
    [first] = json.loads((tmp_path / "gpu_check_fake_gpu_1.json").read_text())["parts"]
    assert (first["name"], first["status"]) == ("first", "ok")


@pytest.mark.engine
def test_engine_and_iteration_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gaps are those of float32; the old weights' gap says that the second push arrived."""
    arguments = ["--small", "--part", "engine", "--part", "iteration", "--output", str(tmp_path)]
    monkeypatch.setattr(gpu_check, "_OWN", dict.fromkeys(gpu_check._OWN, 300))
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    monkeypatch.setattr(gpu_check, "parts", lambda *options: [
        replace(part, command=(preloaded.python(), *part.command[1:])) for part in parts(*options)
    ])  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_check.main() == 1  # there is no GPU
    given = json.loads((tmp_path / "gpu_check_cpu.json").read_text())["parts"]
    assert [part["status"] for part in given] == ["ok", "ok"], given
    pushed, played = (part["result"] for part in given)
    assert max(pushed["gap"]) < 1e-6 < 1e-3 < pushed["gap_of_old_weights"]
    assert max(played["gap"]) < 1e-6
    assert len(played["stages"]) == 2


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Stack("cpu", "a test"), True, tmp_path)


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.distributed
def test_layers_checkpoint_and_repetition_in_small(setup: Setup) -> None:
    found = layers.layers(setup)
    for name in ("logprobs", "gradients"):
        assert 0 < found["theirs"][name] <= 2 * found["ours"][name] < 0.1
    assert "needs a GPU" in found["what"]
    assert state.checkpoint(setup)["bytes"] > 12 * 8192 * 64  # the head's weights and Adam's moments alone
    assert state.repeat(setup)["bitwise"]


@pytest.mark.distributed
def test_layers_that_compute_something_else_are_noticed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warmer(ours: Any) -> Any:
        return replace(ours, rollout=replace(ours.rollout, temperature=1.01)), "warmer layers"

    monkeypatch.setattr(layers, "_theirs", warmer)
    with pytest.raises(Wrong, match=r"logprobs of warmer layers are .* off, ours"):
        layers.layers(setup)


def nudged(act: Callable[..., None]) -> Callable[..., None]:
    """`act`, after which a weight of the learner, its second argument, is another one."""

    def wrong(self: Any, learner: Learner, *arguments: Any) -> None:
        act(self, learner, *arguments)
        with torch.no_grad():
            next(learner.policy.parameters())[0, 0] += 1e-3

    return wrong


@pytest.mark.distributed
def test_a_checkpoint_that_loses_something_is_noticed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoints, "load", nudged(Checkpoints.load))
    with pytest.raises(Wrong, match=r"^1 of \d+ weights differ, by up to 0\.001"):
        state.checkpoint(setup)


@pytest.mark.distributed
def test_runs_that_differ_are_noticed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    make, seeds = Setup.learner, iter(range(2))

    def drawn(self: Setup, *arguments: Any) -> Learner:
        made = make(self, *arguments)
        engine._nudge(made, next(seeds))
        return made

    monkeypatch.setattr(Setup, "learner", drawn)
    with pytest.raises(Wrong, match=r"^log-probs differ by up to"):
        state.repeat(setup)


@pytest.mark.parametrize(
    ("gaps", "stale", "said"),
    [
        ([1e-7, 2e-3], 0.1, "the engine's log-probs are 0.002 from the learner's, more than 0.001"),
        ([float("nan"), 1e-7], 0.1, "log-probs are nan from"),
        ([1e-7, 1e-7], 1.5e-7, "the weights before the second push, 1.5e-07, is not above 1e-07"),
    ],
)
def test_gaps_that_say_that_a_push_was_lost(gaps: list[float], stale: float, said: str) -> None:
    with pytest.raises(Wrong, match=said):
        engine._check(gaps, stale, 1e-3)
