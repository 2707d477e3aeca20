"""The environment does what training relies on: `python -m pytest`."""

from NAME import ACTIONS, KIND, Courier, Tasks, expert


def test_a_task_always_starts_the_same_way():
    for task in Tasks().tasks("train"):
        assert Courier().reset(task) == Courier().reset(task)


def test_a_delivery_is_rewarded_once_and_ends_the_episode():
    task = Tasks().tasks("train")[0]
    shown = expert(task, seed=0, detour=0.0, max_steps=16, options={})
    courier = Courier()
    courier.reset(task)
    steps = [courier.step(action) for _, action in shown.turns]
    assert [step.reward for step in steps] == [0.0] * (len(steps) - 1) + [1.0]
    assert steps[-1].done
    assert steps[-1].success


def test_what_is_no_action_is_invalid_and_changes_nothing():
    courier = Courier()
    seen = courier.reset(Tasks().tasks("train")[0])
    transition = courier.step("fly")
    assert (transition.valid, transition.observation) == (False, seen)
    assert all(courier.step(action).valid for action in ACTIONS)


def test_no_held_out_task_is_trained_on():
    train, valid = ({task.id for task in Tasks().tasks(split)} for split in ("train", "valid"))
    assert train.isdisjoint(valid)
    assert KIND.environment is Courier
