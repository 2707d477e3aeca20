"""The environment: a question, a search tool, one answer. Search-R1's protocol, as verl-agent plays it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from envs.base import EnvironmentError, Observation, Task, Transition
from envs.search.client import RemoteRetriever, RetrieverError
from envs.search.questions import Question
from envs.search.retrieval import Hit, Retriever, open_corpus
from envs.search.scoring import exact_match
from envs.search.tags import blocks

SUCCESS_REWARD = 1.0  # exact match, as the paper has it; nothing for form or for finding a passage
_QUERY_CHARACTERS = 1024  # what is sent of a longer query


class SearchEnvironment:
    """Answers `<search>query</search>` with passages in <information> tags, scores `<answer>..</answer>`.

    An episode ends with an answer or after `max_steps` actions. Only the agent's own last action is scored:
    what a passage says between answer tags counts for nothing. Passages come from `corpus`, a jsonl file
    indexed in this process, or from `retriever`, the keyword arguments of `RemoteRetriever`. `passage_words`
    cuts every passage that is shown; `wording` reference puts them into a JSON string as verl-agent does.
    """

    def __init__(
        self,
        corpus: str | None = None,
        retriever: Mapping[str, Any] | None = None,
        topk: int = 3,
        max_steps: int = 4,
        passage_words: int | None = None,
        wording: Literal["plain", "reference"] = "plain",
    ) -> None:
        if (corpus is None) == (retriever is None):
            raise EnvironmentError(
                "environment.options: give one of corpus (a jsonl file) and retriever ({url: ..})"
            )
        for name, value in (("topk", topk), ("max_steps", max_steps), ("passage_words", passage_words)):
            if value is not None and value < 1:
                raise EnvironmentError(f"environment.options.{name}: {value} is below 1")
        if wording not in ("plain", "reference"):
            raise EnvironmentError(
                f"environment.options.wording: unknown {wording!r}; known: plain, reference"
            )
        self.topk, self.max_steps, self.passage_words, self.wording = topk, max_steps, passage_words, wording
        self._corpus, self._remote = corpus, retriever
        self._question: Question | None = None
        self._done, self._steps = True, 0

    @cached_property
    def retriever(self) -> Retriever:
        """What finds the passages; opened at the first search."""
        if self._corpus is not None:
            return open_corpus(self._corpus)
        return RemoteRetriever(**self._remote or {})

    def reset(self, task: Task) -> Observation:
        """Asks the question in `task.source`; raises EnvironmentError where that is none."""
        self._question = Question.from_json(task.source)
        self._done, self._steps = False, 0
        return Observation(self._question.text, instruction=self._question.text)

    def step(self, action: str) -> Transition:
        """Takes one action; what is neither a search nor an answer is not `valid` and shows nothing.

        Raises EnvironmentError where the retriever cannot be reached.
        """
        if self._question is None or self._done:
            raise EnvironmentError("search: no episode is running; call reset first")
        self._steps += 1
        *_, answer = (None, *blocks(action, "answer"))
        query = next(blocks(action, "search"), None)
        self._done = answer is not None or self._steps >= self.max_steps
        success = answer is not None and exact_match(answer, self._question.golden)
        shown = ""
        if not self._done and query is not None:
            shown = self._information(query.strip()[:_QUERY_CHARACTERS])
        observation = Observation(shown, instruction=self._question.text)
        valid = answer is not None or query is not None
        return Transition(observation, SUCCESS_REWARD if success else 0.0, self._done, success, valid)

    def _information(self, query: str) -> str:
        if not query:
            return self._wrapped("No search results found.")
        try:
            hits = self.retriever.search([query.encode(errors="replace").decode()], self.topk)[0]
        except RetrieverError as error:
            raise EnvironmentError(str(error)) from None
        if not hits:
            return self._wrapped("No search results found.")
        return self._wrapped("".join(f"Doc {i}: {self._text(hit)}\n" for i, hit in enumerate(hits, start=1)))

    def _wrapped(self, found: str) -> str:
        if self.wording == "reference":
            found = json.dumps({"result": found})
        return f"<information>{found}</information>"

    def _text(self, hit: Hit) -> str:
        contents = hit.passage.contents.strip()
        if self.passage_words is None:
            return contents
        title, _, text = contents.partition("\n")
        return f"{title}\n{' '.join(text.split()[: self.passage_words])}".strip()
