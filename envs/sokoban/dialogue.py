"""Prompt formats and action parsing: verl-agent's Sokoban prompt, and a compact format.

Source of the chat prompt's wording and of its projection: verl-agent (Apache-2.0),
`agent_system/environments/prompts/sokoban.py` and `env_package/sokoban/projection.py`.
"""

from __future__ import annotations

from envs.dialogue import Answer, Dialogue, Situation, format_tagged, parse_whole
from envs.sokoban.environment import STILL
from envs.sokoban.rooms import MOVES

_TASK = """
You are an expert agent operating in the Sokoban environment.

# Symbols and Their Meaning
- Walls (`#`): These block movement. You can't move through or push anything into walls.
- Floor (`_`): Open spaces where you can walk and move boxes.
- Targets (`O`): The spots where boxes need to go.
- Boxes (`X`): These are what you need to push onto the targets.
- Player (`P`): That's you! You'll move around the grid to push boxes.
- Box on Target (`√`): A box successfully placed on a target.
- Player on Target (`S`): You standing on a target.

# Your Goal
Your goal is to push all the boxes (`X`) onto the target spots (`O`). \
Once all boxes are on the targets, you win!

# Rules
You can only push boxes. You can't pull them, so plan ahead to avoid getting stuck.
You can't walk through or push boxes into walls (`#`).
To avoid traps, do not push boxes into corners or against walls where they can't be moved again.

# Current Step
{past}
{observation}
Your admissible actions are ["up", "down", "left", "right"].

Now it's your turn to make a move (choose ONE action only for the current step).
You should first reason step-by-step about the current situation — observe the positions of boxes and \
targets, plan a path to push a box toward a target, and avoid traps like corners or walls. \
This reasoning process MUST be enclosed within <think> </think> tags. \n\
Once you've finished your reasoning, you should choose an admissible action for current step and present it \
within <action> </action> tags.
"""

_NOW = "Your current observation is:"
_PAST = (
    "Prior to this step, you have already taken {step} step(s). Below are the most recent {window} "
    "observations and the corresponding actions you took: {history}\n"
    "You are now at step {now} and your current observation is:"
)


def prompt(situation: Situation) -> str:
    """At first the room alone; later preceded by the last turns."""
    past = _NOW
    if situation.history:
        past = _PAST.format(
            step=situation.step,
            window=len(situation.history),
            history=situation.turns(),
            now=situation.step + 1,
        )
    return _TASK.format(past=past, observation=situation.observation.text)


def reply(situation: Situation) -> str:
    """The room, for a conversation that already contains the rules."""
    return f"{_NOW}\n{situation.observation.text}"


def project(text: str, ended: bool) -> Answer:
    """The first of up, down, left, right and still (in this order) that occurs in the first <action> block.

    If there is none the answer is invalid and the action still; it is also invalid without <think> or
    </think>. The action is capitalized, as in the history. Source: verl-agent, `sokoban_projection`.
    """
    del ended
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    text_of_action = lowered[start + len("<action>") : end] if min(start, end) >= 0 else ""
    name = next((name for name in (*MOVES, STILL) if name in text_of_action), "")
    thought = "<think>" in text and "</think>" in text
    return Answer((name or STILL).capitalize(), valid=bool(name) and thought)


DIALOGUES = {
    "chat": Dialogue(prompt, reply, project, lambda action: format_tagged(action.lower())),
    "compact": Dialogue(
        lambda situation: f"{situation.observation.text}\n>",
        lambda situation: f"\n{situation.observation.text}\n>",
        parse_whole,
        lambda action: f" {action}",
        chat=False,
    ),
}
