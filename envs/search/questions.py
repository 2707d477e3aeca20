"""Questions: what a task's source holds, and the user's files they are read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError, Task
from envs.rows import read_rows, split_file


@dataclass(frozen=True, slots=True)
class Hop:
    """One look-up on the way to an answer: a query that finds the passage `title`."""

    query: str
    title: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question with all its accepted answers; `hops` is how an expert finds it out, where that is known."""

    text: str
    golden: tuple[str, ...]
    kind: str = "unknown"
    hops: tuple[Hop, ...] = ()

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, source: str) -> Question:
        """The question of a task's source; raises EnvironmentError where that is none."""
        try:
            row = json.loads(source)
            hops = tuple(Hop(**hop) for hop in row.get("hops", ()))
            return cls(row["text"], tuple(row["golden"]), row.get("kind", "unknown"), hops)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnvironmentError(f"search: task.source is no question: {error!r}") from None


class SearchTasks:
    """The questions in the folder `data`, a file per split: `train.jsonl` or `train.parquet`, and so on.

    A row is verl-agent's `env_kwargs = {ground_truth: {target}, question, data_source}`, as it is or under
    that key; or Search-R1's `question`, `golden_answers`, `data_source`. `kinds` keeps these data sources.
    """

    def __init__(self, data: str | Path, kinds: Sequence[str] = ()) -> None:
        self.data, self.kinds = Path(data), tuple(kinds)

    def tasks(self, split: str) -> list[Task]:
        """The tasks of a split, in the file's order; EnvironmentError where there is no such file."""
        file = split_file(self.data, split)
        asked = [question for row in read_rows(file) for question in [_question(row, file)]]
        kept = [question for question in asked if not self.kinds or question.kind in self.kinds]
        if not kept:
            known = ", ".join(sorted({question.kind for question in asked}))
            raise EnvironmentError(
                f"environment.tasks.kinds: none of {list(self.kinds)} is in {file}; known: {known}"
            )
        return [Task(f"{split}/{i}", question.kind, question.to_json()) for i, question in enumerate(kept)]


def write_questions(file: Path, questions: Iterable[Question]) -> None:
    """Write rows that `SearchTasks` reads, in verl-agent's form with the expert's hops beside it."""
    with file.open("w", encoding="utf-8") as lines:
        for question in questions:
            row = {
                "question": question.text,
                "ground_truth": {"target": list(question.golden)},
                "data_source": question.kind,
                "hops": [asdict(hop) for hop in question.hops],
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _question(row: Mapping[str, Any], file: Path) -> Question:
    try:
        asked = row.get("env_kwargs") or row
        truth = asked.get("ground_truth")
        golden = truth["target"] if truth else asked["golden_answers"]
        targets = (golden,) if isinstance(golden, str) else tuple(map(str, golden))
        hops = tuple(Hop(**hop) for hop in asked.get("hops") or ())
        return Question(asked["question"], targets, asked.get("data_source") or "unknown", hops)
    except (KeyError, TypeError, AttributeError) as error:
        raise EnvironmentError(
            f"{file}: a row needs env_kwargs = {{question, ground_truth: {{target}}}}: {error!r}"
        ) from None
