"""Made-up people: questions can be looked up, splits share no passage, the same seed gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.search import demonstrate, task_source
from envs.search.generate import generate
from envs.search.questions import Question
from envs.search.retrieval import open_corpus


def test_every_question_is_answered_by_looking_its_hops_up(tmp_path: Path) -> None:
    source = task_source(str(tmp_path / "data"), generate={"people": 60, "seed": 1})
    train, test = (source.tasks(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (48 * 4, 12 * 4)
    assert {task.kind for task in test} == {"person", "teacher"}
    options = {"corpus": str(tmp_path / "data" / "corpus.jsonl"), "topk": 1}
    for i, task in enumerate([*test, *train]):
        played = demonstrate(task, seed=i, options=options)
        assert (played.success, len(played.turns)) == (True, 2 + (task.kind == "teacher"))


def test_no_passage_serves_both_splits(tmp_path: Path) -> None:
    generate(tmp_path / "data", people=200, seed=3)
    source = task_source(str(tmp_path / "data"))
    needed = [
        {hop.title for task in source.tasks(split) for hop in Question.from_json(task.source).hops}
        for split in ("train", "test")
    ]
    assert not needed[0] & needed[1]
    assert (len(needed[0]), len(needed[1])) == (160, 40)
    found = open_corpus(str(tmp_path / "data" / "corpus.jsonl")).search(sorted(needed[1]), topk=1)
    assert [hits[0].passage.title for hits in found] == sorted(needed[1])


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, people=30, seed=seed)
    read = [
        [(tmp_path / n / f).read_bytes() for f in ("corpus.jsonl", "train.jsonl", "test.jsonl")]
        for n in "abc"
    ]
    assert read[0] == read[1] != read[2]
    assert json.loads(read[0][0].split(b"\n")[0])["contents"].count("\n") == 1


def test_impossible_numbers_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with pytest.raises(EnvError, match=r"people: 5 is not in 20\.\.1600"):
        task_source(data, generate={"people": 5})
    with pytest.raises(EnvError, match=r"environment\.tasks\.generate\.size; known: people, seed"):
        task_source(data, generate={"size": 5})
    with pytest.raises(EnvError, match="one of offline and generate"):
        task_source(data, offline=True, generate={"people": 50})
    assert not Path(data).exists()
