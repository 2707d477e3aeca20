"""The groups of a run folder with the advantages that its configuration gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gigpo_mega import hub
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.quota import learned_from
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.types import Advantages, Bool, Float32, Group, RowTable, Step, Trajectory

FAR = 0.1  # nats between the learner's log-prob and the engine's that are pointed out: a tenth of the token's
# probability, and half of what objective.clip_low allows


@dataclass(frozen=True, slots=True)
class Place:
    """A step of a group: episode and time step, both from 0."""

    episode: int
    step: int


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A step with what the iteration made of it."""

    place: Place
    step: Step
    prompt: str
    tokens: tuple[str, ...]  # the text of each sampled token
    advantages: tuple[float, float, float] | None  # A_E, A_S, total; None: unknown, or not learned from
    anchor: int  # anchor group, numbered within the task's group
    members: tuple[Place, ...]  # all steps of the anchor group, this one too
    learner: Float32 | None  # the learner's log-prob of each sampled token; None if it computed none
    continues: int | None  # the step of the episode whose tokens, seen and sampled, the prompt begins with

    @property
    def apart(self) -> Float32 | None:
        """How far the learner's log-prob of each token is above the engine's."""
        return None if self.learner is None else self.learner - self.step.logprobs


@dataclass(frozen=True, slots=True)
class TracedGroup:
    """A group with the steps of its episodes."""

    iteration: int
    number: int
    group: Group
    fate: str  # where its advantages are from, or why it has none
    scored: str  # what the learner's log-probs are, or why there are none
    episodes: tuple[tuple[TracedStep, ...], ...]

    def at(self, place: Place) -> TracedStep:
        """The step at `place`."""
        return self.episodes[place.episode][place.step]

    def trajectory(self, place: Place) -> Trajectory:
        """The episode that `place` is in."""
        return self.group.trajectories[place.episode]

    def anchors(self) -> list[tuple[Place, ...]]:
        """The anchor groups that several steps share, the largest first."""
        groups = {step.anchor: step.members for steps in self.episodes for step in steps}
        shared = [members for members in groups.values() if len(members) > 1]
        return sorted(shared, key=len, reverse=True)


