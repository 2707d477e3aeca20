"""The environment an agent plays: WebShop's text mode, the paper's reward, a step limit, an anchor state."""

from __future__ import annotations

import json
from typing import Literal

from envs.base import EnvironmentError, Observation, Task, Transition
from envs.webshop.pages import SEPARATOR
from envs.webshop.session import Session
from envs.webshop.shop import ShopFiles, load_shop

SUCCESS_REWARD = 10.0  # the paper's scale (arXiv 2505.10978, section 5.1)
QUERY = "search[<your query>]"  # how a page with a search bar is listed among the actions


class WebShopEnvironment:
    """WebShop's text mode, natively.

    An observation's text is the original's, its `state` the page after the instruction. With `anchor="state"`
    the state holds the chosen options too, which the page does not show. `reward="success"` pays 10 for a
    purchase of score 1 and nothing else, as the paper does; `reward="score"` pays 10 times the score.
    """

    def __init__(
        self,
        max_steps: int = 15,
        anchor: Literal["observation", "state"] = "observation",
        reward: Literal["success", "score"] = "success",
    ) -> None:
        if max_steps < 1:
            raise EnvironmentError(f"environment.max_steps: {max_steps} is below 1; use the paper's 15")
        if anchor not in ("observation", "state"):
            raise EnvironmentError(
                f"environment.options.anchor: unknown anchor {anchor!r}; known: observation, state"
            )
        if reward not in ("success", "score"):
            raise EnvironmentError(
                f"environment.options.reward: unknown reward {reward!r}; known: success, score"
            )
        self.max_steps, self.anchor, self.reward = max_steps, anchor, reward
        self._session: Session | None = None
        self._steps = 0

    @property
    def session(self) -> Session:
        """The visit under way; raises EnvironmentError before the first reset."""
        if self._session is None:
            raise EnvironmentError("WebShop: no episode is running; call reset first")
        return self._session

    def reset(self, task: Task) -> Observation:
        """Starts at the search page; raises EnvironmentError where the task's shop cannot be loaded."""
        files, goal = read_source(task.source)
        shop = load_shop(files)
        if not 0 <= goal < len(shop.goals):
            raise EnvironmentError(f"task {task.id}: no goal {goal} among {len(shop.goals)}")
        self._session, self._steps = Session(shop, shop.goals[goal]), 0
        return self._observation()

    def step(self, action: str) -> Transition:
        """Does one action; one that is neither a search nor a click on the page is not `valid`."""
        session = self.session
        if session.score is not None or self._steps >= self.max_steps:
            raise EnvironmentError("WebShop: the episode is over; call reset")
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
    """The page after the instruction, each part in quotes; the whole text where it has no instruction."""
    parts = text.split(SEPARATOR)
    told = instruction.strip()
    if told not in parts:
        return text
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(told) + 1 :])


def write_source(files: ShopFiles, goal: int) -> str:
    """A task's source: which shop, and which of its goals."""
    fields = {name: getattr(files, name) for name in ShopFiles.__slots__}
    return json.dumps({**fields, "goal": goal})


def read_source(source: str) -> tuple[ShopFiles, int]:
    """The inverse of write_source; raises EnvironmentError for any other text."""
    try:
        fields = json.loads(source)
        goal = int(fields.pop("goal"))
        return ShopFiles(**fields), goal
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EnvironmentError(
            f"WebShop: {source[:80]!r} is no task's source; tasks come from the task source"
        ) from None
