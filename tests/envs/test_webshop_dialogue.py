"""What a policy is shown of WebShop: the paper's messages word for word, and the compact form."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from envs.base import EnvError, Observation, Task
from envs.dialogue import Answer, Situation, Turn, choose
from envs.registry import lookup
from envs.webshop import original

CHAT = choose(lookup("webshop"), "chat")
COMPACT = choose(lookup("webshop"), "compact")
ASKED = "Find me easy to clean lamp with color: red, and price lower than 20.00 dollars"
START = Observation(f"WebShop [SEP] Instruction: [SEP] {ASKED} [SEP] Search",
                    ("search[<your query>]", "click[search]"), ASKED)  # fmt: skip
RESULTS = Observation(
    f"Instruction: [SEP] {ASKED} [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] "
    "B1 [SEP] Acme lamp [SEP] $12.5 [SEP] B2 [SEP] Lumo Lamp [SEP] $9.0",
    ("click[back to search]", "click[next >]", "click[b1]", "click[b2]"), ASKED,
)  # fmt: skip
ITEM = Observation(
    f"Instruction: [SEP] {ASKED} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] blue [SEP] "
    "Acme lamp [SEP] Price: $12.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] "
    "Buy Now",
    ("click[back to search]", "click[red]"), ASKED,
)  # fmt: skip

FIRST = (
    "\nYou are an expert autonomous agent operating in the WebShop e\u2011commerce environment. \n"
    f"Your task is to: {ASKED}.\n"
    "Your current observation is: 'Search'.\n"
    "Your admissible actions of the current situation are: \n"
    "[\n'search[<your query>]',\n'click[search]',\n].\n"
    "\nNow it's your turn to take one action for the current step.\n"
    "You should first reason step-by-step about the current situation, then think carefully which admissible "
    "action best advances the shopping goal. This reasoning process MUST be enclosed within <think> </think> "
    "tags. \nOnce you've finished your reasoning, you should choose an admissible action for current step "
    "and present it within <action> </action> tags.\n"
)


def test_first_message_is_the_papers():
    assert CHAT.prompt(Situation(ASKED, START)) == FIRST


def test_later_messages_show_the_last_turns():
    situation = Situation(ASKED, RESULTS, (Turn(START, "search[lamp]"),), step=1)
    lines = CHAT.prompt(situation).split("\n")
    assert lines[1].endswith("agent operating in the WebShop e\u2011commerce environment.")
    assert lines[3] == (
        "Prior to this step, you have already taken 1 step(s). Below are the most recent 1 observations and "
        "the corresponding actions you took: [Observation 1: ''Search'', Action 1: 'search[lamp]']"
    )
    assert lines[4] == (
        "You are now at step 2 and your current observation is: 'Back to Search' [SEP] "
        "'Page 1 (Total results: 2)' [SEP] 'Next >' [SEP] 'B1' [SEP] 'Acme lamp' [SEP] '$12.5' [SEP] "
        "'B2' [SEP] 'Lumo Lamp' [SEP] '$9.0'."
    )
    assert lines[7:11] == ["'click[back to search]',", "'click[next >]',", "'click[b1]',", "'click[b2]',"]


def test_history_is_left_out_of_a_message_above_13000_characters():
    def message(padding: int) -> str:
        long = Observation(f"Instruction: [SEP] {ASKED} [SEP] {'x' * padding}", (), ASKED)
        return CHAT.prompt(Situation(ASKED, START, (Turn(long, "click[b1]"),), step=1))

    fitting = 13_000 - len(message(0))
    assert len(message(fitting)) == 13_000
    assert message(fitting + 1) == FIRST


def test_an_answer_without_tags_is_its_last_twenty_characters():
    assert CHAT.read("I would like to SEARCH[red lamps]", True) == Answer("to search[red lamps]", False)
    assert CHAT.read("<think>a</think><action>Click[B1]</action>", True) == Answer("click[b1]", True)


def test_a_growing_conversation_continues_with_the_page():
    text = CHAT.reply(Situation(ASKED, RESULTS, (Turn(START, "search[lamp]"),), step=1))
    assert text.startswith("\nYour current observation is: 'Back to Search' [SEP] 'Page 1 (Total")
    assert ASKED not in text
    assert COMPACT.reply(Situation(ASKED, START)) == "\nsearch\n>"


def test_compact_pages_are_a_line_for_each_product_and_no_buttons():
    history = (Turn(START, "search[lamp]"),)
    assert COMPACT.prompt(Situation(ASKED, RESULTS, history, step=1)) == (
        "Task: easy to clean lamp with color: red, under 20\n> search lamp\n"
        "b1 acme lamp 12\nb2 lumo lamp 9\n>"
    )
    assert COMPACT.prompt(Situation(ASKED, ITEM)) == (
        "Task: easy to clean lamp with color: red, under 20\nacme lamp\ncolor, red, blue\nprice: 12\n>"
    )
    listed = " [SEP] ".join(f"B{i} [SEP] X3.5 [SEP] $1.0 to $2.5" for i in range(9))
    many = Observation(f"Page 1 (Total results: 9) [SEP] {listed}", (), "no head")
    shown = COMPACT.reply(Situation("no head", many)).split("\n")
    assert (shown[1], len(shown)) == ("b0 x3.5 1 to 2", 7)


def test_compact_actions_have_no_brackets_and_come_back_with_them():
    for action in ("search[easy to clean lamp]", "click[b1]", "click[< prev]", "click[pack of 2]"):
        assert COMPACT.read(COMPACT.answer(action), True) == Answer(action, valid=True)
    assert COMPACT.read(" click red", False) == Answer("click[red]", valid=False)
    assert COMPACT.read(" search[lamp]", True) == COMPACT.read("", True) == Answer("", valid=False)


class FakeServer:
    def __init__(self) -> None:
        self.goals = list(range(600))


class FakeWebAgentTextEnv:
    """Counts its steps; the third is a purchase worth 0.75."""

    def __init__(
        self, observation_mode: str, server: FakeServer | None = None, session_prefix: str = ""
    ) -> None:
        self.server = server or FakeServer()
        self.prefix, self.session, self.steps = session_prefix, "", 0
        assert observation_mode == "text"

    def reset(self, session: int) -> tuple[str, None]:
        self.session, self.steps = f"{self.prefix}{session}", 0
        return f"WebShop [SEP] Instruction: [SEP] goal {session} [SEP] Search", None

    def get_available_actions(self) -> dict[str, object]:
        clickables = ["buy now"] if self.steps else ["search"]
        return {"has_search_bar": self.steps == 0, "clickables": clickables}

    def step(self, action: str) -> tuple[str, float, bool, None]:
        self.steps += 1
        done = self.steps == 3
        return f"Instruction: [SEP] goal 7 [SEP] page {self.steps}", 0.75 * done, done, None


def test_an_installed_original_plays_behind_the_same_protocol(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(WebAgentTextEnv=FakeWebAgentTextEnv)
    monkeypatch.setitem(sys.modules, "web_agent_site.envs.web_agent_text_env", module)
    original._server.cache_clear()
    kind = lookup("envs.webshop.original:KIND")
    tasks = kind.tasks()
    assert (len(tasks.tasks("test")), len(tasks.tasks("train"))) == (500, 100)
    first, second = kind.environment(reward="score"), kind.environment()
    assert isinstance(first, original.OriginalWebShop)
    assert isinstance(second, original.OriginalWebShop)
    assert first.server is second.server
    seen = first.reset(Task("goal_7", "original", "7"))
    assert (seen.instruction, seen.state, seen.admissible) == ("goal 7", "'Search'", START.admissible)
    assert [first.step(action).valid for action in ("click[search]", "click[buy now]")] == [False, True]
    last = first.step("search[x]")
    assert (last.reward, last.done, last.success, last.valid) == (7.5, True, False, True)
    with pytest.raises(EnvError, match="call reset"):
        first.step("search[x]")
    second.reset(Task("goal_7", "original", "7"))
    assert [second.step("click[buy now]").reward for _ in range(3)] == [0.0, 0.0, 0.0]
    original._server.cache_clear()


def test_a_missing_original_says_so():
    original._server.cache_clear()
    with pytest.raises(EnvError, match="the original WebShop cannot be imported"):
        lookup("envs.webshop.original:KIND").tasks()