class RecordedRun:
    """The run in `folder`, which may be under way; raises UserError if it is not a run folder."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.yaml").exists():
            raise UserError(f"{folder} is not a run folder: it has no config.yaml")
        self.folder = folder
        self.journal = Journal(folder / "groups")

    def config(self, iteration: int) -> Config:
        """The configuration that held in `iteration`: a resumed run may have changed it afterwards."""
        earlier = {int(path.stem.partition("_")[2]): path for path in self.folder.glob("config.until_*.yaml")}
        until = min((start for start in earlier if start > iteration), default=None)
        path = self.folder / "config.yaml" if until is None else earlier[until]
        return load_config([str(path)], "gigpo-mega train")

    def finished(self) -> bool:
        """Whether its last iteration is complete, by its present configuration; its groups may be dropped."""
        last = load_config([str(self.folder / "config.yaml")], "gigpo-mega train").iterations - 1
        rows = read_rows(self.folder / "metrics.jsonl")
        return self.journal.has(last) or max((row["iteration"] for row in rows), default=-1) >= last

    def newest(self) -> int:
        """The newest iteration that is complete, or else begun; raises UserError if there are no groups."""
        if not (iterations := self.journal.iterations()):
            raise UserError(
                f"{self.folder / 'groups'} holds no groups; checkpoint.groups_gib keeps those that no "
                "resume needs"
            )
        complete = [iteration for iteration in iterations if self.journal.has(iteration)]
        return (complete or iterations)[-1]

    def groups(self, iteration: int) -> dict[int, Group]:
        """The groups of `iteration` by number; raises UserError, naming the others, if there are none."""
        numbers = self.journal.numbers(iteration)
        if not numbers:
            self.newest()
            there = ", ".join(map(str, self.journal.iterations()))
            raise UserError(f"{self.folder} has no groups of iteration {iteration}; it has those of {there}")
        try:
            return {number: self.journal.group(iteration, number) for number in numbers}
        except FileNotFoundError:
            raise UserError(f"the run in {self.folder} has dropped iteration {iteration} just now") from None

    def traced(self, iteration: int, number: int) -> TracedGroup:
        """A group with the advantages that `estimate` gives it among all groups of its iteration.

        Raises UserError if there is no such group.
        """
        groups, cfg = self.groups(iteration), self.config(iteration)
        if number not in groups:
            there = ", ".join(map(str, groups))
            raise UserError(f"iteration {iteration} has no group {number}; it has {there}")
        chosen = groups[number]
        taken = [at for at, group in groups.items() if learned_from(group, cfg.rollout)]
        found, fate = None, f"advantages estimated over {len(taken)} groups"
        if not self.journal.has(iteration):
            fate = "advantages not known yet: the iteration is not finished"
        elif number not in taken:
            fate = "no advantages: its episodes have equal returns, it is not learned from"
        else:
            rows = RowTable.from_groups([groups[at] for at in taken])
            own = rows.group == taken.index(number)
            found = _rows(estimate(rows, cfg.advantage), own)
        learner = self._learner(iteration, groups, number)
        scored = _UNSCORED if learner is None else _SCORED[cfg.objective.old_logprob]
        return TracedGroup(iteration, number, chosen, fate, scored, self._episodes(chosen, found, learner))

    def _learner(self, iteration: int, groups: Mapping[int, Group], number: int) -> Float32 | None:
        """The learner's log-probs of the group's tokens, NaN where it computed none; None without any."""
        kept = self.journal.learner(iteration)
        if kept is None:
            return None
        sizes = {at: sum(len(step.response_ids) for step in _steps(group)) for at, group in groups.items()}
        if len(kept) != sum(sizes.values()):
            raise UserError(
                f"{self.folder / 'groups'}: of iteration {iteration} there are {len(kept)} log-probs of the "
                f"learner and {sum(sizes.values())} sampled tokens; its groups have changed since"
            )
        start = sum(size for at, size in sizes.items() if at < number)
        own = kept[start : start + sizes[number]]
        return None if np.isnan(own).all() else own

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        model = self.config(0).model.path
        if model is None:
            raise UserError(f"{self.folder / 'config.yaml'} has no model.path, which has the tokenizer")
        return Tokenizer(hub.directory(model, weights=False))

    def _episodes(
        self, group: Group, found: Advantages | None, learner: Float32 | None
    ) -> tuple[tuple[TracedStep, ...], ...]:
        places = [Place(k, t) for k, e in enumerate(group.trajectories) for t in range(len(e.steps))]
        steps = _steps(group)
        scores = _by_step(steps, learner)
        anchors = _anchors(steps, found)
        members = defaultdict[int, list[Place]](list)
        for place, anchor in zip(places, anchors, strict=True):
            members[anchor].append(place)
        traced: list[list[TracedStep]] = [[] for _ in group.trajectories]
        columns = zip(places, steps, anchors, scores, strict=True)
        for row, (place, step, anchor, scored) in enumerate(columns):
            prompt = self._tokenizer.spelled(step.prompt_ids.tolist())
            tokens = tuple(self._tokenizer.tokens(step.response_ids.tolist()))
            values = found and (float(found.episode[row]), float(found.step[row]), float(found.total[row]))
            traced[place.episode].append(
                TracedStep(
                    place, step, prompt, tokens, values, anchor, tuple(members[anchor]), scored,
                    _continued(group.trajectories[place.episode].steps, place.step),
                )
            )  # fmt: skip
        return tuple(map(tuple, traced))


_UNSCORED = "no log-probs of the learner: it has not learned from this group, or did before they were kept"
_SCORED = {  # by objective.old_logprob
    "learner": "the learner's log-probs are those of the old policy, to which the ratio is",
    "engine": "the ratio is to the engine's log-probs; the learner's are of the first update of each step",
}


def _steps(group: Group) -> list[Step]:
    return [step for episode in group.trajectories for step in episode.steps]


def _continued(steps: Sequence[Step], at: int) -> int | None:
    """The step before `at` whose conversation it continues; an agent may have several at once."""
    prompt = steps[at].prompt_ids
    for earlier in range(at - 1, -1, -1):
        said = np.concatenate([steps[earlier].prompt_ids, steps[earlier].response_ids])
        if len(said) < len(prompt) and (prompt[: len(said)] == said).all():
            return earlier
    return None


def _by_step(steps: Sequence[Step], learner: Float32 | None) -> list[Float32 | None]:
    """The learner's log-probs of each step, None for one that was not computed."""
    if learner is None:
        return [None] * len(steps)
    parts = np.split(learner, np.cumsum([len(step.response_ids) for step in steps])[:-1])
    return [None if np.isnan(part).all() else part for part in parts]


def _rows(advantages: Advantages, chosen: Bool) -> Advantages:
    return Advantages(
        total=advantages.total[chosen],
        episode=advantages.episode[chosen],
        step=advantages.step[chosen],
        step_group=advantages.step_group[chosen],
    )


def _anchors(steps: Sequence[Step], found: Advantages | None) -> list[int]:
    """The anchor group of each step, from 0; by equal states if the estimator has none."""
    keys: Iterator[object] = (step.anchor for step in steps)
    if found is not None and len(steps) and found.step_group[0] >= 0:
        keys = iter(found.step_group.tolist())
    numbers: Mapping[object, int] = defaultdict(lambda: len(numbers))
    return [numbers[key] for key in keys]
