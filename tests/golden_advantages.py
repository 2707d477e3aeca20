"""Recorded advantages of official code (`golden/README.md`), against ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.algorithms.anchors import anchor_key, similar_groups
from gigpo_mega.algorithms.estimators.rloo import leave_one_out
from gigpo_mega.algorithms.primitives import PRESETS, combine, means, returns, step_columns
from gigpo_mega.algorithms.transitions import Neighbors, distances, state_ids
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Bool, Float64, Int64, RowTable, Step
from kernels.advantage import StepColumns, relative
from kernels.advantage import returns as kernel_returns
from kernels.advantage.reference import moments
from kernels.anchor import group_ids

Case = dict[str, Any]
REFERENCE = PRESETS["reference"]
NORMALIZATION: dict[str, Any] = {"mean_norm": "mean", "mean_std_norm": "mean_std"}


def close(actual: ArrayLike, expected: ArrayLike) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.array(expected, dtype=np.float64), rtol=1e-5, atol=5e-6)


def close_advantage(case: Case, values: ArrayLike, expected: ArrayLike, rounding: Float64) -> None:
    """As `close`, with `rounding` [B] on top; if the recorded values are only noise, 0 is right."""
    actual, expected = np.asarray(values), np.array(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    if "check" in case:
        assert np.abs(actual).max() <= case["check"]["max_abs"]
        return
    allowed = 5e-6 + 1e-5 * np.abs(expected) + rounding.reshape(-1, *[1] * (expected.ndim - 1))
    error = np.abs(actual - expected)
    assert (error <= allowed).all(), f"off by {(error - allowed).max()} more than allowed"


def rounding(values: Float64, group: Int64, member: Bool, cfg: AdvantageConfig) -> Float64:
    """The reference's uncertainty [B]: a last place of its float32 group mean, over the group's deviation.

    Below the tolerance but for groups of nearly equal values, such as successes with and without a penalty.
    """
    stats = moments(values[member], group[member], int(group.max()) + 1)
    if cfg.normalization == "mean":
        return np.zeros(len(values))
    place = np.spacing(np.abs(stats.mean).astype(np.float32)).astype(np.float64)
    return np.where(stats.std > 0, place / (stats.std + cfg.epsilon), 0.0)[group]


def single(values: ArrayLike) -> Float64:
    """Numbers ("nan", "inf" and "-inf" included) as the reference read them: rounded to float32."""
    return np.array(values, dtype=np.float32).astype(np.float64)


def labels(names: list[str]) -> Int64:
    """Names -> 0, 1, 2, ... in order of first appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def time_steps(trajectory: Int64) -> Int64:
    """The reference takes the order of rows as time."""
    return np.array([np.count_nonzero(trajectory[:row] == trajectory[row]) for row in range(len(trajectory))])


def decode(state: Any) -> Any:
    """A state of the `step_group` format -> the value by whose equality the reference groups."""
    if isinstance(state, str):
        return state
    [(kind, value)] = state.items()
    if kind in ("list", "tuple"):
        return tuple(decode(item) for item in value)
    if kind == "dict":
        return tuple(sorted((key, decode(item)) for key, item in value.items()))
    if kind == "ndarray":
        return tuple(np.array(value["data"], dtype=value["dtype"]).flatten())
    return {"int": int, "float": float, "bool": bool}[kind](value)


def group_steps(inputs: Case) -> Int64:
    group = labels(inputs["index"])
    if inputs["enable_similarity"]:
        return similar_groups(inputs["anchor_obs"], group, inputs["similarity_thresh"])
    seen: dict[Any, str] = {}
    states = [
        state if isinstance(state, str) else seen.setdefault(decode(state), f"\0{len(seen)}")
        for state in inputs["anchor_obs"]
    ]
    keys = b"".join(anchor_key(state, task) for state, task in zip(states, inputs["index"], strict=True))
    return group_ids(group, np.frombuffer(keys, dtype=np.uint64).reshape(-1, 2))


