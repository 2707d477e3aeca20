"""Updates of a policy with a large head, one JSON line each: by backend, tied or not, overlapped or not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tools.bench.step_memory import Backend, update


def main() -> None:
    """Print every case."""
    cases: list[tuple[Backend, bool, bool]] = [
        ("reference", True, False), ("reference", False, False),
        ("chunked", True, True), ("chunked", False, False), ("chunked", False, True),
    ]  # fmt: skip
    for backend, tied, overlap in cases:
        found = update(backend, rows=4, vocab=8192, hidden=16, tied=tied, overlap=overlap)
        sys.stdout.write(f"RESULT {json.dumps(asdict(found) | {'tied': tied, 'overlap': overlap})}\n")


if __name__ == "__main__":
    main()
