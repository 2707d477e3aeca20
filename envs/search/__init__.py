"""Search QA: questions answered with a search tool (Search-R1's protocol), and a retrieval server."""

from __future__ import annotations

from envs.base import EnvironmentKind
from envs.search.dialogue import DIALOGUES
from envs.search.environment import SearchEnvironment
from envs.search.expert import demonstrate
from envs.search.questions import SearchTasks
from envs.search.sources import task_source

COLUMNS = {
    "nq": "NQ",
    "triviaqa": "TriviaQA",
    "popqa": "PopQA",
    "hotpotqa": "HotpotQA",
    "2wikimultihopqa": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
}  # Search-R1's data sources under the paper's names, in its order

KIND = EnvironmentKind(SearchEnvironment, task_source, demonstrate, DIALOGUES, COLUMNS)

__all__ = ["COLUMNS", "KIND", "SearchEnvironment", "SearchTasks", "demonstrate", "task_source"]