def advantage_config(inputs: Case, **other: Any) -> AdvantageConfig:
    return AdvantageConfig(
        preset="reference",
        normalization=NORMALIZATION[inputs["mode"]],
        epsilon=inputs["epsilon"],
        omega=inputs["step_advantage_w"],
        similarity=inputs["similarity_thresh"] if inputs["enable_similarity"] else None,
        **other,
    )


def check_advantages(
    case: Case, actual: Advantages, score: Float64, discounted: Float64, mask: Float64, cfg: AdvantageConfig
) -> None:  # fmt: skip
    expected = case["outputs"]
    every = np.ones(len(score), dtype=np.bool_)
    assert actual.step_group.tolist() == expected["step_group"]
    of_episode = rounding(score, labels(case["inputs"]["index"]), every, cfg)
    of_step = rounding(discounted, actual.step_group, every, cfg)
    close_advantage(case, actual.episode, expected["episode_adv_per_row"], of_episode)
    close_advantage(case, actual.step, expected["step_adv_per_row"], of_step)
    of_total = of_episode + cfg.omega * of_step
    close_advantage(case, actual.total[:, None] * mask, expected["advantages"], of_total)


def gigpo_advantage(case: Case) -> None:
    inputs = case["inputs"]
    score, discounted = single(inputs["token_level_rewards"]).sum(axis=1), single(inputs["step_rewards"])
    cfg = advantage_config(inputs)
    anchors = group_steps(inputs)
    episode = relative(score, labels(inputs["index"]), REFERENCE.task_rule(cfg))
    actual = combine(episode, relative(discounted, anchors, REFERENCE.anchor_rule(cfg)), cfg.omega, anchors)
    check_advantages(case, actual, score, discounted, single(inputs["response_mask"]), cfg)


def recorded_rows(
    inputs: Case, reward: Float64, valid: Sequence[object] | Float64 | Bool, **columns: Any
) -> RowTable:
    """The rows of a case; `columns` are fields of Step, by row."""
    trajectory = labels([f"{pair}" for pair in zip(inputs["index"], inputs["traj_index"], strict=True)])
    count, ids = len(reward), np.zeros(0, dtype=np.int32)
    texts: list[str] = inputs.get("anchor_obs", [""] * count)
    columns.setdefault("response_ids", [ids] * count)
    steps = tuple(
        Step(
            prompt_ids=ids, logprobs=ids.astype(np.float32), versions=ids,
            reward=float(reward[row]), valid=bool(valid[row]),
            anchor=anchor_key(texts[row], inputs["index"][row]), observation=texts[row],
            **{name: column[row] for name, column in columns.items()},
        )
        for row in range(count)
    )  # fmt: skip
    return RowTable(
        group=labels(inputs["index"]),
        trajectory=trajectory,
        step=time_steps(trajectory),
        reward=reward,
        valid=np.array([step.valid for step in steps]),
        anchor=np.frombuffer(b"".join(step.anchor for step in steps), dtype=">u8")
        .astype(np.uint64)
        .reshape(-1, 2),
        steps=steps,
    )


def pipeline(case: Case) -> None:
    inputs, expected = case["inputs"], case["outputs"]
    rows = recorded_rows(inputs, single(inputs["env_rewards"]), inputs["is_action_valid"])
    penalty = inputs["invalid_action_penalty_coef"] or 0.0
    cfg = advantage_config(inputs, gamma=inputs["gamma"], invalid_penalty=penalty)
    score, discounted = returns(step_columns(rows, cfg), cfg.gamma, REFERENCE)
    length = np.array(inputs["response_len"])
    tokens = np.zeros((len(rows), inputs["max_response_len"]))
    tokens[np.arange(len(rows)), length - 1] = score
    free = replace(cfg, invalid_penalty=0.0)
    close(returns(step_columns(rows, free), cfg.gamma, REFERENCE)[1], expected["step_returns"])
    close(tokens, expected["token_level_rewards_after_penalty"])
    close(discounted, expected["step_rewards_after_penalty"])
    if "episode/valid_action_ratio" in expected.get("metrics", {}):
        close(rows.valid.mean(), expected["metrics"]["episode/valid_action_ratio"])
    mask = np.arange(tokens.shape[1]) < length[:, None]
    check_advantages(case, estimate(rows, cfg), score, discounted, mask.astype(np.float64), cfg)


