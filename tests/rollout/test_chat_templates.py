"""Chat templates of the kinds that models have: prompts, ends of messages, conversations, thoughts."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from wild_models import BEGIN, CHATML, SYSTEM, TEMPLATES, edit, id_of, theirs, written

from envs.base import Observation
from envs.dialogue import GENERIC
from gigpo_mega.config import PromptConfig
from gigpo_mega.rollout.prompt import PromptBuilder, adapted
from gigpo_mega.rollout.tokenizer import Tokenizer
from tests.helpers import refused

TEXT = "take mug 1 from desk 1 " * 30
REWRITING = ("r1", "empty thought")  # templates that change the answers of the past
SAID = "<think> a mug </think>\n<action> go to desk 1 </action>"


@pytest.fixture(params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The name of a template, and a folder with a tokenizer that has it."""
    name: str = request.param
    template, end, others = TEMPLATES[name]
    folder = written(tmp_path, end, *others, chat_template=template, eos_token=end, bos_token=BEGIN.get(name))
    return name, folder


def test_prompts_are_those_of_transformers(model: tuple[str, Path]) -> None:
    _, folder = model
    for text in (TEXT, "\n look \n", "看 a mug 🂡", "a\ufeffb"):
        assert Tokenizer(folder).chat(text) == theirs(folder, text)


def test_an_answer_ends_with_the_token_that_the_template_writes(model: tuple[str, Path]) -> None:
    name, folder = model
    end = id_of(folder, TEMPLATES[name][1])
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    if name == "mistral":  # its template writes eos_token
        end = id_of(folder, "<|endoftext|>")
    edit(folder / "generation_config.json", eos_token_id=[0])
    tokenizer = Tokenizer(folder)
    assert (tokenizer.end(chat=True), tokenizer.end(chat=False)) == (end, 0)
    builder = PromptBuilder(PromptConfig(), GENERIC["chat"], tokenizer, 4096)
    assert builder.stop_token_ids == tuple(sorted({0, end}))
    assert builder.answer("look")[-1] == end
    assert PromptBuilder(PromptConfig(), GENERIC["compact"], tokenizer, 4096).answer("look")[-1] == 0


def test_a_message_that_is_closed_only_where_the_next_one_begins_has_an_end(tmp_path: Path) -> None:
    chat = "{% for m in messages %}{% if not loop.first %}<|im_end|>{% endif %}<|im_start|>{{ m.content }}"
    folder = written(tmp_path, "<|im_start|>", chat_template=chat + "{% endfor %}", eos_token="<|endoftext|>")
    edit(folder / "generation_config.json", eos_token_id=[0, 1])
    assert Tokenizer(folder).end(chat=True) == 1


def test_a_template_without_an_end_token_leaves_the_tokenizers_own(tmp_path: Path) -> None:
    folder = written(tmp_path, chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert Tokenizer(folder).end(chat=True) == 1


def test_a_conversation_grows_token_for_token(model: tuple[str, Path]) -> None:
    name, folder = model
    tokenizer, end = Tokenizer(folder), id_of(folder, TEMPLATES[name][1])
    builder = PromptBuilder(PromptConfig(context="append"), GENERIC["chat"], tokenizer, 1 << 20)
    episode = builder.start(Observation(" a room \n", ("look",), "find a mug"))
    prompts: list[list[int]] = []
    responses = [[*tokenizer.encode(SAID), end], [0], tokenizer.encode("cut off"), [299, end], [end]]
    for said in responses:
        prompts.append(episode.ids())
        episode.advance("look", Observation("\n a desk 1 ", ("look",)), said)
    for said, (before, after) in zip(responses, pairwise([*prompts, episode.ids()]), strict=True):
        assert after[: len(before) + len(said)] == [*before, *said]
        added = after[len(before) + len(said) :]
        assert added.count(end) == (2 if name in ("chatml", "system", "llama3", "empty thought") else 1) - (
            said[-1] == end
        )
        assert "a desk 1" in tokenizer.decode(added)


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in REWRITING])
def test_a_conversation_that_transformers_would_render_the_same(name: str, tmp_path: Path) -> None:
    template, end, others = TEMPLATES[name]
    folder = written(tmp_path, end, *others, chat_template=template, eos_token=end, bos_token=BEGIN.get(name))
    tokenizer = Tokenizer(folder)
    first = tokenizer.chat("go to desk 1")
    space = " " if name == "mistral" else ""
    said = [*tokenizer.encode(f"{space}mug 1{space}"), id_of(folder, end)]
    ids = [*first, *said, *tokenizer.chat_on(said[-1], "take mug 1")]
    assert ids == theirs(folder, "go to desk 1", "mug 1", "take mug 1")


