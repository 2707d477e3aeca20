"""Writes a folder of questions and passages that the environment and its task source read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from envs.files import new_folder
from envs.search.questions import Question, write_questions
from envs.search.retrieval import Passage


def write_folder(
    folder: Path,
    corpus: Iterable[Passage],
    questions: Mapping[str, Iterable[Question]],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes corpus.jsonl, one file of questions per split and `notes` (name -> text).

    The folder is made by `envs.files.new_folder`.
    """
    with new_folder(folder) as partial:
        with (partial / "corpus.jsonl").open("w", encoding="utf-8") as lines:
            for passage in corpus:
                row = {"id": passage.id, "contents": passage.contents}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        for split, asked in questions.items():
            write_questions(partial / f"{split}.jsonl", asked)
        for name, text in (notes or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
