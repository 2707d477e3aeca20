"""GiGPO for LLM agents on megatron-core and SGLang; the same code runs on a laptop."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def _refuse_shadowed_packages() -> None:
    """Stop if something else is imported in place of the packages `envs` and `kernels` beside this one.

    Their names are common: an `envs.py` in the working directory comes first for `python -m`. Raises
    ImportError, or exits with one line if the package is being run as a program.
    """
    for name in ("envs", "kernels"):
        ours = Path(__file__).resolve().parents[1] / name / "__init__.py"
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != ours:
            message = (
                f"gigpo-mega needs its own package {name!r} ({ours.parent}), but {found or 'nothing'} is "
                f"imported by that name; rename it or run from another directory"
            )
            if sys.argv[:1] == ["-m"]:  # what runpy leaves there while it imports a program's package
                sys.stderr.write(f"error: {message}\n")
                raise SystemExit(2)
            raise ImportError(message)


_refuse_shadowed_packages()
