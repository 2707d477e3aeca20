"""What a first run on a GPU depends on, in less than ten minutes: `python tools/gpu_check.py`.

| part | what must hold, what is measured |
|---|---|
| engine | a server starts and takes the learner's weights twice; the log-prob gap of 64 rows after each |
| iteration | two iterations of a run on random weights of Qwen2.5-0.5B's shape; seconds by stage |
| layers | Transformer Engine's bfloat16 is at most twice as far from float32 as ours: log-probs, gradients |
| checkpoint | an update after saving and loading has the same bits; seconds and bytes |
| repeat | two runs of scoring and an update have the same bits |
| kernels | every kernel and its installed peers (`--full` takes all shapes) |
| learner | tokens per second and MFU at the shapes of Qwen2.5-1.5B, and of six layers of 7B |
| tests | the tests that need a GPU |

Each part is a process of its own that ends at its own limit, whatever became of the others. After each one
the record OUTPUT/gpu_check_<device>.json is written. It ends with one line a part, which names a missing
package if there is one. The exit status is 0 if every part succeeded on a GPU. `--small` takes a narrow
policy, and leaves out the tests: without a GPU that takes a minute or two.

`--learn 20` does none of this, but trains SmolLM2-135M for 20 minutes (`tools/gpu/learn.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gigpo_mega.arguments import number
from gigpo_mega.telemetry.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "benchmarks"
Status = Literal["ok", "failed", "timeout", "missing"]
_ABSENT = re.compile(r"No module named '?([\w.]+)")
_OWN = {"engine": 140, "iteration": 90, "layers": 40, "checkpoint": 40, "repeat": 30}  # seconds


@dataclass(frozen=True, slots=True)
class Part:
    """A command and its time limit."""

    name: str
    command: tuple[str, ...]
    budget: float  # seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a part; `result` is the JSON object in its last line, if there is one."""

    name: str
    status: Status
    seconds: float
    message: str
    result: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.status:8s} {self.name:12s} {self.seconds:5.0f} s  {self.message}"


def parts(output: Path, small: bool = False, full: bool = False) -> list[Part]:
    """The parts, what is most likely to fail first; together they take less than ten minutes."""
    python = sys.executable
    shapes = {"learner-1.5b": ("--model", "qwen2.5-1.5b"),
              "learner-7b": ("--model", "qwen2.5-7b", "--layers", "6")}  # fmt: skip
    learner = (python, "tools/bench_learner.py", "--json", "--updates", "3")
    kernels = (python, "tools/bench_kernels.py", "--output", str(output), *("--quick",) * (not full))
    own = [
        Part(name, (python, "-m", "tools.gpu", name, *("--small",) * small), budget)
        for name, budget in _OWN.items()
    ]
    if small:
        return [*own, Part("kernels", kernels, 100), Part("learner", learner, 35)]
    return [
        *own,
        Part("kernels", kernels, 100),
        *(Part(name, (*learner, *shape), 35) for name, shape in shapes.items()),
        Part("tests", _tests(python), 60),
    ]


def learning(minutes: float, output: Path) -> Part:
    """Cold start, GiGPO and GRPO in `minutes`, and in ten more what comes on top."""
    given = ("--minutes", f"{minutes:g}", "--output", str(output))
    return Part("learn", (sys.executable, "-m", "tools.gpu.learn", *given), 60 * minutes + 600)


