"""Try the CUDA packages on a machine without a GPU: `make test-cuda-set`, or `python3.12 -m tools.cuda_set`.

Installs requirements/gpu.lock into a virtual environment of its own (5 GB of downloads, 11 GB on the disk):
torch's CUDA build, its Triton, its numpy, SGLang's kernels. Runs on the CPU stack, with these: the import of
every module, an iteration under torchrun with its own engine, and the tests of kernels, learner and weights.
The results go to docs/benchmarks/cuda_set.json, part by part; the status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gigpo_mega.arguments import number
from gigpo_mega.stack import Machine
from gigpo_mega.telemetry.provenance import commit, device_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "gpu.lock"
RECORD = ROOT / "docs" / "benchmarks" / "cuda_set.json"
SHOWN = ("torch", "triton", "numpy", "sglang", "sglang-kernel", "megatron-core", "transformers")
# Every module, and with it all that they import at the top of a file; some adapters need an extra.
IMPORTS = """
import importlib, pkgutil
import envs, kernels, gigpo_mega
from envs.base import EnvError
from gigpo_mega.cpu import stubs
import torch
assert torch.version.cuda and not torch.cuda.is_available()
stubs.install()
imported, optional = 0, []
for package in (envs, kernels, gigpo_mega):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            imported += 1
        except EnvError as error:
            assert "pip install 'gigpo-mega[" in str(error), error
            optional.append(module.name)
print(f"{imported} modules imported; need an extra: {', '.join(optional)}")
"""
TESTS = ("tests/learner", "tests/weights", "tests/run", "tests/cpu", "tests/test_stack.py",
         "tests/rollout/test_command.py")  # fmt: skip
OVERRIDES = ("--model.path", "configs/quickstart_policy", "--parallel.tensor", "2", "--iterations", "1",
             "--engine.startup_timeout", "1200")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended; `said` is its last line."""

    name: str
    ok: bool
    seconds: float
    said: str


def parts(python: Path, folder: Path) -> dict[str, list[str]]:
    """The commands, by name, for the Python of the virtual environment; a run writes into `folder`."""
    pytest = [
        str(python),
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        "--durations",
        "0",
        "-m",
        "not gpu and not aot and not engine",
    ]  # aot compares with the record of another Triton
    torchrun = [str(python), "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    return {
        "imports": [str(python), "-W", "ignore", "-c", IMPORTS],
        "torchrun": [
            *(*torchrun, "--nproc-per-node", "2", "-m", "gigpo_mega.train", "tests/tiny.yaml", *OVERRIDES),
            *("--output", str(folder / "run"), "--environment.tasks.data", str(folder / "games")),
        ],
        "kernels": [*pytest, "tests/kernels"],
        "tests": [*pytest, *TESTS],
    }


def run(name: str, command: Sequence[str], limit: float) -> Outcome:
    """Run a part in the repository, its output shown as it comes; it may take `limit` seconds."""
    print(f"== {name}", flush=True)
    begin = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=limit,
                check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = 124
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.strip()]
    print("\n".join(lines[-80:]), flush=True)
    return Outcome(name, status == 0, round(time.monotonic() - begin), last_word(lines))


def last_word(lines: Sequence[str]) -> str:
    """The line that says how a program ended: an error, pytest's counts, an iteration, or the last one."""
    for telling in (r"^(\[rank \d+\] )?error: ", r"\d+ (passed|failed|error)", r"^\[\d+/\d+\] .* gap "):
        if found := [line for line in lines if re.search(telling, line)]:
            return found[-1].strip("= ")
    return lines[-1].strip() if lines else "no output"


def digest() -> str:
    """The SHA-256 of the lock."""
    return sha256(LOCK.read_bytes()).hexdigest()


def install(venv: Path) -> dict[str, str]:
    """Install the lock into `venv` unless it holds that lock, by uv if it is here; returns versions."""
    python, stamp = venv / "bin" / "python", venv / ".lock"
    if not stamp.exists() or stamp.read_text() != digest():
        print(f"installing {LOCK.name} into {venv}: 5 GB, minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        program = ["uv"] if shutil.which("uv") else [str(python), "-m"]
        command = [*program, "pip", "install", "--quiet", "--no-deps"]
        # Wheel folders and constraints of the machine must not take part.
        kept = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
        environment = kept | {"PIP_CONFIG_FILE": os.devnull, "VIRTUAL_ENV": str(venv)}
        for what in (("--require-hashes", "-r", str(LOCK)), ("--no-build-isolation", "-e", str(ROOT))):
            subprocess.run([*command, *what], check=True, env=environment)
        stamp.write_text(digest())
    program = (
        "import json; from gigpo_mega.telemetry.provenance import versions; "
        f"print(json.dumps(versions(*{SHOWN!r})))"
    )
    found = subprocess.run([str(python), "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def record(versions: Mapping[str, str], outcomes: Sequence[Outcome], before: Path) -> dict[str, object]:
    """What is kept: `outcomes`, and of the record `before` the other parts if they are of the same lock."""
    kept: dict[str, Any] = json.loads(before.read_text()) if before.exists() else {"lock": None}
    parts = {part["name"]: part for part in kept["parts"]} if kept["lock"] == digest() else {}
    parts |= {outcome.name: asdict(outcome) | {"commit": commit()} for outcome in outcomes}
    return {
        "benchmark": "cuda_set",
        "made_by": "python3.12 -m tools.cuda_set",
        "device": device_name(),
        "gpu": Machine().has_driver(),
        "lock": digest(),
        "versions": dict(versions),
        "parts": list(parts.values()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Install, run the parts, and write the record if all were run; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-cuda")
    parser.add_argument("--part", action="append", help="only this part; may be repeated")
    parser.add_argument("--limit", type=number(float), default=7200, help="seconds that a part may take")
    options = parser.parse_args(argv)
    versions = install(options.venv.absolute())
    with tempfile.TemporaryDirectory() as folder:
        commands = parts(options.venv.absolute() / "bin" / "python", Path(folder))
        chosen = options.part or list(commands)
        outcomes = [run(name, commands[name], options.limit) for name in chosen]
    for outcome in outcomes:
        print(
            f"{'ok' if outcome.ok else 'FAILED':7}{outcome.name:10}{outcome.seconds:6.0f} s  {outcome.said}"
        )
    RECORD.write_text(json.dumps(record(versions, outcomes, RECORD), indent=1) + "\n")
    return int(not all(outcome.ok for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
