"""What a policy is shown and how its answers are read: verl-agent's Sokoban prompt, and one of few tokens.

Source of the chat template's wording and of its projection: verl-agent (Apache-2.0),
`agent_system/environments/prompts/sokoban.py` and `env_package/sokoban/projection.py`.
"""

from __future__ import annotations

from envs.dialogue import Answer, Dialogue, Situation, in_tags, whole
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
    """The room alone first; later with the last turns before it."""
    past = _NOW
    if situation.history:
        turns = enumerate(situation.history, start=situation.first_shown + 1)
        past = _PAST.format(
            step=situation.step,
            window=len(situation.history),
            history="\n".join(
                f"[Observation {i}: '{turn.observation.text}', Action {i}: '{turn.action}']"
                for i, turn in turns
            ),
            now=situation.step + 1,
        )
    return _TASK.format(past=past, observation=situation.observation.text)


def reply(situation: Situation) -> str:
    """The room, where the conversation already holds the rules."""
    return f"{_NOW}\n{situation.observation.text}"


def project(text: str, ended: bool) -> Answer:
    """The first of up, down, left, right and still that occurs between the first <action> and </action>.

    Invalid, and still, where there is none; invalid too without <think> or </think>. The action is
    capitalised, as the history shows it. As verl-agent's `sokoban_projection`.
    """
    del ended
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    said = lowered[start + len("<action>") : end] if min(start, end) >= 0 else ""
    name = next((name for name in (*MOVES, STILL) if name in said), "")
    thought = "<think>" in text and "</think>" in text
    return Answer((name or STILL).capitalize(), valid=bool(name) and thought)


DIALOGUES = {
    "chat": Dialogue(prompt, reply, project, lambda action: in_tags(action.lower())),
    "compact": Dialogue(
        lambda situation: f"{situation.observation.text}\n>",
        lambda situation: f"\n{situation.observation.text}\n>",
        whole,
        lambda action: f" {action}",
        chat=False,
    ),
}
