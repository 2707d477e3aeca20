"""docs/metrics.md names every metric that the package writes, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = "loss|optimizer|engine|update|rollout|advantage|anchor|memory|weights"
MADE_OF_PARTS = {"anchor/size_1", "anchor/size_2_3", "anchor/size_4_7", "anchor/size_8_plus"}


def test_the_page_names_every_metric_and_no_other() -> None:
    page = (ROOT / "docs/metrics.md").read_text().partition("## Names")[2]
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(rf"`((?:{SECTIONS})/\w+)`", cell)}
    source = "\n".join(path.read_text() for path in (ROOT / "gigpo_mega").rglob("*.py"))
    written = set(re.findall(rf'"((?:{SECTIONS})/\w+)"', source)) | MADE_OF_PARTS
    assert named - written == set()
    assert written - named - {"loss/action", "loss/action_tokens"} == set()  # of a cold start
