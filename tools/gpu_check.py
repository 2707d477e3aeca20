"""Everything that only a GPU can show, in one command of less than ten minutes: `python tools/gpu_check.py`.

Runs the tests that mean a GPU, the kernel benchmarks beside the installed peers, and the learner's
throughput, each within its own time and whatever becomes of the others; writes
docs/benchmarks/gpu_check_<device>.json and ends with one line for each part, which says what is missing where
something is. Status 0 if all was done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "benchmarks"
Status = Literal["ok", "failed", "timeout", "missing"]
_ABSENT = re.compile(r"No module named '?([\w.]+)|needs ([\w.]+), which is not installed")


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    budget: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part; `result` is the JSON object of its last line, if it ended in one."""

    name: str
    status: Status
    seconds: float
    message: str
    result: dict[str, Any] | None = None


def parts(output: Path, quick: bool) -> list[Part]:
    """All together stay below ten minutes."""
    python = sys.executable
    tests = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _means_a_gpu(path)]
    pytest = (python, "-m", "pytest", "-m", "gpu or interpret", "--tb=short",
              "--continue-on-collection-errors")  # fmt: skip
    kernels = (python, "tools/bench_kernels.py", "--output", str(output), *("--quick",) * quick)
    return [
        Part("tests", (*pytest, *tests), 180),
        Part("kernels", kernels, 270),
        Part("learner", (python, "tools/bench_learner.py", "--json"), 120),
    ]


def _means_a_gpu(path: Path) -> bool:
    """Kernel tests run in Triton's interpreter only where there is no GPU."""
    return bool(re.search(r"mark\.(gpu|interpret)\b", path.read_text()))


def run(part: Part) -> Outcome:
    """Run `part`, showing its output as it comes; kills it with all it started when its time is over."""
    print(f"== {part.name}, at most {part.budget:.0f} s", flush=True)
    begin = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()}
    process = subprocess.Popen(part.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    try:
        output, _ = process.communicate(timeout=part.budget)
        late = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        late = True
    seconds = time.monotonic() - begin
    lines = [line for line in output.splitlines() if line.strip()]
    result = _last_object(lines)
    for line in lines[-60:] if result is None else lines[-60:-1]:
        print(line)
    if late:
        return Outcome(part.name, "timeout", seconds, f"not done after {part.budget:.0f} s", result)
    return Outcome(part.name, *_verdict(process.returncode, lines, seconds, result))


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


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
        return "ok", seconds, said[-1].strip("= ") if said else "done", result
    absent = next((found for line in reversed(lines) if (found := _ABSENT.search(line))), None)
    if absent is not None:
        return "missing", seconds, f"{absent[1] or absent[2]} is not installed", result
    return "failed", seconds, f"status {code}: {lines[-1] if lines else 'no output'}", result


def machine() -> dict[str, Any]:
    """The GPU and what is installed, asked of a process of its own: a broken driver loses nothing else."""
    program = (
        "import json, sys, torch\n"
        "from tools.kernel_bench.record import commit, device_name, installed\n"
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "print(json.dumps({'device': device_name(device), 'cuda': torch.version.cuda, 'kind': device.type,\n"
        "                  'python': sys.version.split()[0], 'commit': commit(),"
        " 'packages': dict(installed())}))\n"
    )
    found = run(Part("machine", (sys.executable, "-c", program), 60))
    return found.result or {"device": "unknown", "kind": "unknown", "why": found.message}


def main() -> int:
    """Run the parts, write the record, print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=[p.name for p in parts(FOLDER, False)],
                        help="only this one; may be repeated")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="all shapes of the kernel benchmarks")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the records")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    here = machine()
    chosen = [p for p in parts(options.output, not options.full) if p.name in (options.part or [p.name])]
    outcomes = [run(part) for part in chosen]
    record = {"benchmark": "gpu_check", **here, "parts": [asdict(outcome) for outcome in outcomes]}
    slug = "cpu" if here["kind"] == "cpu" else re.sub(r"[^a-z0-9]+", "_", here["device"].lower())
    (options.output / f"gpu_check_{slug}.json").write_text(json.dumps(record, indent=1) + "\n")
    without = "" if here["kind"] == "cuda" else ": NO CUDA DEVICE, all GPU figures stay open"
    print(f"\n{here['device']}{without}")
    for outcome in outcomes:
        print(f"{outcome.status:8s} {outcome.name:8s} {outcome.seconds:5.0f} s  {outcome.message}")
    return int(any(outcome.status != "ok" for outcome in outcomes) or here["kind"] != "cuda")


if __name__ == "__main__":
    sys.exit(main())
