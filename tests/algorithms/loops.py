"""The newer estimators in slow, plain Python: dictionaries instead of columns, one visit after the other.

Each returns (A, A_E, A_S) of every row by the equations of the default preset; those with `official` also
what the official code computes on the step level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tables import Episode, discounted, episode_level, penalized, relative, response

from gigpo_mega.config import AdvantageConfig

Levels = list[tuple[float, float, float]]
Visit = tuple[int, str]  # task and state


def visits(episodes: Sequence[Episode], values: Sequence[Sequence[float]]) -> dict[Visit, list[float]]:
    """The values of all visits of each state."""
    found: dict[Visit, list[float]] = {}
    for one, of_one in zip(episodes, values, strict=True):
        for state, value in zip(one.states, of_one, strict=True):
            found.setdefault((one.group, state), []).append(value)
    return found


def within_task(episodes: Sequence[Episode], values: Sequence[Sequence[float]]) -> dict[int, list[float]]:
    """The values of all steps of each task."""
    found: dict[int, list[float]] = {}
    for one, of_one in zip(episodes, values, strict=True):
        found.setdefault(one.group, []).extend(of_one)
    return found


def mean(values: Sequence[float]) -> float:
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def joined(episodes: Sequence[Episode], steps: Sequence[Sequence[float]], cfg: AdvantageConfig) -> Levels:
    """A = w_E A_E + omega A_S."""
    levels: Levels = []
    for at_episode, of_one in zip(episode_level(episodes, cfg), steps, strict=True):
        for at_step in of_one:
            total = cfg.episode_weight * at_episode + cfg.omega * at_step
            levels.append((total, at_episode, at_step))
    return levels


def hgpo(episodes: Sequence[Episode], cfg: AdvantageConfig, official: bool = False) -> Levels:
    if official:  # the penalty lowers the value of its own row alone
        raw = [discounted(e.rewards, cfg.gamma) for e in episodes]
        returns = [
            [r - (0 if valid else cfg.invalid_penalty) for r, valid in zip(values, e.valid, strict=True)]
            for e, values in zip(episodes, raw, strict=True)
        ]
    else:
        returns = [discounted(rewards, cfg.gamma) for rewards in penalized(episodes, cfg)]
    groups: dict[tuple[int, tuple[str, ...]], list[float]] = {}
    histories = [
        [[tuple(e.states[t - k + 1 : t + 1]) for k in range(1, min(t, cfg.history_length) + 2)]
         for t in range(len(e.states))]
        for e in episodes
    ]  # fmt: skip
    for one, of_one, values in zip(episodes, histories, returns, strict=True):
        for histories_of_step, value in zip(of_one, values, strict=True):
            for history in histories_of_step:
                groups.setdefault((one.group, history), []).append(value)
    levels: Levels = []
    for one, of_one, values in zip(episodes, histories, returns, strict=True):
        for histories_of_step, value in zip(of_one, values, strict=True):
            terms: list[tuple[float, float]] = []
            for history in histories_of_step:
                members, k = groups[one.group, history], len(history)
                advantage = relative(value, members, cfg, ddof=0)
                if len(members) >= 2 and not (official and advantage == 0):
                    terms.append((float(k + official) ** cfg.history_alpha, advantage))
            weights = math.fsum(w for w, _ in terms)
            step = math.fsum(w * a for w, a in terms) / weights if terms else 0.0
            levels.append((step, 0.0, step))
    return levels


def g2po(episodes: Sequence[Episode], cfg: AdvantageConfig) -> Levels:
    scores = [math.fsum(e.rewards) for e in episodes]
    values = {
        visit: mean(found)
        for visit, found in visits(
            episodes,
            [[cfg.gamma ** (len(e.states) - t) * score for t in range(len(e.states))]
             for e, score in zip(episodes, scores, strict=True)],
        ).items()
    }  # fmt: skip
    later = [
        [*(values[e.group, state] for state in e.states[1:]), score]
        for e, score in zip(episodes, scores, strict=True)
    ]
    led_to = [
        [v - (0 if valid else cfg.invalid_penalty) for v, valid in zip(of_one, e.valid, strict=True)]
        for e, of_one in zip(episodes, later, strict=True)
    ]
    gains = [
        [v - values[e.group, state] for v, state in zip(of_one, e.states, strict=True)]
        for e, of_one in zip(episodes, later, strict=True)
    ]
    local, whole = visits(episodes, led_to), within_task(episodes, gains)
    steps = [
        [relative(v, local[e.group, state], cfg) + relative(gain, whole[e.group], cfg)
         for v, gain, state in zip(of_one, of_gains, e.states, strict=True)]
        for e, of_one, of_gains in zip(episodes, led_to, gains, strict=True)
    ]  # fmt: skip
    return joined(episodes, steps, cfg)


def graph_distances(episodes: Sequence[Episode]) -> dict[Visit, int]:
    """Steps to the goal, by relaxing every edge until nothing changes; the goal is the state ""."""
    edges: set[tuple[Visit, Visit]] = set()
    for one in episodes:
        later = [*one.states[1:], "" if one.won else one.final]
        edges |= {((one.group, a), (one.group, b)) for a, b in zip(one.states, later, strict=True)}
    found: dict[Visit, int] = {(one.group, ""): 0 for one in episodes}
    changed = True
    while changed:
        changed = False
        for tail, head in edges:
            if head in found and found[head] + 1 < found.get(tail, len(edges) + 2):
                found[tail], changed = found[head] + 1, True
    farthest = {task: max(d for (t, _), d in found.items() if t == task) for task, _ in found}
    states = {state for edge in edges for state in edge}
    return {(task, state): found.get((task, state), farthest[task] + 1) for task, state in states}


def graphgpo(episodes: Sequence[Episode], cfg: AdvantageConfig) -> Levels:
    distance = graph_distances(episodes)
    values: list[list[float]] = []
    for one in episodes:
        later = [*one.states[1:], "" if one.won else one.final]
        of_one: list[float] = []
        for state, after, valid in zip(one.states, later, one.valid, strict=True):
            hops = distance[one.group, after] + 1
            hops -= distance[one.group, state] if cfg.distance == "relative" else 0
            of_one.append(cfg.goal_reward * cfg.gamma**hops - (0 if valid else cfg.invalid_penalty))
        values.append(of_one)
    groups = visits(episodes, values)
    steps = [
        [relative(v, groups[e.group, state], cfg) for v, state in zip(of_one, e.states, strict=True)]
        for e, of_one in zip(episodes, values, strict=True)
    ]
    return joined(episodes, steps, cfg)


def gagpo(episodes: Sequence[Episode], cfg: AdvantageConfig) -> Levels:
    rewards = penalized(episodes, cfg)
    returns = [discounted(of_one, cfg.gamma) for of_one in rewards]
    values = {visit: mean(found) for visit, found in visits(episodes, returns).items()}
    advantages: list[list[float]] = []
    for one, of_one in zip(episodes, rewards, strict=True):
        later = [*(values[one.group, state] for state in one.states[1:]), 0.0]
        deltas = [
            r + cfg.gamma * v - values[one.group, state]
            for r, v, state in zip(of_one, later, one.states, strict=True)
        ]
        advantages.append(discounted(deltas, cfg.gamma * cfg.gae_lambda))
    whole = within_task(episodes, advantages)
    steps = [
        [relative(a, whole[e.group], cfg) for a in of_one]
        for e, of_one in zip(episodes, advantages, strict=True)
    ]
    return [(step, 0.0, step) for of_one in steps for step in of_one]


def reinforce_plus_plus_baseline(episodes: Sequence[Episode], cfg: AdvantageConfig) -> Levels:
    scores = [math.fsum(rewards) for rewards in penalized(episodes, cfg)]
    tokens: list[float] = []
    centered: list[float] = []
    for one, score in zip(episodes, scores, strict=True):
        value = score - mean([s for e, s in zip(episodes, scores, strict=True) if e.group == one.group])
        for t in range(len(one.states)):
            centered.append(value)
            tokens += [value] * len(response(t))
    middle = mean(tokens)
    deviation = math.sqrt(math.fsum((x - middle) ** 2 for x in tokens) / max(len(tokens) - 1, 1))
    levels = [(x - middle) / (deviation + cfg.epsilon) for x in centered]
    return [(value, value, 0.0) for value in levels]
