"""Collections in virtual time: what a closed form says of them, and what the fleet is for."""

from __future__ import annotations

import asyncio

import pytest

from gigpo_mega.rollout.engines.base import Sampling
from tools.bench.simulation import (
    Service,
    SimulatedEngine,
    Training,
    VirtualLoop,
    Workload,
    simulate,
    train,
)

SERVICE = Service(prefill=1000.0, decode=0.01, share=0.0, cache=100_000)
EQUAL = Workload(
    episodes=8, steps=4.0, spread=0.0, first_prompt=100, observation=20, answer=10, think=0.5
)  # fmt: skip


def test_one_episode_takes_the_sum_of_its_parts() -> None:
    found = simulate(1, Workload(episodes=1, steps=1.0, spread=0.0, first_prompt=500), SERVICE, 1)
    drawn = Workload(episodes=1, steps=1.0, spread=0.0, first_prompt=500).draw(0)
    decoding = 0.5 + drawn.answers[0, 0] * 0.01
    assert found["seconds"] == pytest.approx(decoding + drawn.seconds[0, 0], abs=1e-3)
    assert found["idle_share"] == pytest.approx(1 - decoding / found["seconds"], abs=1e-3)
    assert found["cached_share"] == 0


def test_a_conversation_finds_all_but_its_last_observation_in_the_cache() -> None:
    drawn = EQUAL.draw(0)
    prompts = cached = 0
    for episode in range(EQUAL.episodes):
        prompt = EQUAL.first_prompt
        for step in range(4):
            prompts += prompt
            answer = int(drawn.answers[episode, step])
            cached += prompt + answer if step < 3 else 0  # what the next call finds
            prompt += answer + EQUAL.observation
    found = simulate(2, EQUAL, SERVICE, 8)
    assert found["cached_share"] == pytest.approx(cached / prompts, abs=1e-4)
    assert found["moves"] == 0


def test_a_cache_that_holds_one_conversation_is_of_no_use_to_eight() -> None:
    small = Service(prefill=1000.0, decode=0.01, share=0.0, cache=200)
    assert simulate(1, EQUAL, small, 8)["cached_share"] < 0.3
    assert simulate(1, EQUAL, SERVICE, 8)["cached_share"] > 0.7


def test_waiting_for_the_slowest_takes_longer() -> None:
    work = Workload(episodes=64, think=0.3)
    lock_step = simulate(1, work, Service(), 64, lock_step=True)
    assert lock_step["seconds"] > 2 * simulate(1, work, Service(), 64)["seconds"]


def test_every_answer_comes_although_an_engine_fails() -> None:
    whole = simulate(4, Workload(episodes=64, steps=40.0), Service(), 64)
    failed = simulate(4, Workload(episodes=64, steps=40.0), Service(), 64, failures=1)
    assert whole["seconds"] > 60  # it fails on the way
    assert failed["moves"] > whole["moves"]
    assert failed["cached_share"] < whole["cached_share"]


@pytest.mark.parametrize("seed", range(3))
def test_groups_played_ahead_take_the_place_of_the_longest(seed: int) -> None:
    whole = Workload(episodes=256, group=4)
    plain = simulate(8, whole, Service(), 256, seed=seed)
    ahead = simulate(8, Workload(episodes=256, group=4, ahead=8), Service(), 288, seed=seed)
    assert ahead["seconds"] < 0.95 * plain["seconds"]
    assert ahead["idle_share"] < 0.5 * plain["idle_share"]
    assert ahead["steps"] < plain["steps"]  # the price: long episodes are in fewer of the groups
    assert plain["steps"] == pytest.approx(whole.draw(seed).steps.mean(), abs=1e-4)


SMALL = Workload(episodes=64)


def trained(max_staleness: int, update: float = 20.0, iterations: int = 5) -> dict[str, float]:
    return train(2, SMALL, Service(), Training(max_staleness, update, iterations=iterations))


def test_learner_and_engines_that_take_turns_take_the_sum_of_their_times() -> None:
    found, alone = trained(0), trained(0, update=0.0)
    assert found["staleness"] == 0
    assert found["seconds"] == pytest.approx(alone["seconds"] + 20.0, rel=1e-3)
    assert found["learner_idle"] == pytest.approx(1 - 20.0 / found["seconds"], rel=1e-3)


def test_rollouts_ahead_hide_the_update_and_the_longest_episodes() -> None:
    turns, ahead = trained(0), trained(1)
    rollout = turns["seconds"] - 20.0
    assert 20.0 < ahead["seconds"] < rollout
    assert ahead["engines_idle"] < turns["engines_idle"]
    assert 0 < ahead["staleness"] <= 1
    assert 1 < trained(2)["staleness"] <= 2


def test_new_weights_cost_the_prefixes_of_what_is_under_way() -> None:
    async def seconds(updates: int) -> float:
        engine, loop = SimulatedEngine(Service()), asyncio.get_running_loop()
        asking = asyncio.create_task(engine.generate(range(25_000), Sampling(max_new_tokens=10)))
        await asyncio.sleep(1.05)
        for _ in range(updates):
            engine.update(2.0)
        await asking
        return loop.time()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        plain = runner.run(seconds(0))
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(seconds(1)) == pytest.approx(plain + 2.0 + 1.0)
