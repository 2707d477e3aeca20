"""Which test files a change can reach, for `make check`: those that import a changed module, or what does.

A file that is no module (a recipe, a page) reaches the test files that name it, and ALWAYS.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALWAYS = ("tests/test_repository.py", "tests/test_release.py", "tests/test_configs.py", "tests/test_site.py")


def changed(root: Path = ROOT) -> set[str]:
    """Files that differ from the last commit, new ones too; raises CalledProcessError outside of git."""
    found: set[str] = set()
    for words in (("diff", "--name-only", "HEAD"), ("ls-files", "--others", "--exclude-standard")):
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found |= set(done.stdout.splitlines())
    return found


def reached(changes: Set[str], texts: Mapping[str, str]) -> set[str]:
    """The test files that `changes` can reach; `texts` are all Python files by path."""
    modules = {_module(path): path for path in texts}
    graph = {path: set(_imported(text, modules)) for path, text in texts.items()}
    waiting = [path for path in changes if path in texts]
    importers = {path: {other for other, below in graph.items() if path in below} for path in graph}
    found = set(waiting)
    while waiting:
        new = importers[waiting.pop()] - found
        found |= new
        waiting += new
    names = {Path(path).name for path in changes if path not in texts}
    found |= {path for path, text in texts.items() if any(name in text for name in names)}
    found |= set(ALWAYS) if changes else set()
    return {path for path in found if Path(path).name.startswith("test_")}


def selected() -> set[Path]:
    """The test files for `pytest --changed`; all of them if tests/conftest.py has changed."""
    paths = [path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith(".")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    changes = changed()
    if "tests/conftest.py" in changes:
        return set(paths)
    return {ROOT / path for path in reached(changes, texts)}


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(text: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The files of all imports, those inside functions too, and of the packages that hold them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
            yield from (modules[prefix] for prefix in prefixes if prefix in modules)
