"""The WebShop environment: its text mode, the paper's reward, a step limit, an anchor state."""

from __future__ import annotations

import json
from typing import Literal

from envs.base import EnvError, Observation, Task, Transition
from envs.webshop.pages import SEPARATOR
from envs.webshop.session import Session
from envs.webshop.shop import ShopFiles, load_shop

SUCCESS_REWARD = 10.0  # the paper's scale (arXiv 2505.10978, section 5.1)
QUERY = "search[<your query>]"  # the admissible action that stands for any search


class WebShopEnvironment:
    """WebShop's text mode.

    An observation's text is the original's, its `state` the page after the instruction. With `anchor="state"`
    the state includes the chosen options, which the page does not show. With `reward="success"` (the paper's)
    a purchase of score 1 pays 10, with `reward="score"` any purchase pays 10 times its score.
    """

    def __init__(
        self,
        max_steps: int = 15,
        anchor: Literal["observation", "state"] = "observation",
        reward: Literal["success", "score"] = "success",
    ) -> None:
        if max_steps < 1:
            raise EnvError(f"environment.max_steps: {max_steps} is below 1; use the paper's 15")
        if anchor not in ("observation", "state"):
            raise EnvError(
                f"environment.options.anchor: unknown anchor {anchor!r}; known: observation, state"
            )
        if reward not in ("success", "score"):
            raise EnvError(
                f"environment.options.reward: unknown reward {reward!r}; known: success, score"
            )
        self.max_steps, self.anchor, self.reward = max_steps, anchor, reward
        self._session: Session | None = None
        self._steps = 0

    @property
    def session(self) -> Session:
        """The running episode; raises EnvError before the first reset."""
        if self._session is None:
            raise EnvError("WebShop: no episode is running; call reset first")
        return self._session

    def reset(self, task: Task) -> Observation:
        """Starts at the search page; raises EnvError if the task's shop cannot be loaded."""
        files, goal = read_source(task.source)
        shop = load_shop(files)
        if not 0 <= goal < len(shop.goals):
            raise EnvError(f"task {task.id}: no goal {goal} among {len(shop.goals)}")
        self._session, self._steps = Session(shop, shop.goals[goal]), 0
        return self._observation()

    def step(self, action: str) -> Transition:
        """Plays one action; one that is neither a search nor a possible click is not `valid`."""
        session = self.session
        if session.score is not None or self._steps >= self.max_steps:
            raise EnvError("WebShop: the episode is over; call reset")
        valid = session.act(action)
        self._steps += 1
        score = session.score.reward if session.score is not None else 0.0
        success = score == 1.0
        paid = SUCCESS_REWARD * (score if self.reward == "score" else success)
        done = session.score is not None or self._steps >= self.max_steps
        return Transition(self._observation(), paid, done, success, valid)

    def _observation(self) -> Observation:
        session = self.session
        page, instruction = session.page, session.goal.instruction
        clicks = tuple(f"click[{text}]" for text in page.clickables)
        state = shown(page.text, instruction)
        if self.anchor == "state" and session.options:
            state += f" chosen: {json.dumps(session.options, sort_keys=True)}"
        return Observation(page.text, (QUERY, *clicks) if page.search_bar else clicks, instruction, state)


def shown(text: str, instruction: str) -> str:
    """The page after the instruction, each part in quotes; the whole text if it has no instruction."""
    parts = text.split(SEPARATOR)
    if (stripped := instruction.strip()) not in parts:
        return text
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(stripped) + 1 :])


def write_source(files: ShopFiles, goal: int) -> str:
    """A task's source: the shop, and the index of the goal."""
    fields = {name: getattr(files, name) for name in ShopFiles.__slots__}
    return json.dumps({**fields, "goal": goal})


def read_source(source: str) -> tuple[ShopFiles, int]:
    """The inverse of write_source; raises EnvError for any other text."""
    try:
        fields = json.loads(source)
        goal = int(fields.pop("goal"))
        return ShopFiles(**fields), goal
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EnvError(
            f"WebShop: task.source {source[:80]!r} is not one of `WebShopTasks`; use its tasks"
        ) from None
