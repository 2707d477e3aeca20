"""The environments' benchmark: its numbers fit each other, on a few rooms."""

from __future__ import annotations

from tools import bench_envs, sokoban_speed


def test_sokoban_is_measured() -> None:
    record = sokoban_speed.bench(rooms=6, repeats=3, seed=0)
    assert 6 <= record["steps"] <= 6 * sokoban_speed.EPISODE
    assert record["steps_per_second"] > 1_000
    assert record["resets_per_second"] > record["resets_per_second_new"] > 10
    assert 0 < record["memory_kib_per_environment"] < 100


def test_memory_is_that_of_one_environment_without_what_is_shared() -> None:
    shared = bytearray(1 << 20)
    measured = bench_envs.memory_per_environment(lambda place: (shared, bytearray(10 * 1024)))
    assert 10 <= measured < 11
