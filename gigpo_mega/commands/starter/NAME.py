"""A courier on a street of six houses: take the parcel where it lies, give it where it is wanted."""

import random

from envs import Demonstration, EnvironmentKind, Observation, Task, Transition

HOUSES = 6
ACTIONS = ("left", "right", "take", "give")


class Courier:
    """One episode at a time; an instance is reused for many."""

    def reset(self, task: Task) -> Observation:
        """Start `task`: the same task always starts the same way."""
        self.place, self.parcel, self.customer = map(int, task.source.split())
        self.carries = self.delivered = False
        return self.seen()

    def step(self, action: str) -> Transition:
        """What the policy's text does; whatever is no action is invalid, and changes nothing."""
        if action in ("left", "right"):
            self.place = min(max(self.place + (1 if action == "right" else -1), 0), HOUSES - 1)
        elif action == "take" and self.place == self.parcel:
            self.carries = True
        elif action == "give" and self.carries and self.place == self.customer:
            self.delivered = True
        return Transition(
            self.seen(), self.reward(), done=self.delivered, success=self.delivered, valid=action in ACTIONS
        )

    def reward(self) -> float:
        """The reward of the step just taken: about 1 for a success suits the default settings."""
        return float(self.delivered)

    def seen(self) -> Observation:
        """The prompt's text, and the state: steps from equal states are compared with one another (A_S)."""
        goal, name = (self.customer, "customer") if self.carries else (self.parcel, "parcel")
        where = "here" if self.place == goal else "right" if self.place < goal else "left"
        state = f"{self.place} {self.parcel} {self.customer} {self.carries}"
        return Observation(f"The {name} is {where}.", ACTIONS, instruction="deliver the parcel", state=state)


class Tasks:
    """The tasks of each split; those of `valid` are never trained on."""

    def tasks(self, split: str) -> list[Task]:
        """All tasks of `split`, each with an id, a kind to report by, and what `reset` reads."""
        every = [(a, b, c) for a in range(HOUSES) for b in range(HOUSES) for c in range(HOUSES) if b != c]
        chosen = [task for task in every if (sum(task) % 5 == 0) == (split == "valid")]
        return [Task(f"{a}-{b}-{c}", "delivery", f"{a} {b} {c}") for a, b, c in chosen]


def expert(task: Task, *, seed: int, detour: float, max_steps: int, options: object) -> Demonstration:
    """An episode of the expert the first policy imitates; a fraction `detour` of its actions is random."""
    courier, rng, turns = Courier(), random.Random(seed), []
    seen = courier.reset(task)
    while not courier.delivered and len(turns) < max_steps:
        where = seen.text.rstrip(".").split()[-1]
        best = where if where != "here" else "give" if courier.carries else "take"
        turns.append((seen, rng.choice(ACTIONS) if rng.random() < detour else best))
        seen = courier.step(turns[-1][1]).observation
    return Demonstration(tuple(turns), courier.delivered)


KIND = EnvironmentKind(Courier, Tasks, expert)
