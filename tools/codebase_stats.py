"""Numbers about the code itself: `python tools/codebase_stats.py [--json] [--save FILE] [--no-start-up]`.

Sizes of files and functions, the shares of private functions and of private functions that one place refers
to, import cycles over all three packages, and what every program loads before it answers `--help`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gigpo_mega.program import COMMANDS, run_main
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gigpo_mega", "kernels", "envs")
FOLDERS = (*PACKAGES, "tools", "tests")
HEAVY = ("torch", "megatron", "sglang", "transformers", "triton", "ray", "matplotlib", "scipy", "spacy")
TOOLS = [path for path in sorted((ROOT / "tools").glob("*.py")) if "__main__" in path.read_text()]
PROGRAMS = (
    *(("-m", f"gigpo_mega.{name}") for name in ("train", "evaluate", "coldstart", "quickstart")),
    *((f"tools/{tool.name}",) for tool in TOOLS),
    *(("-m", "gigpo_mega", name) for name in ("", *COMMANDS)),
)
# Runs `KIND NAME [COMMAND] --help` and prints the number of modules and the heavy ones among them.
PROBE = """
import runpy, sys
from contextlib import redirect_stdout
from io import StringIO
kind, name, *command = sys.argv[1:]
sys.argv = [name, *filter(None, command), "--help"]
try:
    with redirect_stdout(StringIO()):
        (runpy.run_module if kind == "-m" else runpy.run_path)(name, run_name="__main__")
except SystemExit as exit:
    assert not exit.code, exit.code
print(len(sys.modules), *(name for name in {heavy!r} if name in sys.modules))
"""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    path: Path
    tree: ast.Module
    lines: int

    @property
    def name(self) -> str:
        """Its dotted name."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def folder(self) -> str:
        """The package, or other top-level folder, that holds it."""
        return self.name.split(".")[0]

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods in it, nested ones too."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def main() -> None:
    """Print the numbers, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--no-start-up", action="store_true", help="do not run the programs")
    given = options.parse_args()
    found = measure(start_up=not given.no_start_up)
    for section, values in found.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:<34} {value}")
    publish({**provenance(), **found}, given)


def measure(start_up: bool = True) -> dict[str, dict[str, Any]]:
    """All numbers; with `start_up`, each `--help` runs once to warm the caches and once to be timed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    modules = [read(ROOT / name) for name in sorted(set(listed)) if (ROOT / name).exists()]
    ours = [module for module in modules if module.folder in PACKAGES]
    found: dict[str, dict[str, Any]] = {
        "lines of code": {name: sum(m.lines for m in modules if m.folder == name) for name in FOLDERS},
        "packages": sizes(ours) | private_functions(ours) | import_cycles(ours),
    }
    if start_up:
        found["--help: seconds, modules, heavy"] = {
            " ".join(program).strip(): time_help(program) for program in PROGRAMS if exists(program)
        }
    return found


def read(path: Path) -> Module:
    """Parse one source file."""
    text = path.read_text(encoding="utf-8")
    return Module(path, ast.parse(text), len(text.splitlines()))


def sizes(modules: list[Module]) -> dict[str, Any]:
    """Numbers and lengths of files and functions."""
    functions = [(f.end_lineno or f.lineno) - f.lineno + 1 for m in modules for f in m.functions]
    files = [module.lines for module in modules if module.lines]
    return {
        "files": len(files),
        "file lines: median, p90, largest": spread(files),
        "functions": len(functions),
        "function lines: median, p90, largest": spread(functions),
    }


def spread(values: list[int]) -> str:
    """Median, 90% quantile and largest value."""
    p90 = quantiles(values, n=10, method="inclusive")[-1]  # of the values that are there, never above them
    return f"{median(values):g} / {p90:.0f} / {max(values)}"


def private_functions(modules: list[Module]) -> dict[str, str]:
    """Shares of all functions: private ones, and private ones that one place of the module refers to."""
    total = private = once = 0
    for module in modules:
        # Every name and attribute that the module refers to.
        uses = Counter(
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Name | ast.Attribute)
        )
        for function in module.functions:
            total += 1
            if function.name.startswith("_") and not function.name.endswith("__"):
                private += 1
                once += uses[function.name] == 1
    return {
        "private functions": f"{private} ({private / total:.1%} of all)",
        "private functions used once": f"{once} ({once / total:.1%} of all)",
    }


def import_cycles(modules: list[Module]) -> dict[str, str]:
    """Groups of modules that import each other as they load (imports inside functions do not count)."""
    names = {module.name for module in modules}
    graph = {module.name: set(imports(module, names)) - {module.name} for module in modules}
    reach: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        reach[name] = seen
    cycles = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return {"import cycles": f"{len(cycles)} {sorted(cycles) or ''}".strip()}


def imports(module: Module, names: set[str]) -> Iterator[str]:
    """Those of `names` that the module imports at its top level."""
    for node in module.tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield node.module


def exists(program: tuple[str, ...]) -> bool:
    """Whether this checkout has the program, so that older ones can be measured too."""
    name = program[1].replace(".", "/") if program[0] == "-m" else program[0].removesuffix(".py")
    return any((ROOT / f"{name}{suffix}").exists() for suffix in (".py", "/__main__.py"))


def time_help(program: tuple[str, ...]) -> str:
    """Seconds of a process that prints `--help`, the number of modules it loads, and the heavy ones."""
    arguments = program if program[0] == "-m" else ("", *program)
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, *heavy = done.stdout.split()
    return f"{time.perf_counter() - start:.2f} s, {count}, {' '.join(heavy) or 'none'}"


if __name__ == "__main__":
    run_main(main)
