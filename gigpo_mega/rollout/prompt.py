"""From what the agent has seen so far to the token ids of its next prompt."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from envs.base import Observation
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.rollout.tokenizer import Tokenizer

_FIRST = """
You are an expert agent operating in the ALFRED Embodied Environment.
Your current observation is: {observation}
Your admissible actions of the current situation are: [{admissible}].
{request}"""

_LATER = """
You are an expert agent operating in the ALFRED Embodied Environment. Your task is to: {instruction}
Prior to this step, you have already taken {step} step(s). Below are the most recent {window} observations \
and the corresponding actions you took: {history}
You are now at step {now} and your current observation is: {observation}
Your admissible actions of the current situation are: [{admissible}].
{request}"""

_REQUEST = """
Now it's your turn to take an action.
You should first reason step-by-step about the current situation. \
This reasoning process MUST be enclosed within <think> </think> tags.
Once you've finished your reasoning, you should choose an admissible action for current step \
and present it within <action> </action> tags.
"""

# Always possible and never needed: left out of the compact prompt, still accepted by the environment.
_UNHELPFUL = re.compile(r"(help|inventory|look)$|examine ")


@dataclass(frozen=True, slots=True)
class Turn:
    """One past exchange."""

    observation: str
    action: str


class EpisodePrompt:
    """The prompts of one episode; made by `PromptBuilder.start`."""

    def __init__(self, builder: PromptBuilder, first: Observation) -> None:
        self._builder = builder
        self._history: deque[Turn] = deque(maxlen=builder.window)
        self.instruction = first.instruction
        self.observation = first
        self.step = 0

    @property
    def history(self) -> tuple[Turn, ...]:
        """The last exchanges, oldest first."""
        return tuple(self._history)

    def advance(self, action: str, observation: Observation) -> None:
        """Note that `action` led to `observation`."""
        self._history.append(Turn(self._builder.shown(self), action))
        self.observation = observation
        self.step += 1

    def ids(self) -> list[int]:
        """The prompt for the next action."""
        return self._builder.encode(self)


class PromptBuilder:
    """Renders prompts by the template `config.prompt`.

    `alfworld` is the paper's (a first message without history, later ones with the last `config.history`
    exchanges and the step count) inside the model's chat template; `compact` is plain text of a few dozen
    tokens. A prompt longer than `max_tokens` loses its oldest tokens and is counted in `truncated`.
    """

    def __init__(self, config: EnvironmentConfig, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.window = config.history
        self.truncated = 0
        self._compact = config.prompt == "compact"
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def start(self, first: Observation) -> EpisodePrompt:
        """The prompts of a new episode whose reset returned `first`."""
        return EpisodePrompt(self, first)

    def encode(self, episode: EpisodePrompt) -> list[int]:
        """The ids of the episode's next prompt."""
        text = self.render(episode)
        ids = self._tokenizer.encode(text) if self._compact else self._tokenizer.chat(text)
        if len(ids) > self._max_tokens:
            self.truncated += 1
            return ids[-self._max_tokens :]
        return ids

    def render(self, episode: EpisodePrompt) -> str:
        """The text of the episode's next prompt, before any chat template."""
        return _compact(episode, self.shown(episode)) if self._compact else _alfworld(episode)

    def shown(self, episode: EpisodePrompt) -> str:
        """The current observation as this template shows it.

        The compact one leaves out what a reset repeats: the scene stands in the admissible actions.
        """
        if self._compact and episode.step == 0 and episode.observation.admissible:
            return "Start."
        return episode.observation.text


def _compact(episode: EpisodePrompt, observation: str) -> str:
    lines = [f"Task: {episode.instruction}"]
    for turn in episode.history:
        lines += [turn.observation, f"> {turn.action}"]
    lines.append(observation)
    if episode.observation.admissible:
        useful = (action for action in episode.observation.admissible if not _UNHELPFUL.match(action))
        lines.append("Can: " + ", ".join(useful))
    return "\n".join([*lines, ">"])


def _alfworld(episode: EpisodePrompt) -> str:
    admissible = "\n ".join(f"'{action}'" for action in episode.observation.admissible if action != "help")
    if episode.step == 0 or not episode.history:
        observation = episode.observation.text
        if episode.instruction not in observation:  # ALFWorld's first observation says it
            observation += f"\nYour task is to: {episode.instruction}"
        return _FIRST.format(observation=observation, admissible=admissible, request=_REQUEST)
    oldest = episode.step - len(episode.history) + 1
    return _LATER.format(
        instruction=episode.instruction,
        step=episode.step,
        window=len(episode.history),
        history="\n".join(
            f"[Observation {i}: '{turn.observation}', Action {i}: '{turn.action}']"
            for i, turn in enumerate(episode.history, start=oldest)
        ),
        now=episode.step + 1,
        observation=episode.observation.text,
        admissible=admissible,
        request=_REQUEST,
    )
