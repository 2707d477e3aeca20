"""A folder of questions and passages, as the environment and its task source read it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from envs.search.questions import Question, write_questions
from envs.search.retrieval import Passage


def write_folder(
    folder: Path,
    corpus: Iterable[Passage],
    questions: Mapping[str, Iterable[Question]],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes corpus.jsonl, a file of questions for each split and `notes` by name; complete or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "corpus.jsonl").open("w", encoding="utf-8") as lines:
        for passage in corpus:
            row = {"id": passage.id, "contents": passage.contents}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    for split, asked in questions.items():
        write_questions(partial / f"{split}.jsonl", asked)
    for name, text in (notes or {}).items():
        (partial / name).write_text(text, encoding="utf-8")
    os.replace(partial, folder)
