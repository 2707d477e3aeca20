"""Questions: the content of a task's source, and the files that they are read from."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.base import EnvError, Task
from envs.records import Record, read_records, split_file
from envs.search.scoring import normalize


@dataclass(frozen=True, slots=True)
class Hop:
    """One lookup on the way to an answer: a query that finds the passage `title`."""

    query: str
    title: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question with all its accepted answers; `hops` is how an expert finds them, if that is known."""

    text: str
    golden: tuple[str, ...]
    kind: str = "unknown"
    hops: tuple[Hop, ...] = ()

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, source: str) -> Question:
        """The question in a task's source; raises EnvError if it is not one."""
        try:
            row = json.loads(source)
            hops = tuple(Hop(**hop) for hop in row.get("hops", ()))
            return cls(row["text"], tuple(row["golden"]), row.get("kind", "unknown"), hops)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnvError(f"search: task.source is not a question: {error!r}") from None

    @classmethod
    def from_record(cls, record: Record) -> Question:
        """The question in a record; raises EnvError, which names file and row, if it cannot be played."""
        try:
            asked = record.fields.get("env_kwargs") or record.fields
            truth = asked.get("ground_truth")
            golden = truth["target"] if truth else asked["golden_answers"]
            hops = tuple(Hop(**hop) for hop in asked.get("hops") or ())
            text, kind = asked["question"], str(asked.get("data_source") or "unknown")
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvError(
                f"{record.place}: a row needs env_kwargs = {{question, ground_truth: {{target}}}}: {error!r}"
            ) from None
        if not isinstance(text, str) or _blank(text):
            raise EnvError(f"{record.place}: question is {text!r:.80}; it must be text")
        if not all(isinstance(part, str) for hop in hops for part in (hop.query, hop.title)):
            raise EnvError(f"{record.place}: hops need a query and a title, both text")
        return cls(text, _golden(golden, record.place), kind, hops)


def _blank(text: str) -> bool:
    return not any(c.isprintable() and not c.isspace() for c in text)


def _golden(given: Any, place: str) -> tuple[str, ...]:
    """The accepted answers in a record: texts or numbers, one or several.

    Raises EnvError for any other value, and unless one of them can be matched: "The" and "?!" cannot.
    """
    if isinstance(given, str) and given.lstrip().startswith("["):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            given = ast.literal_eval(given.strip())  # a list that was written into a column of texts
    texts: list[str] = []
    for answer in given if isinstance(given, list | tuple) else [given]:
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)  # a column of integers some of which are missing
        number = isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
        if not number and not isinstance(answer, str):  # NaN is how pandas writes a missing value
            raise EnvError(f"{place}: answer is {answer!r:.80}; it must be text or a number")
        texts.append(str(answer))
    if all(_blank(normalize(text)) for text in texts):
        raise EnvError(
            f"{place}: answers are {given!r:.80}; at least one must not be empty without punctuation and "
            "articles, which exact match ignores"
        )
    return tuple(texts)


class SearchTasks:
    """The questions in the folder `data`, a file per split: `train.jsonl` or `train.parquet`, and so on.

    A record is verl-agent's `env_kwargs = {ground_truth: {target}, question, data_source}`, itself or under
    that key; or Search-R1's `question`, `golden_answers`, `data_source`. `kinds` selects data sources.
    """

    def __init__(self, data: str | Path, kinds: Sequence[str] = ()) -> None:
        self.data, self.kinds = Path(data), tuple(kinds)

    def tasks(self, split: str) -> list[Task]:
        """The tasks of a split, in the file's order; raises EnvError if a row or the file cannot be used."""
        file = split_file(self.data, split)
        asked = [Question.from_record(record) for record in read_records(file)]
        if not asked:
            raise EnvError(f"{file} holds no question; add rows")
        kept = [question for question in asked if not self.kinds or question.kind in self.kinds]
        if not kept:
            known = ", ".join(sorted({question.kind for question in asked}))
            raise EnvError(
                f"environment.tasks.kinds: none of {list(self.kinds)} is in {file}; known: {known}"
            )
        return [Task(f"{split}/{i}", question.kind, question.to_json()) for i, question in enumerate(kept)]


def write_questions(file: Path, questions: Iterable[Question]) -> None:
    """Write records that `SearchTasks` reads, in verl-agent's form plus the expert's hops."""
    with file.open("w", encoding="utf-8") as lines:
        for question in questions:
            row = {
                "question": question.text,
                "ground_truth": {"target": list(question.golden)},
                "data_source": question.kind,
                "hops": [asdict(hop) for hop in question.hops],
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
