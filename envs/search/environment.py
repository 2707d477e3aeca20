"""The search environment: a question, a search tool, one answer. Search-R1's protocol, as in verl-agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from envs.base import EnvError, EnvUnavailable, Observation, Task, Transition
from envs.registry import check_options
from envs.search.client import RemoteRetriever, RetrieverError
from envs.search.questions import Question
from envs.search.retrieval import Retriever, open_corpus
from envs.search.scoring import exact_match
from envs.search.tags import blocks

SUCCESS_REWARD = 1.0  # exact match, as in the paper; no reward for format or for finding a passage
_QUERY_CHARACTERS = 1024  # a longer query is cut


class SearchEnvironment:
    """Answers `<search>query</search>` with passages in <information> tags, scores `<answer>..</answer>`.

    An episode ends with an answer or after `max_steps` actions. Only the agent's own last action is scored;
    answer tags inside a passage are ignored. Passages come from `corpus`, a jsonl file indexed in this
    process, or from `retriever`, the keyword arguments of `RemoteRetriever`. `passage_words` cuts every
    passage that is shown; `wording` reference puts them into a JSON string as verl-agent does.
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
            raise EnvError(
                "environment.options: give one of corpus (a jsonl file) and retriever ({url: ..})"
            )
        limits = {"options.topk": topk, "max_steps": max_steps, "options.passage_words": passage_words}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise EnvError(f"environment.{name}: {value} is below 1; set it to 1 or more")
        if wording not in ("plain", "reference"):
            raise EnvError(
                f"environment.options.wording: unknown {wording!r}; known: plain, reference"
            )
        self.topk, self.max_steps, self.passage_words, self.wording = topk, max_steps, passage_words, wording
        if retriever is not None:
            check_options(RemoteRetriever, retriever, "environment.options.retriever", "search")
        self._corpus = corpus
        self._remote = None if retriever is None else RemoteRetriever(**retriever)
        self._question: Question | None = None
        self._done, self._steps = True, 0

    @cached_property
    def retriever(self) -> Retriever:
        """The retriever; a corpus is indexed at the first reset."""
        return self._remote or open_corpus(str(self._corpus))

    def reset(self, task: Task) -> Observation:
        """Asks the question in `task.source`; raises EnvError if that, or the corpus, cannot be used."""
        self._question = Question.from_json(task.source)
        _ = self.retriever  # a corpus is read now, so that a damaged one ends no episode half-way
        self._done, self._steps = False, 0
        return Observation(self._question.text, instruction=self._question.text)

    def step(self, action: str) -> Transition:
        """Takes one action; one that is neither a search nor an answer is not `valid` and returns no text.

        Raises EnvUnavailable if the retriever cannot be reached.
        """
        if self._question is None or self._done:
            raise EnvError("search: no episode is running; call reset first")
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
        try:
            sendable = query.encode(errors="replace").decode()
            hits = self.retriever.search([sendable], self.topk)[0] if query else []
        except RetrieverError as error:
            raise EnvUnavailable(str(error)) from None
        found = "" if hits else "No search results found."
        for i, hit in enumerate(hits, start=1):
            contents = hit.passage.contents.strip()
            if self.passage_words is not None:
                title, _, text = contents.partition("\n")
                contents = f"{title}\n{' '.join(text.split()[: self.passage_words])}".strip()
            found += f"Doc {i}: {contents}\n"
        if self.wording == "reference":
            found = json.dumps({"result": found})
        return f"<information>{found}</information>"