def _tests(python: str) -> tuple[str, ...]:
    """pytest on the files that have tests for a GPU; kernel tests run in Triton's interpreter without one."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    chosen = [str(path) for path in files if re.search(r"mark\.(gpu|interpret)\b", path.read_text())]
    options = ("-m", "gpu or interpret", "--tb=short", "--continue-on-collection-errors")
    return python, "-m", "pytest", *options, *chosen


def run(part: Part) -> Outcome:
    """Run `part` and print its output as it comes; kills its whole process group after its time limit."""
    print(f"== {part.name}, limit {part.budget:.0f} s", flush=True)
    begin = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    late = threading.Event()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    alone: dict[str, Any] = {"cwd": ROOT, "env": environment, "start_new_session": True}
    with subprocess.Popen(part.command, **pipes, **alone) as process:
        limit = threading.Timer(part.budget, _kill, (process.pid, late))
        limit.start()
        lines = list(_shown(process.stdout or []))
        process.wait()
        limit.cancel()
    seconds, result = time.monotonic() - begin, _last_object(lines)
    if late.is_set():
        return Outcome(part.name, "timeout", seconds, f"not done after {part.budget:.0f} s", result)
    return Outcome(part.name, *_verdict(process.returncode, lines, seconds, result))


def _kill(group: int, late: threading.Event) -> None:
    late.set()
    os.killpg(group, signal.SIGKILL)


def _shown(output: Iterator[str] | Sequence[str]) -> Iterator[str]:
    """The lines of `output` that are not blank, each printed when it comes."""
    for line in output:
        if line.strip():
            print(line.rstrip(), flush=True)
            yield line.rstrip()


def _last_object(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _verdict(
    code: int, lines: Sequence[str], seconds: float, result: dict[str, Any] | None
) -> tuple[Status, float, str, dict[str, Any] | None]:
    if code == 0:
        said = [line for line in lines if re.search(r"\d+ (passed|skipped)", line)]
        return "ok", seconds, said[-1].strip("= ") if said else _numbers(result), result
    absent = next((found for line in reversed(lines) if (found := _ABSENT.search(line))), None)
    if absent is not None:
        return "missing", seconds, f"{absent[1]} is not installed", result
    return "failed", seconds, f"status {code}: {lines[-1] if lines else 'no output'}", result


def _numbers(result: dict[str, Any] | None) -> str:
    """The numbers at the top of a result, in a line."""
    found = {name: value for name, value in (result or {}).items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items()) or "done"


def machine() -> dict[str, Any]:
    """The GPU and the installed packages, from a separate process, as a broken driver may crash it."""
    program = (
        "import json, torch\n"
        "from gigpo_mega.telemetry.provenance import device_name, versions\n"
        "from kernels.bench import PACKAGES\n"
        "kind = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "print(json.dumps({'device': device_name(kind), 'cuda': torch.version.cuda, 'kind': kind,\n"
        "                  'versions': versions(*PACKAGES)}))\n"
    )
    found = run(Part("machine", (sys.executable, "-c", program), 60))
    return found.result or {"device": "unknown", "kind": "unknown", "why": found.message}


def main() -> int:
    """Run the parts, write the record after each, and print one line for each part."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    names = list(dict.fromkeys(p.name for small in (False, True) for p in parts(FOLDER, small)))
    parser.add_argument("--part", action="append", choices=names, help="only this; may be repeated")
    parser.add_argument("--small", action="store_true", help="a narrow policy, and no tests")
    parser.add_argument("--full", action="store_true", help="benchmark all shapes of the kernels")
    minutes = number(float, 0.1)
    parser.add_argument(
        "--learn", type=minutes, metavar="MINUTES", help="only train SmolLM2-135M for so long"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the records")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.learn is not None:
        learned = run(learning(options.learn, options.output.absolute()))
        print(learned)
        return int(learned.status != "ok")
    made, here = provenance(), machine()
    slug = "cpu" if here["kind"] == "cpu" else re.sub(r"[^a-z0-9]+", "_", here["device"].lower())
    file, outcomes = options.output / f"gpu_check_{slug}.json", list[Outcome]()
    for part in parts(options.output, options.small, options.full):
        if part.name not in (options.part or [part.name]):
            continue
        outcomes.append(run(part))
        print(outcomes[-1], flush=True)
        record = {"benchmark": "gpu_check", **made, **here, "parts": [asdict(found) for found in outcomes]}
        file.write_text(json.dumps(record, indent=1) + "\n")
    without = "" if here["kind"] == "cuda" else ": NO CUDA DEVICE, no GPU figure was measured"
    print(f"\n{here['device']}{without}")
    for outcome in outcomes:
        print(outcome)
    return int(any(outcome.status != "ok" for outcome in outcomes) or here["kind"] != "cuda")


if __name__ == "__main__":
    sys.exit(main())