@pytest.mark.parametrize(
    ("name", "opened"), [("r1", "<think>\n"), ("empty thought", "<think>\n\n</think>\n\n")]
)
def test_an_answer_whose_thought_the_template_opened_is_valid(tmp_path: Path, name: str, opened: str) -> None:
    template, end, others = TEMPLATES[name]
    folder = written(tmp_path, end, *others, chat_template=template, eos_token=end)
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode(tokenizer.chat("a")).endswith(opened)
    dialogue = adapted(GENERIC["chat"], tokenizer)
    said = {"r1": "a mug </think>\n<action> look </action>", "empty thought": "<action> look </action>"}[name]
    for text in (said, f"<think>{said}", SAID):
        assert dialogue.read(text, True).valid
    assert dialogue.read(said, True).action == "look"
    assert not dialogue.read("a mug <action> look", True).valid
    assert not dialogue.read("看 </think> <action> look </action>", True).valid
    assert dialogue.read("xyz", True) == GENERIC["chat"].read("xyz", True)
    assert dialogue.read("<action> look </action>", True).valid == (name == "empty thought")


def test_without_an_opened_thought_the_rule_stays(tmp_path: Path) -> None:
    tokenizer = Tokenizer(written(tmp_path, "<|im_start|>", chat_template=SYSTEM + CHATML))
    assert adapted(GENERIC["chat"], tokenizer) is GENERIC["chat"]
    mentions = CHATML.replace("{{ m.content }}", "{{ m.content }} Use <think> and </think>.")
    tokenizer = Tokenizer(edit(tmp_path / "tokenizer_config.json", chat_template=mentions))
    assert adapted(GENERIC["chat"], tokenizer) is GENERIC["chat"]


@pytest.mark.parametrize("name", ["r1", "empty thought", "chatml"])
def test_a_cloned_answer_completes_what_the_template_opened(tmp_path: Path, name: str) -> None:
    template, end, others = TEMPLATES[name]
    folder = written(tmp_path, end, *others, chat_template=template, eos_token=end)
    tokenizer = Tokenizer(folder)
    builder = PromptBuilder(PromptConfig(), GENERIC["chat"], tokenizer, 4096)
    ids = builder.answer("go to desk 1")
    text = tokenizer.decode(ids)
    assert (text.count("<think>"), text.count("</think>")) == {
        "r1": (0, 1), "empty thought": (0, 0), "chatml": (1, 1)
    }[name]  # fmt: skip
    answer = adapted(GENERIC["chat"], tokenizer).read(text, True)
    assert (answer.action, answer.valid) == ("go to desk 1", True)


def test_tokens_of_a_post_processor_are_not_added_twice(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import processors

    folder = written(tmp_path, "<s>", "<|im_start|>", bos_token="<s>", add_bos_token=True,
                     chat_template="{{ bos_token }}" + CHATML)  # fmt: skip
    fast: Any = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    begin = id_of(folder, "<s>")
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    fast.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder)
    assert tokenizer.chat("a") == theirs(folder, "a")
    assert tokenizer.chat("a").count(begin) == 1
    assert begin not in tokenizer.chat_on(1, "a")
    assert begin not in tokenizer.encode("a")

NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", CHATML),
        ("chat_template.jinja", "\ufeff" + CHATML),
        ("chat_template.json", json.dumps({"chat_template": CHATML})),
        ("tokenizer_config.json", json.dumps({"eos_token": "<|im_end|>", "chat_template": NAMED})),
        ("tokenizer_config.json", "\ufeff" + json.dumps({"chat_template": CHATML})),
    ],
)
def test_wherever_the_template_is_it_is_the_same(tmp_path: Path, file: str, content: str) -> None:
    folder = written(tmp_path, "<|im_start|>", chat_template=CHATML)
    expected = Tokenizer(folder).chat(TEXT)
    edit(folder / "tokenizer_config.json", chat_template="another" if file.endswith("jinja") else None)
    (folder / file).write_text(content, encoding="utf-8")
    assert Tokenizer(folder).chat(TEXT) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "fails: System role not supported"),
        ("{% for m in messages %}{{ m.content", "fails: "),
        ("{{ messages[0].content + missing }}", "fails: 'missing' is undefined"),
        ("{{ messages[0]['content'] + 1 }}", "fails: can only concatenate str"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
         "leaves messages out"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used_are_one_line(tmp_path: Path, template: str, said: str) -> None:
    folder = written(tmp_path, chat_template=template)
    line = refused(lambda: Tokenizer(folder).template.check(grows=False))
    assert line.startswith(f"prompt.dialogue chat: the chat template of {tmp_path} {said}")


def test_a_template_for_one_question_is_refused_for_a_growing_conversation(tmp_path: Path) -> None:
    one = "{% if messages | length > 1 %}{{ raise_exception('one message, please') }}{% endif %}"
    tokenizer = Tokenizer(written(tmp_path, chat_template=one + "{{ messages[0].content }}<|im_end|>"))
    tokenizer.template.check(grows=False)
    assert tokenizer.end(chat=True) == 1
    assert "one message, please" in refused(lambda: tokenizer.template.check(grows=True))
    last = Tokenizer(edit(tmp_path / "tokenizer_config.json", chat_template="{{ messages[-1].content }}"))
    last.template.check(grows=False)
    assert "or prompt.context window" in refused(lambda: last.template.check(grows=True))


def test_templates_named_otherwise_than_default_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, chat_template=[{"name": "rag", "template": CHATML}])
    tokenizer = Tokenizer(folder)
    assert 'has none, or none called "default"' in refused(lambda: tokenizer.chat("a"))