def step_group(case: Case) -> None:
    expected = case["outputs"]
    actual = group_steps(case["inputs"])
    assert actual.tolist() == expected["step_group"]
    assert np.bincount(actual).tolist() == expected["group_sizes"]
    close(np.bincount(actual).mean(), expected["mean_group_size"])


def discounting(case: Case) -> None:
    inputs, expected = case["inputs"], case["outputs"]["returns"]
    reward, trajectory = single(inputs["rewards"]), labels(inputs["traj_index"])
    one = StepColumns(reward, 0 * reward, trajectory, trajectory, time_steps(trajectory))
    for gamma, values in zip(inputs["gammas"], expected, strict=True):
        close(kernel_returns(one, gamma)[1], values)


def whitened(values: Float64, mask: Float64) -> Float64:
    """REINFORCE++ (verl's masked_whiten): zero mean and unit variance over the tokens."""
    tokens = values[:, None] * mask
    count = mask.sum()
    mean = tokens.sum() / count
    variance = (np.square(tokens - mean) * mask).sum() / (count - 1)
    return (tokens - mean) / np.sqrt(variance + 1e-8) * mask


def outcome_advantages(case: Case) -> None:
    inputs = case["inputs"]
    score, mask = single(inputs["token_level_rewards"]).sum(axis=1), single(inputs["response_mask"])
    pairs = [f"{pair}" for pair in zip(inputs["index"], inputs["traj_index"], strict=True)]
    first = time_steps(labels(pairs)) == 0
    for name, expected in case["outputs"].items():
        member = first if name.endswith("cross0") else np.ones_like(first)
        assert name.startswith(("rfpp_baseline_cross", "rloo_cross", "grpo_std", "gigpo_episode_std")), name
        cfg = AdvantageConfig(
            preset="reference",
            epsilon=inputs["epsilon"],
            estimator="rloo" if name.startswith("rloo") else "grpo",
            normalization="mean_std" if "_std1" in name else "mean",
        )
        group = labels(inputs["index"])
        rule = leave_one_out(cfg) if cfg.estimator == "rloo" else REFERENCE.task_rule(cfg)
        values = relative(score, group, rule, member)
        actual = whitened(values, mask) if name.startswith("rfpp") else values[:, None] * mask
        close_advantage(case, actual, expected, rounding(score, group, member, cfg))
    check_reinforce_plus_plus(case)


def check_reinforce_plus_plus(case: Case) -> None:
    """The estimator on whole episodes: a row whose score is 0.1 less than 0 or 10 was invalid."""
    inputs = case["inputs"]
    mask = single(inputs["response_mask"])
    score = single(inputs["token_level_rewards"]).sum(axis=1)
    tokens = [np.zeros(int(count), dtype=np.int32) for count in mask.sum(axis=1)]
    outcome = score.round(-1)
    rows = recorded_rows(inputs, at_the_end(inputs, outcome), score > outcome - 0.05, response_ids=tokens)
    actual = estimate(rows, AdvantageConfig(estimator="reinforce_plus_plus_baseline", preset="reference"))
    close(actual.total[:, None] * mask, case["outputs"]["rfpp_baseline_cross1"])


def at_the_end(inputs: Case, outcome: ArrayLike) -> Float64:
    """Rewards [B] that are the episode's `outcome` [B] on its last row and 0 on the others."""
    return np.where(lasts(inputs), np.array(outcome, dtype=np.float64), 0.0)


def lasts(inputs: Case) -> Bool:
    """Whether each row is its trajectory's last, [B]."""
    pairs = list(zip(inputs["index"], inputs["traj_index"], strict=True))
    return np.array([pair not in pairs[row + 1 :] for row, pair in enumerate(pairs)])


