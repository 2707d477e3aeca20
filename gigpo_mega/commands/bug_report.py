"""Print what a report of a bug needs: versions, machine, and of RUN_DIR the configuration and the last lines.

Nothing is sent. What looks like a password, token or key is replaced by ***, your home folder by ~ and this
host's name by HOST; observations and actions of episodes are left out. Read it before you post it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from gigpo_mega.errors import UserError
from gigpo_mega.stack import decide
from gigpo_mega.telemetry.provenance import commit, device_name, versions

PACKAGES = ("torch", "triton", "megatron-core", "sglang", "transformers", "tokenizers", "numpy", "pydantic",
            "ray", "transformer-engine", "sglang-kernel", "wandb", "mlflow-skinny")  # fmt: skip
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "PYTHONPATH",
             "TRITON_INTERPRET", "WANDB_MODE", "WORLD_SIZE")  # fmt: skip
LINES = 40
_NAME = r"[\w-]*(?:[_-]key|apikey|token|secret|passw(?:or)?d|passphrase|credential)s?['\"]?"
_LINE = re.compile(rf"^(\s*(?:- )?{_NAME}: +)[^\s'\"].*$", re.IGNORECASE | re.MULTILINE)  # bare words of YAML
_SECRET = re.compile(
    rf"({_NAME}\s*[:=]\s*|--{_NAME}[\s,=]+(?:- )?)" + r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,'"}\]]+)""",
    re.IGNORECASE,
)  # `name: value`, `--name value`, and both in lists
_PREFIXED = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[bp]-|AKIA|wandb_v1_)[\w-]{8,}")
_BEARER = re.compile(r"(?i)((?:bearer|authorization['\"]?\s*[:=]\s*['\"]?\w+)\s+)[\w.~+/-]{8,}=*")
_IN_URL = re.compile(r"(\w+://)[^/\s'\"]+@")
_COUNT = re.compile(r"(?i)[\w-]*tokens['\"]?\W+(?:\d[\d.e+-]*|null|auto)")  # max_total_tokens: 8192


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; raises UserError if RUN_DIR is no folder."""
    parser = argparse.ArgumentParser(prog="gigpo-mega bug-report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN_DIR", nargs="?", help="folder of the run that failed")
    options = parser.parse_args(argv)
    if options.run is not None and not options.run.is_dir():
        raise UserError(f"{options.run} is no folder; give that of the run, its `output`")
    print(redacted("\n".join(_machine())))
    if options.run is not None:
        print(redacted("\n".join(_run(options.run))))


def redacted(text: str) -> str:
    """`text` without what looks like a secret, and without the names of this person's home and host."""

    def hidden(found: re.Match[str]) -> str:
        quote = found[0][-1] if found[0][-1] in "'\"" else ""
        return found[0] if _COUNT.match(found[0]) else f"{found[1]}{quote}***{quote}"

    text = _BEARER.sub(r"\1***", _IN_URL.sub(r"\1***@", _PREFIXED.sub("***", text)))
    text = _SECRET.sub(hidden, _LINE.sub(hidden, text))
    home, host = str(Path.home()), socket.gethostname()
    text = text if len(home) < 2 else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)


def _machine() -> Iterator[str]:
    yield "```"
    yield f"commit: {commit()}"
    yield from (f"{name}: {version}" for name, version in versions("gigpo-mega", *PACKAGES).items())
    yield f"system: {platform.platform()}, {' '.join(platform.libc_ver())}"
    yield f"processor: {device_name()}"
    stack = decide()
    yield f"stack: {stack.name}, {stack.reason}"
    for name in VARIABLES:
        if name in os.environ:
            yield f"{name}: {os.environ[name]!r}"
    yield "```"


def _run(folder: Path) -> Iterator[str]:
    for name in ("config.yaml", "metrics.jsonl", *sorted(path.name for path in folder.glob("*.log*"))):
        if (folder / name).is_file():
            lines = 10**6 if name == "config.yaml" else 1 if name == "metrics.jsonl" else LINES
            with (folder / name).open(encoding="utf-8", errors="replace") as file:
                yield from (f"{name}:", "```", *(line.rstrip("\n") for line in deque(file, lines)), "```")
    held = sorted(path.relative_to(folder) for path in folder.glob("*/*") if "groups" not in path.parts)
    yield f"files: {', '.join(map(str, held))}"
