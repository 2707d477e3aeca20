"""Prompt formats and action parsing: verl-agent's search prompt, and a compact format.

Source of the chat prompt's wording and of its projection: verl-agent (Apache-2.0),
`agent_system/environments/prompts/search.py` and `env_package/search/projection.py`.
"""

from __future__ import annotations

from envs.dialogue import Answer, Dialogue, Situation
from envs.search.tags import blocks, opened

_TASK = """
You are an expert agent tasked with answering the given question step-by-step.
Your question: {question}
{past}
Now it's your turn to respond for the current step.
You should first conduct reasoning process. This process MUST be enclosed within <think> </think> tags. \n\
After completing your reasoning, choose only one of the following actions (do not perform both):
(1) If you find you lack some knowledge, you can call a search engine to get more external information using \
format: <search> your query </search>.
(2) If you have enough knowledge to answer the question confidently, provide your final answer within \
<answer> </answer> tags, without detailed illustrations. For example, <answer>Beijing</answer>.
"""

_PAST = """
Prior to this step, you have already taken {step} step(s). Below is the interaction history where <search> \
</search> wrapped your past search queries and <information> </information> wrapped the corresponding search \
results returned by the external search engine. History:
{history}
"""


def prompt(situation: Situation) -> str:
    """At first the question alone; later with the queries and results of the last turns."""
    past = ""
    if situation.history:
        # the result of a turn's action is the next observation
        found = [turn.observation.text for turn in situation.history[1:]] + [situation.observation.text]
        turns = zip(situation.history, found, strict=True)
        history = "\n".join(
            f"Step {i}:{turn.action} {text}\n"
            for i, (turn, text) in enumerate(turns, start=situation.first_shown + 1)
        )
        past = _PAST.format(step=situation.step, history=history)
    return _TASK.format(question=situation.instruction, past=past)


def reply(situation: Situation) -> str:
    """The search results, for a conversation that already contains the question."""
    return situation.observation.text or "Neither a search nor an answer was found in your response."


def project(text: str, ended: bool) -> Answer:
    """The first search, or else the first answer, in the text up to the first closing tag of either.

    Invalid if there is none, if both tags are opened, or if one of them is opened twice. As in verl-agent's
    `search_projection`, <think> is not required, and tags are case-insensitive.
    """
    del ended
    cut = text
    for end in ("</search>", "</answer>"):
        if end in text:
            cut = text[: text.index(end) + len(end)]
            break
    searches, answers = (sum(1 for _ in opened(tag).finditer(text)) for tag in ("search", "answer"))
    for tag in ("search", "answer"):
        found = next(blocks(cut, tag), None)
        if found is not None:
            return Answer(f"<{tag}>{found.strip()}</{tag}>", valid=searches + answers == 1)
    return Answer("", valid=False)


def format_action(action: str) -> str:
    """An answer with an empty thought that `project` reads as `action`."""
    return f"<think> </think>\n{action}"


def compact_prompt(situation: Situation) -> str:
    """The question, the queries and results of the last turns, and the line to complete."""
    lines = [f"Task: {situation.instruction}"]
    for step, turn in enumerate(situation.history, start=situation.first_shown):
        lines += [*_result(turn.observation.text, step), f"> {_short(turn.action)}"]
    return "\n".join([*lines, *_result(situation.observation.text, situation.step), ">"])


def compact_reply(situation: Situation) -> str:
    """The search results, and the line to complete."""
    return "\n" + "\n".join([*_result(situation.observation.text, situation.step), ">"])


def compact_read(text: str, ended: bool) -> Answer:
    """`search ...` or `answer ...`; invalid if it is neither or was cut off."""
    verb, _, rest = text.strip().partition(" ")
    if verb not in ("search", "answer") or not rest.strip():
        return Answer("", valid=False)
    return Answer(f"<{verb}>{rest.strip()}</{verb}>", valid=ended)


def _short(action: str) -> str:
    for tag in ("search", "answer"):
        for found in blocks(action, tag):
            return f"{tag} {found}"
    return action


def _result(text: str, step: int) -> list[str]:
    """The passages; nothing at step 0, whose observation is the question in the first line of the prompt."""
    found = next(blocks(text, "information"), text).strip()
    return [found] if step and found else []


DIALOGUES = {
    "chat": Dialogue(prompt, reply, project, format_action),
    "compact": Dialogue(
        compact_prompt, compact_reply, compact_read, lambda action: f" {_short(action)}", chat=False
    ),
}