def hgpo_advantage(case: Case) -> None:
    inputs = case["inputs"]
    assert not inputs["base_group"]
    mask, score = single(inputs["response_mask"]), single(inputs["token_level_rewards"]).sum(axis=1)
    rows = recorded_rows(inputs, at_the_end(inputs, score), np.ones(len(score)))
    cfg = AdvantageConfig(
        estimator="hgpo", preset="reference", normalization=NORMALIZATION[inputs["mode"]],
        epsilon=inputs["epsilon"], history_length=inputs["history_length"],
        history_alpha=inputs["length_weight_alpha"], gamma=0.95,
    )  # fmt: skip
    close(returns(step_columns(rows, cfg), 0.95, REFERENCE)[1], inputs["step_rewards"])
    close(estimate(rows, cfg).total[:, None] * mask, case["outputs"]["advantages"])


def graph_config(case: Case, mode: str, **options: Any) -> AdvantageConfig:
    inputs = case["inputs"]
    return AdvantageConfig(
        estimator=case["kind"], preset="reference", normalization=NORMALIZATION[mode], gamma=inputs["gamma"],
        epsilon=inputs["epsilon"], omega=inputs["step_advantage_w"],
        invalid_penalty=inputs["invalid_action_penalty_coef"] or 0.0, **options,
    )  # fmt: skip


def check_levels(actual: Advantages, groups: list[int], expected: Case) -> None:
    assert actual.step_group.tolist() == groups
    for name in ("episode", "step", "total"):
        close(getattr(actual, name), expected[f"{name}_adv_per_row"])


def g2po(case: Case) -> None:
    inputs, expected = case["inputs"], case["outputs"]
    rows = recorded_rows(inputs, at_the_end(inputs, inputs["episode_rewards"]), inputs["is_action_valid"])
    steps = step_columns(rows, AdvantageConfig(backend="numpy"))
    neighbors, groups = Neighbors.of(steps), np.array(expected["step_group"])
    won = np.array(inputs["episode_rewards"]) == inputs["success_reward"]
    assert neighbors.after(groups, np.where(won, -1, -2)).tolist() == expected["next_group"]
    visits = inputs["gamma"] ** neighbors.remaining * np.array(inputs["episode_rewards"])
    close(means(visits, groups), expected["group_value"])
    for mode in inputs["modes"]:
        actual = estimate(rows, graph_config(case, mode))
        check_levels(actual, expected["step_group"], expected[mode])


def graphgpo(case: Case) -> None:
    """The recorded state after a successful last step is the text "success"; our goal has no text."""
    inputs, expected = case["inputs"], case["outputs"]
    rewards = np.array(inputs["episode_rewards"])
    after = [anchor_key(text, task) for text, task in zip(inputs["next_obs"], inputs["index"], strict=True)]
    rows = recorded_rows(
        inputs, at_the_end(inputs, rewards), inputs["is_action_valid"],
        next_anchor=after, next_observation=inputs["next_obs"],
    )  # fmt: skip
    similarity = inputs["similarity_thresh"] if inputs["enable_similarity"] else None
    cfg = AdvantageConfig(backend="numpy", similarity=similarity)
    before, later = state_ids(rows, step_columns(rows, cfg), cfg)
    goal = int(max(before.max(), later.max())) + 1
    later = np.where(lasts(inputs) & (rewards > 0), goal, later)
    hops = distances(before, later, rows.group, goal)
    assert hops[before].tolist() == expected["distance"]
    assert hops[later].tolist() == expected["next_distance"]
    for distance, found in (("absolute", expected["normalize0"]), ("relative", expected["normalize1"])):
        exponent = hops[later] + (0 if distance == "absolute" else 1 - hops[before])
        close(10.0 * inputs["gamma"] ** exponent, found["step_returns"])
        for mode in inputs["modes"]:
            options = {"similarity": similarity, "distance": distance}
            cfg = graph_config(case, mode, **options, episode_weight=inputs["episode_advantage_w"])
            check_levels(estimate(rows, cfg), expected["step_group"], found[mode])


ADVANTAGES: dict[str, Callable[[Case], None]] = {
    "gigpo_advantage": gigpo_advantage,
    "pipeline": pipeline,
    "step_group": step_group,
    "step_returns": discounting,
    "outcome_advantages": outcome_advantages,
    "hgpo_advantage": hgpo_advantage,
    "g2po": g2po,
    "graphgpo": graphgpo,
}
