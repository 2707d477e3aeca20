"""Question files and corpora as people have them: a row is usable, or refused with file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from envs.base import EnvError
from envs.search.questions import Question, SearchTasks
from envs.search.retrieval import Bm25, read_corpus


def taken(folder: Path, data: bytes | str) -> list[Question]:
    """The questions of a train.jsonl with these bytes."""
    (folder / "train.jsonl").write_bytes(data if isinstance(data, bytes) else data.encode())
    return [Question.from_json(task.source) for task in SearchTasks(folder).tasks("train")]


GOOD = json.dumps({"question": "Who?", "golden_answers": ["Bob"]})


@pytest.mark.parametrize(
    "data",
    [
        GOOD + "\n\n",
        "\n \n" + GOOD,
        GOOD + "\r\n",
        b"\xef\xbb\xbf" + GOOD.encode(),
        json.dumps({"question": "Who?", "golden_answers": '["Bob"]', "data_source": None, "hops": None}),
    ],
)
def test_byte_order_marks_and_blank_lines_do_no_harm(tmp_path: Path, data: bytes | str) -> None:
    assert taken(tmp_path, data) == [Question("Who?", ("Bob",))]


@pytest.mark.parametrize(
    ("given", "golden"),
    [(1990, "1990"), (1990.0, "1990"), ([2.5], "2.5"), ("['Bob', 'Rob']", "Bob"), ("[sic] Bob", "[sic] Bob")],
)
def test_numbers_and_lists_written_as_text_are_answers(tmp_path: Path, given: object, golden: str) -> None:
    (question,) = taken(tmp_path, json.dumps({"question": "When?", "golden_answers": given}))
    assert question.golden[0] == golden


@pytest.mark.parametrize("text", ["Who wrote <i>Emma</i>?", "x" * 1_000_000, "\u8c01\uff1f"])
def test_html_long_and_foreign_questions_are_kept_as_they_are(tmp_path: Path, text: str) -> None:
    (question,) = taken(tmp_path, json.dumps({"question": text, "golden_answers": "Bob"}))
    assert question.text == text


BAD_QUESTIONS: dict[str, Any] = {
    "null": None, "empty": "", "blank": " \t\u200b", "list": ["a"], "number": 3, "NaN": math.nan,
}  # fmt: skip
BAD_ANSWERS: dict[str, Any] = {
    "none": [], "null": None, "a null": [None], "a null among others": ["Bob", None], "empty": "",
    "article": "The", "punctuation": ["?!", "..."], "NaN": math.nan, "inf": [math.inf], "bool": True,
    "nested": [["Bob"]], "object": {"a": "Bob"}, "an empty list as text": "[]", "invisible": "\u200b",
}  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [{"question": value, "golden_answers": ["x"]} for value in BAD_QUESTIONS.values()]
    + [{"question": "Who?", "golden_answers": value} for value in BAD_ANSWERS.values()]
    + [{"question": "Who?", "ground_truth": {"target": value}} for value in BAD_ANSWERS.values()]
    + [
        {"env_kwargs": "text"},
        {"env_kwargs": {"question": "Who?"}},
        {"question": "Who?", "ground_truth": "Bob"},
        {"question": "Who?", "golden_answers": "Bob", "hops": [{"query": "a"}]},
        {"question": "Who?", "golden_answers": "Bob", "hops": [{"query": None, "title": "a"}]},
        {"question": "Who?", "golden_answers": "Bob", "hops": "a"},
    ],
)
def test_a_row_that_cannot_be_played_is_refused_with_file_and_line(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(EnvError, match=r"train\.jsonl:3: [^\n]+$"):
        taken(tmp_path, f"{GOOD}\n\n{json.dumps(row)}\n{GOOD}")


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"question": "Zo\xeb?", "golden_answers": ["x"]}, ensure_ascii=False).encode("latin-1"),
        b"[" + GOOD.encode() + b"]",
        b"null",
        b'"Who?"',
        b"{'question': 'Who?'}",
        GOOD.encode()[:-3],
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_object_in_utf_8_is_refused_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(EnvError, match=r"train\.jsonl:2 is [^\n]+$"):
        taken(tmp_path, GOOD.encode() + b"\n" + line)
    (tmp_path / "corpus.jsonl").write_bytes(b'{"contents": "a"}\n' + line)
    with pytest.raises(EnvError, match=r"corpus\.jsonl:2 is [^\n]+$"):
        read_corpus(tmp_path / "corpus.jsonl")


def test_utf_16_and_an_empty_file_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"train\.jsonl:1 is not UTF-8"):
        taken(tmp_path, GOOD.encode("utf-16"))
    with pytest.raises(EnvError, match=r"train\.jsonl holds no question; add rows"):
        taken(tmp_path, "\n")


@pytest.mark.parametrize(
    "row",
    [{"contents": None}, {"contents": ["a"]}, {"title": None, "text": "a"}, {"title": "a", "text": 3}, {}],
)
def test_a_passage_without_text_is_refused_with_file_and_line(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "c.jsonl").write_text('{"contents": "a"}\n' + json.dumps(row))
    with pytest.raises(EnvError, match=r"c\.jsonl:2 needs a JSON object with `contents`.* not text$"):
        read_corpus(tmp_path / "c.jsonl")


def test_a_corpus_may_hold_html_long_and_wordless_passages_but_not_only_these(tmp_path: Path) -> None:
    texts = ["<p>France</p>", "\ufeff!!!", "word " * 200_000]
    rows = [{"contents": text, "id": None} for text in texts]
    file = tmp_path / "c.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode())
    index = Bm25(read_corpus(file))
    assert [hit.passage.id for hit in index.search(["france"], 3)[0]] == ["0"]
    file.write_text('{"contents": "!!!"}')
    with pytest.raises(EnvError, match="no passage of the corpus has a word in it"):
        Bm25(read_corpus(file))


def test_odd_parquet_is_read_or_refused_with_file_and_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "train.parquet"
    fine = {"question": ["a?", "b?"], "golden_answers": [[1990], [2]], "extra": [None, {"x": 1.5}]}
    parquet.write_table(pyarrow.table(fine), file)
    tasks = SearchTasks(tmp_path).tasks("train")
    assert [Question.from_json(task.source).golden for task in tasks] == [("1990",), ("2",)]
    for column in ({"question": ["a?", None]}, *({"golden_answers": [["x"], none]} for none in ([], None))):
        parquet.write_table(pyarrow.table(fine | column), file)
        with pytest.raises(EnvError, match=r"train\.parquet: row 2: "):
            SearchTasks(tmp_path).tasks("train")
    parquet.write_table(pyarrow.table({"prompt": ["a?"], "reward_model": [{"ground_truth": "x"}]}), file)
    with pytest.raises(EnvError, match=r"train\.parquet: row 1: a row needs env_kwargs"):
        SearchTasks(tmp_path).tasks("train")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(EnvError, match=r"train\.parquet cannot be read as parquet"):
        SearchTasks(tmp_path).tasks("train")
