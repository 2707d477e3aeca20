"""WebShop natively: files, goals, pages, actions, rewards; what a policy is shown; nothing leaks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.base import EnvError, Task
from envs.registry import lookup
from envs.webshop import WebShopEnvironment, task_source
from envs.webshop.catalog import Product
from envs.webshop.environment import read_source, write_source
from envs.webshop.expert import demonstrate
from envs.webshop.generate import generate
from envs.webshop.goals import Goal
from envs.webshop.noun_extraction import light_nouns
from envs.webshop.pages import SEPARATOR, detail_page
from envs.webshop.reward import Score, score, title_score, wanted
from envs.webshop.session import Session, parse
from envs.webshop.shop import Shop, ShopFiles, load_shop

LAMP = Product(
    asin="B1", title="Acme red lamp", category="home", query="lamp",
    product_category="Home \u203a Light \u203a Lamp",
    description="A lamp & more", bullets=("easy to clean",), attributes=("easy to clean", "eco friendly"),
    options={"color": ("red", "navy blue"), "size": ("small", "large")}, price_text="$12.5", price=12.5,
)  # fmt: skip
SOFA = replace(
    LAMP, asin="B2", title="Bravado sofa", query="sofa", product_category="Home \u203a Furniture",
    price_text="$99.0", price=99.0, attributes=("memory foam",), bullets=(), description="", options={},
)  # fmt: skip
GOAL = Goal(
    asin="B1", instruction="Find me eco friendly lamp", name="Acme red lamp", query="lamp",
    product_category="Home \u203a Light \u203a Lamp", attributes=("eco friendly",),
    options=(("color", "navy blue"), ("size", "small")), price_upper=20.0,
)  # fmt: skip


def visit(goal: Goal = GOAL) -> Session:
    return Session(Shop([LAMP, SOFA], [goal], light_nouns), goal)


def after(*actions: str, goal: Goal = GOAL) -> Session:
    session = visit(goal)
    for action in actions:
        assert session.act(action), action
    return session


def bought(product: Product, goal: Goal = GOAL, **options: str) -> Score:
    return score(product, goal, product.price, options, light_nouns)


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("webshop") / "files"
    generate(folder, 120, seed=4)
    return folder


@pytest.fixture(scope="module")
def tasks(shop_folder: Path) -> list[Task]:
    return task_source(str(shop_folder), nouns="light").tasks("test")


# actions


@given(st.text(alphabet="a[]\n b", max_size=14))
def test_parsing_is_the_originals_pattern(action: str):
    found = re.match(r"(.+)\[(.+)\]", action)
    assert parse(action) == (found.groups() if found else ("", ""))


def test_parsing_takes_linear_time():
    start = time.process_time()
    assert parse("[" * 100_000) == ("", "")
    assert time.process_time() - start < 0.1


def test_the_start_page_shows_the_instruction_and_a_search_bar():
    page = visit().page
    assert page.text == "WebShop [SEP] Instruction: [SEP] Find me eco friendly lamp [SEP] Search"
    assert (page.clickables, page.search_bar) == (("search",), True)


def test_result_and_item_pages_show_and_list_what_the_original_does():
    session = after("search[Lamp]")
    assert session.page.text == SEPARATOR.join(
        ["Instruction:", GOAL.instruction, "Back to Search", "Page 1 (Total results: 1)", "Next >", "B1",
         "Acme red lamp", "$12.5"])  # fmt: skip
    assert session.page.clickables == ("back to search", "next >", "b1")
    assert session.act("click[B1]")
    assert session.page.text == SEPARATOR.join(
        ["Instruction:", GOAL.instruction, "Back to Search", "< Prev", "color", "red", "navy blue", "size",
         "small", "large", "Acme red lamp", "Price: $12.5", "Rating: N.A.", "Description", "Features",
         "Reviews", "Buy Now"])  # fmt: skip


@pytest.mark.parametrize(
    "action", ["", "search[]", "click[search]", "click[b1]", "buy now", "Search[lamp]", "click[]", "search"]
)
def test_an_unknown_action_changes_nothing(action: str):
    session = visit()
    before = session.page
    assert not session.act(action)
    assert session.page is before


def test_pages_are_turned_and_left():
    session = after("search[lamp]", "click[next >]")
    assert "Page 2 (Total results: 1) [SEP] < Prev [SEP] Next >" in session.page.text
    assert session.act("click[< prev]")
    assert "Page 1" in session.page.text
    session = after("search[lamp]", "click[b1]", "click[features]")
    assert session.page.text.endswith("< Prev [SEP] easy to clean")
    assert session.page.clickables == ("back to search", "< prev")


@pytest.mark.parametrize(
    ("description", "shown"),
    [("", []), (" \n\t ", []), (" ", [""]), ("\u00a0", [""]), (" <b>a</b> &\n b ", ["<b>a</b> &\n b"])],
)
def test_blanks_are_read_as_from_html(description: str, shown: list[str]):
    page = detail_page(GOAL.instruction, replace(LAMP, description=description), "description")
    assert page.text.split(SEPARATOR) == [
        "Instruction:", GOAL.instruction, "Back to Search", "< Prev", *shown
    ]  # fmt: skip


def test_going_back_to_the_results_forgets_the_options_but_a_detail_page_does_not():
    session = after("search[lamp]", "click[b1]", "click[red]", "click[description]", "click[< prev]")
    assert session.options == {"color": "red"}
    assert session.act("click[< prev]")
    assert (session.options, session.product) == ({}, None)


def test_a_value_of_two_options_chooses_the_last():
    twice = replace(LAMP, options={"color": ("red",), "shade": ("red",)})
    session = Session(Shop([twice], [GOAL], light_nouns), GOAL)
    for action in ("search[lamp]", "click[b1]", "click[red]"):
        session.act(action)
    assert session.options == {"shade": "red"}


def test_marks_select_by_query_category_and_attribute():
    assert "B2 [SEP]" in after("search[<q> sofa]").page.text
    assert "Total results: 2" in after("search[<c> home]").page.text
    assert "Total results: 1" in after("search[<a> memory foam]").page.text
    assert "Total results: 2" in after("search[<r>]").page.text


# rewards


def test_the_wanted_purchase_is_worth_one():
    session = after("search[lamp]", "click[b1]", "click[navy blue]", "click[small]", "click[buy now]")
    assert session.score == Score(reward=1.0, type=1.0, title=1.0, attributes=1.0, options=1.0, price=True)
    assert not session.act("search[lamp]")


def test_what_is_missing_costs_its_share():
    assert bought(LAMP).reward == 0.5  # attribute and price of four
    assert bought(LAMP, color="navy blue").reward == 0.75
    assert bought(LAMP, replace(GOAL, price_upper=10.0), color="navy blue", size="small").reward == 0.75


def test_another_kind_of_product_is_worth_less():
    assert bought(SOFA).type == 0.0  # no noun in common
    lamp = replace(SOFA, title="Galdora lamp holder")
    goal = replace(GOAL, name="acme lamp desk chair shelf rug")
    assert (bought(lamp, goal).title, bought(lamp, goal).type) == (1 / 6, 0.5)
    assert bought(replace(lamp, query="lamp"), goal).type == 1.0
    alike = replace(lamp, product_category="Lamp \u203a Light")
    assert bought(alike, goal).type == 1.0
    many = replace(goal, name="lamp " + " ".join(f"noun{'abcdefghijkl'[i]}" for i in range(11)))
    assert bought(alike, many).type == 0.1


def test_the_title_score_without_nouns_is_a_fifth():
    assert title_score(["lamp"], []) == 0.2


def test_only_exact_colors_of_wanted_pairs_count_as_colors():
    assert wanted("wine red") == "red"
    assert wanted(("color", "red")) == "red"
    assert wanted(("color", "wine red")) == "('color', 'wine red')"


def test_success_pays_ten_and_score_pays_a_share(tasks: list[Task]):
    kinds = WebShopEnvironment(reward="success"), WebShopEnvironment(reward="score")
    worths: list[float] = []
    for task in tasks[:40]:
        for environment in kinds:
            environment.reset(task)
            session = environment.session
            environment.step(f"search[{session.goal.query}]")
            environment.step(f"click[{session.page.clickables[2]}]")
            last = environment.step("click[buy now]")
            worths.append(session.score.reward if session.score else -1.0)
            assert (last.done, last.success) == (True, worths[-1] == 1.0)
            share = worths[-1] if environment.reward == "score" else float(last.success)
            assert last.reward == 10.0 * share
    assert len(set(worths)) >= 3
    assert min(worths) >= 0.0


# episodes


def test_an_episode_ends_at_the_step_limit(tasks: list[Task]):
    environment = WebShopEnvironment(max_steps=2)
    environment.reset(tasks[0])
    assert not environment.step("click[nothing]").done
    end = environment.step("search[lamp]")
    assert (end.done, end.success, end.reward, end.valid) == (True, False, 0.0, True)
    with pytest.raises(EnvError, match="call reset"):
        environment.step("search[lamp]")


def test_the_same_task_starts_the_same(tasks: list[Task]):
    first, second = WebShopEnvironment(), WebShopEnvironment()
    assert first.reset(tasks[7]) == second.reset(tasks[7])
    first.step("search[lamp]")
    assert first.reset(tasks[7]) == second.reset(tasks[7])


def test_anchor_is_the_page_after_the_instruction(tasks: list[Task]):
    states: dict[str, list[str | None]] = {}
    for anchor in ("observation", "state"):
        environment = WebShopEnvironment(anchor=anchor)
        assert environment.reset(tasks[0]).state == "'Search'"
        goal = environment.session.goal
        environment.step(f"search[{goal.name}]")
        environment.step(f"click[{goal.asin.lower()}]")
        product = environment.session.product
        assert product is not None
        value = next(iter(product.options.values()))[0]
        states[anchor] = [environment.step(f"click[{text}]").observation.state for text in ("nothing", value)]
    assert len({*states["observation"], states["state"][0]}) == 1
    assert states["state"][1] == f"{states['state'][0]} chosen: {json.dumps(environment.session.options)}"


def test_every_goal_can_be_met(tasks: list[Task], shop_folder: Path):
    train = task_source(str(shop_folder), nouns="light").tasks("train")
    played = [demonstrate(task, seed=0) for task in [*tasks[::4], *train[::8]]]
    assert len(played) > 150
    assert all(demonstration.success for demonstration in played)


def test_a_shopper_with_detours_still_shops(tasks: list[Task]):
    played = [demonstrate(task, seed=1, detour=0.3) for task in tasks[:60]]
    lengths = [len(demonstration.turns) for demonstration in played]
    assert sum(demonstration.success for demonstration in played) >= 45  # the others need more than 15 steps
    assert sum(lengths) / len(lengths) > 6
    assert demonstrate(tasks[0], seed=1, detour=0.3) == played[0]


# files


def test_the_first_500_goals_are_held_out_and_sources_name_their_shop(shop_folder: Path, tasks: list[Task]):
    source = task_source(str(shop_folder), nouns="light")
    train = source.tasks("train")
    assert len(tasks) == 500
    assert not {task.id for task in tasks} & {task.id for task in train}
    assert read_source(tasks[3].source) == (source.files, 3)
    assert read_source(write_source(source.files, 9)) == (source.files, 9)
    with pytest.raises(EnvError, match="no split 'valid'; known: train, test"):
        source.tasks("valid")
    human = task_source(str(shop_folder), nouns="light", goals="human")
    with pytest.raises(EnvError, match="120 goals, but the first 500 are the test split"):
        human.tasks("test")


def test_goals_depend_on_the_seed_alone(shop_folder: Path):
    files = [task_source(str(shop_folder), nouns="light", seed=seed).files for seed in (0, 1)]
    first, second = (load_shop(one) for one in files)
    load_shop.cache_clear()
    assert load_shop(files[0]).goals == first.goals
    assert [goal.asin for goal in first.goals] == [goal.asin for goal in second.goals]
    assert [goal.price_upper for goal in first.goals] != [goal.price_upper for goal in second.goals]


def test_human_goals_name_values_only(shop_folder: Path):
    shop = load_shop(task_source(str(shop_folder), nouns="light", goals="human").files)
    assert all(isinstance(option, str) for goal in shop.goals for option in goal.options)
    limited = [goal for goal in shop.goals if goal.price_upper < 1000]
    assert all(f"lower than {goal.price_upper:.2f} dollars" in goal.instruction for goal in limited)
    assert len(limited) > 100


def test_generating_on_first_use(tmp_path: Path):
    how: dict[str, Any] = {"products": 70, "kinds": 5, "values": 4, "seed": 2}
    source = task_source(str(tmp_path / "made"), nouns="light", generate=how)
    assert len({product.query for product in load_shop(source.files).products}) == 5
    again = (tmp_path / "made" / "items_shuffle.json").read_bytes()
    generate(tmp_path / "other", 70, 5, 4, seed=2)
    assert (tmp_path / "other" / "items_shuffle.json").read_bytes() == again
    with pytest.raises(EnvError, match=r"unknown key environment\.tasks\.generate\.shops"):
        task_source(str(tmp_path / "third"), generate={"shops": 1})


def broken(items: Any) -> ShopFiles:
    return ShopFiles(items, str(Path(items).with_name("attributes.json")), nouns="light")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not a complete JSON file"),
        ("{}", "not a list of products"),
        ('[{"name": "x"}]', "entry 0 is not a product"),
        ('[{"asin": "B1", "name": 3}]', "product B1: 'name' is missing or not text"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str):
    (tmp_path / "items.json").write_text(content)
    (tmp_path / "attributes.json").write_text("{}")
    with pytest.raises(EnvError, match=f"items.json: .*{message}"):
        load_shop(broken(tmp_path / "items.json"))


def test_missing_files_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EnvError, match=r"ins_v2\.json: cannot be read.*environment\.tasks\.data"):
        task_source(str(tmp_path), nouns="light").tasks("test")
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(EnvError, match=r"environment\.tasks\.items: no file given"):
        task_source()
    with pytest.raises(EnvError, match="is not one of `WebShopTasks`"):
        WebShopEnvironment().reset(Task("x", "", "{}"))


def test_home_and_variables_in_the_folder_of_the_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "items_shuffle.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    for data in ("~", "$HOME"):
        assert task_source(data).files.items == str(tmp_path / "items_shuffle.json")
    with pytest.raises(EnvError, match=r"^environment\.tasks\.data '\$NO_SHOP/x': \$NO_SHOP is not set"):
        task_source("$NO_SHOP/x", generate={"products": 1})


def test_official_names_of_both_sizes(tmp_path: Path):
    for name in ("items_shuffle.json", "items_shuffle_1000.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(EnvError, match=r"holds both sizes; set environment\.tasks\.small"):
        task_source(str(tmp_path))
    assert task_source(str(tmp_path), small=True).files.attributes == str(tmp_path / "items_ins_v2_1000.json")


def nonsense(rng: Random) -> Iterator[str]:
    words = ("search[lamp]", "click[next >]", "click[b7]", "click[< prev]", "click[features]", "search[<q>]",
             "search[<c>]", "search[<r> x]", "click[back to search]")  # fmt: skip
    junk = ("", "[" * 100_000, "search[" + "lamp " * 20_000 + "]", "search[\ud800]", "click[\udfff]",
            "\x00\x1b[2J", "search[\x00]", "search[\u4e2d\u6587 caf\u00e9 \U0001f6d2]", "<action>" * 1000,
            "search[[[]]]", "]][[", "search[%s {0} \\]", "click[\n]", "search[" + "x" * 100_000 + "]",
            "search['\u2019s]")  # fmt: skip
    while True:
        yield rng.choice(words) if rng.random() < 0.8 else rng.choice(junk)


def test_ten_thousand_odd_actions_leave_no_trace(tasks: list[Task]):
    rng = Random(0)
    actions, environments = nonsense(rng), [WebShopEnvironment(), WebShopEnvironment()]
    expected = demonstrate(tasks[5], seed=0)
    open_episodes = [False, False]
    for _ in range(10_000):
        place = rng.randrange(2)
        if not open_episodes[place]:
            environments[place].reset(rng.choice(tasks))
        open_episodes[place] = not environments[place].step(next(actions)).done
    for environment in environments:
        seen = environment.reset(tasks[5])
        for (observation, action), (following, _) in pairwise([*expected.turns, expected.turns[-1]]):
            assert seen == observation
            seen = environment.step(action).observation
            assert seen == following or seen.text.startswith("Thank you")
        assert environment.session.score is not None


def test_environment_is_registered():
    kind = lookup("webshop")
    assert kind.environment is WebShopEnvironment
    assert set(kind.dialogues) == {"chat", "compact"}
    with pytest.raises(EnvError, match=r"environment\.max_steps: 0 is below 1"):
        kind.environment(max_steps=0)
