"""From what the agent has seen so far to the token ids of its next prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from envs.base import Observation
from envs.dialogue import Answer, Dialogue, Situation, Turn
from gigpo_mega.config import PromptConfig
from gigpo_mega.rollout.tokenizer import Tokenizer


class EpisodePrompt:
    """The prompts of one episode; made by `PromptBuilder.start`."""

    def __init__(self, builder: PromptBuilder, first: Observation) -> None:
        self._builder = builder
        self._instruction = first.instruction
        self._history: deque[Turn] = deque(maxlen=builder.window)
        self._step = 0
        self._conversation: list[int] = []  # token for token as it was said, if the context grows
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
        self, config: PromptConfig, dialogue: Dialogue, tokenizer: Tokenizer, max_tokens: int
    ) -> None:
        self.window = config.history
        self.grows = config.context == "append"
        self.truncated = 0
        self._dialogue = adapted(dialogue, tokenizer)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a response: those that the model's files declare, and what ends an answer here."""
        return tuple(sorted({*self._tokenizer.stop_token_ids, self._tokenizer.end(self._dialogue.chat)}))

    def answer(self, action: str) -> list[int]:
        """The ids of an answer that means `action`, with the token that ends it."""
        text = self._dialogue.answer(action)
        return [*self._tokenizer.encode(text), self._tokenizer.end(self._dialogue.chat)]

    def start(self, first: Observation) -> EpisodePrompt:
        """The prompts of a new episode whose reset returned `first`."""
        return EpisodePrompt(self, first)

    def encode(self, situation: Situation, conversation: Sequence[int] = ()) -> list[int]:
        """The ids of a prompt, after those of `conversation`."""
        if not conversation:
            text = self._dialogue.prompt(situation)
            if self._dialogue.chat:
                return self._tokenizer.chat(text, self._dialogue.tools)
            return self._tokenizer.encode(text)
        text = self._dialogue.reply(situation)
        if self._dialogue.chat:
            role = self._dialogue.reply_role
            return [*conversation, *self._tokenizer.chat_on(conversation[-1], text, role)]
        return [*conversation, *self._tokenizer.encode(text)]

    def fit(self, ids: list[int]) -> list[int]:
        """The newest `max_tokens` of `ids`."""
        if len(ids) > self._max_tokens:
            self.truncated += 1
            return ids[-self._max_tokens :]
        return ids


def adapted(dialogue: Dialogue, tokenizer: Tokenizer) -> Dialogue:
    """`dialogue` as the model's chat template has it: a <think> that the template writes is the answer's.

    Templates of reasoning models open the thought themselves, or write an empty one, so that the answer's
    tokens lack a tag.
    """
    thought = tokenizer.template.thought if dialogue.chat else ""
    if not thought:
        return dialogue

    def read(text: str, ended: bool) -> Answer:
        found = dialogue.read(text, ended)
        completed = found if found.valid else dialogue.read(thought + text, ended)
        return completed if completed.valid else found

    def answer(action: str) -> str:
        text = dialogue.answer(action)
        written = "</think>" if "</think>" in thought else "<think>"
        return text.partition(written)[2].lstrip("\n") if text.startswith("<think>") else text

    return replace(dialogue, read=read, answer=answer)
