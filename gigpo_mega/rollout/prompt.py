"""From what the agent has seen so far to the token ids of its next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from envs.base import Observation
from envs.dialogue import Dialogue, Situation, Turn
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.rollout.tokenizer import Tokenizer


class EpisodePrompt:
    """The prompts of one episode; made by `PromptBuilder.start`."""

    def __init__(self, builder: PromptBuilder, first: Observation) -> None:
        self._builder = builder
        self._instruction = first.instruction
        self._history: deque[Turn] = deque(maxlen=builder.window)
        self._step = 0
        self._conversation: list[int] = []  # token for token as it was said, where the context grows
        self.observation = first

    @property
    def situation(self) -> Situation:
        """What the dialogue's templates are given."""
        return Situation(self._instruction, self.observation, tuple(self._history), self._step)

    def advance(self, action: str, observation: Observation, said: Sequence[int] = ()) -> None:
        """Note that the policy said the ids `said`, that they meant `action` and led to `observation`."""
        if self._builder.grows:
            self._conversation = [*self._builder.encode(self.situation, self._conversation), *said]
        self._history.append(Turn(self.observation, action))
        self.observation = observation
        self._step += 1

    def ids(self) -> list[int]:
        """The prompt for the next action."""
        return self._builder.fit(self._builder.encode(self.situation, self._conversation))


class PromptBuilder:
    """Renders prompts by `dialogue`.

    With `config.context` window every step is a fresh message that shows the last `config.history` turns;
    with append it continues one conversation, whose earlier tokens are those that the engine saw and sampled.
    A prompt longer than `max_tokens` loses its oldest tokens and is counted in `truncated`.
    """

    def __init__(
        self, config: EnvironmentConfig, dialogue: Dialogue, tokenizer: Tokenizer, max_tokens: int
    ) -> None:
        self.window = config.history
        self.grows = config.context == "append"
        self.truncated = 0
        self._dialogue = dialogue
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def start(self, first: Observation) -> EpisodePrompt:
        """The prompts of a new episode whose reset returned `first`."""
        return EpisodePrompt(self, first)

    def encode(self, situation: Situation, conversation: Sequence[int] = ()) -> list[int]:
        """The ids of a prompt, after those of `conversation`."""
        if not conversation:
            text = self._dialogue.prompt(situation)
            return self._tokenizer.chat(text) if self._dialogue.chat else self._tokenizer.encode(text)
        text = self._dialogue.reply(situation)
        if self._dialogue.chat:
            return [*conversation, *self._tokenizer.chat_on(conversation[-1], text)]
        return [*conversation, *self._tokenizer.encode(text)]

    def fit(self, ids: list[int]) -> list[int]:
        """The newest `max_tokens` of `ids`."""
        if len(ids) > self._max_tokens:
            self.truncated += 1
            return ids[-self._max_tokens :]
        return ids
