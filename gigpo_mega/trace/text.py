"""Groups and episodes as plain text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gigpo_mega.trace.recorded import FAR, Place, TracedGroup, TracedStep
from gigpo_mega.types import Group, Trajectory


def shown(text: str) -> str:
    """`text` with its lines, and what would not be visible, or move a terminal's cursor, as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def one_line(text: str, limit: int = 100) -> str:
    """`text` in one line of at most `limit` characters."""
    line = " ".join(shown(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def overview(iteration: int, groups: Mapping[int, Group], finished: bool) -> str:
    """The groups of an iteration, a line each."""
    episodes = [t for group in groups.values() for t in group.trajectories]
    won = sum(t.success for t in episodes)
    state = "" if finished else ", not finished"
    head = f"iteration {iteration}{state}: {len(groups)} groups, {won} of {len(episodes)} episodes succeeded"
    return "\n".join([head, *(summary(number, group) for number, group in groups.items())])


def summary(number: int, group: Group) -> str:
    """A group in one line."""
    won = sum(t.success for t in group.trajectories)
    lengths = [len(t.steps) for t in group.trajectories]
    scores = " ".join(f"{t.score:g}" for t in group.trajectories)
    return (
        f"  group {number:3d}  {won}/{len(lengths)} succeeded  scores {scores}  "
        f"steps {min(lengths, default=0)}-{max(lengths, default=0)}  {one_line(group.task.kind)}  "
        f"{one_line(group.task.id)}"
    )


def group_text(traced: TracedGroup) -> str:
    """A group: a line for each episode, then the states in which several steps were taken."""
    task = traced.group.task
    lines = [
        f"iteration {traced.iteration}, group {traced.number}",
        f"task {one_line(task.id)} ({one_line(task.kind)}), {traced.fate}",
        scored(traced),
        "",
    ]
    for number, (episode, steps) in enumerate(zip(traced.group.trajectories, traced.episodes, strict=True)):
        known = [step.advantages[0] for step in steps if step.advantages]
        invalid = sum(not step.valid for step in episode.steps)
        lines.append(
            f"episode {number}: {outcome(episode)}, {len(steps)} steps, {invalid} invalid"
            + (f", A_E {known[0]:+.3f}" if known else "")
        )
    for members in traced.anchors():
        first = traced.at(members[0])
        lines += ["", f"anchor group #{first.anchor}, {len(members)} steps: "
                      f"{one_line(first.step.observation)}"]  # fmt: skip
        lines += [_member(traced, place) for place in members]
    return "\n".join(lines)


def episode_text(traced: TracedGroup, number: int, prompts: bool = False) -> str:
    """The conversation of an episode with what was made of each step.

    The first step shows its whole prompt, the others what the environment said, or with `prompts` theirs.
    """
    episode = traced.group.trajectories[number]
    lines = [
        f"iteration {traced.iteration}, group {traced.number}, episode {number}: {outcome(episode)}",
        f"task {one_line(episode.task.id)} ({one_line(episode.task.kind)}), {traced.fate}",
        scored(traced),
    ]
    for step in traced.episodes[number]:
        asked = step.prompt if prompts or step.place.step == 0 else step.step.observation
        said = [f"> {line}" for line in shown("".join(step.tokens)).split("\n")]
        lines += [
            "",
            _head(step, len(episode.steps), conversation(traced, step)),
            shown(asked).rstrip("\n") or "(nothing)",
            "",
            *said,
            "",
        ]
        lines += _notes(traced, step)
    return "\n".join(lines)


def outcome(episode: Trajectory) -> str:
    """How an episode ended."""
    ended = {"success": "success", "failure": "failure", "limit": "step limit"}[episode.ended_by]
    return f"{ended}, score {episode.score:g}"


def scored(traced: TracedGroup) -> str:
    """What the learner's log-probs of a group are, and how far they are from the engine's."""
    found = [step.apart for steps in traced.episodes for step in steps if step.apart is not None]
    apart = np.abs(np.concatenate(found)) if found else np.zeros(0)
    if not len(apart):
        return traced.scored
    far = int((apart > FAR).sum())
    return (f"{traced.scored}; {far} of {len(apart)} tokens are more than {FAR:g} from the engine's, "
            f"the farthest {apart.max():.2g}")  # fmt: skip


def farthest(step: TracedStep) -> float:
    """The largest difference between the learner's log-probs of a step and the engine's; NaN without any."""
    return math.nan if step.apart is None or not len(step.apart) else float(np.abs(step.apart).max())


def conversation(traced: TracedGroup, step: TracedStep) -> str:
    """Which conversation of its episode a step is of; "" if every prompt is a new one, or all is one."""
    _, *later = (other.continues for other in traced.episodes[step.place.episode])
    if set(later) == {None} or later == list(range(len(later))) or not step.place.step:
        return ""
    return "a new conversation" if step.continues is None else f"continues step {step.continues}"


def mean_logprob(step: TracedStep) -> float:
    """The mean log-probability of the sampled tokens; NaN without any."""
    return float(step.step.logprobs.mean()) if len(step.step.logprobs) else math.nan


def weights(step: TracedStep) -> str:
    """The weight versions that sampled the step, in order."""
    return ", ".join(map(str, dict.fromkeys(step.step.versions.tolist())))


def _head(step: TracedStep, steps: int, conversation: str) -> str:
    values = "advantages unknown"
    if step.advantages:
        values = "A_E {:+.3f}  A_S {:+.3f}  total {:+.3f}".format(*step.advantages)
    valid = "valid" if step.step.valid else "INVALID"
    which = f"{conversation}  " if conversation else ""
    return (f"--- step {step.place.step} of {steps} --- {which}{valid}  reward {step.step.reward:g}  "
            f"{values}  weights {weights(step)} ---")  # fmt: skip


def _notes(traced: TracedGroup, step: TracedStep) -> Iterator[str]:
    """The action, log-probabilities and the anchor group of a step."""
    yield f"action: {one_line(step.step.action) or '(none)'}"
    whose, means, apart = "of the engine", f"{mean_logprob(step):.3f}", ""
    if step.learner is not None:
        whose, means = f"{whose} | the learner", f"{means} | {step.learner.mean():.3f}"
        apart = f", at most {farthest(step):.2g} apart"
    yield f"log-prob {whose}, mean {means}{apart}: {'  '.join(_tokens(step))}"
    others = [place for place in step.members if place != step.place]
    yield f"anchor group #{step.anchor}: " + (
        f"{len(others)} more of this state" if others else "no other step of this state"
    )
    yield from (_member(traced, place) for place in others)


def _tokens(step: TracedStep) -> Iterator[str]:
    """Each token with its log-prob, the learner's too, and the difference if that is large."""
    texts = [repr(text)[1:-1] or "..." for text in step.tokens]  # an ellipsis: part of the next character
    engine = [f"{text} {value:.2f}" for text, value in zip(texts, step.step.logprobs, strict=True)]
    if step.learner is None or step.apart is None:
        yield from engine
        return
    for text, value, apart in zip(engine, step.learner, step.apart, strict=True):
        yield f"{text} | {value:.2f}" + (f" (!{apart:+.2f})" if abs(apart) > FAR else "")


def _member(traced: TracedGroup, place: Place) -> str:
    step = traced.at(place)
    advantage = f"  A_S {step.advantages[1]:+.3f}" if step.advantages else ""
    invalid = "" if step.step.valid else " (invalid)"
    return (
        f"  episode {place.episode} step {place.step}: {one_line(step.step.action) or '(none)'}{invalid}  "
        f"reward {step.step.reward:g}{advantage}  episode: {outcome(traced.trajectory(place))}"
    )
