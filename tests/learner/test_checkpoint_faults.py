"""Disks that fill up, files that were damaged: one line for the user, and the last good checkpoint holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import checkpoint, shards, torch_adam
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from tests.helpers import smallest_files
from tests.learner import ranks
from tests.tiny import write_policy

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """A learner that has made one iteration."""
    cfg = ranks.config()
    layout = parallel.initialize(cfg.parallel, seed=0)
    policy = write_policy(tmp_path_factory.mktemp("policy"))
    made = ranks.learner(ranks.Place(cfg, policy, policy, layout))
    ranks.iterate(made, cfg, 0)
    yield made
    parallel.shutdown()


def saved(learner: Learner, folder: Path, iterations: int, keep: int = 3) -> Checkpoints:
    """Checkpoints of the first `iterations` iterations, all of the same weights."""
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=keep))
    for iteration in range(1, iterations + 1):
        learner.iteration = iteration
        checkpoints.save(learner)
    return checkpoints


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_good(learner: Learner, folder: Path, iteration: int) -> None:
    """The checkpoint is the newest, alone, and gives back the weights."""
    assert names(folder) == [f"iteration_{iteration:06d}"]
    checkpoints = Checkpoints(folder, CheckpointConfig())
    assert checkpoints.resumable(learner.layout) == iteration
    before = {name: tensor.clone() for name, tensor in learner.policy.named_parameters()}
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.zero_()
    checkpoints.load(learner, iteration)
    assert learner.iteration == iteration
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.policy.named_parameters())


def test_a_disk_without_room_is_seen_before_writing(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(learner, tmp_path, 1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**18))
    learner.iteration = 2
    with pytest.raises(UserError, match=r"a checkpoint needs 0\.4 MiB \(0\.2 MiB free\)") as error:
        checkpoints.save(learner)
    assert str(tmp_path) in one_line(error)
    check_good(learner, tmp_path, 1)


@contextmanager
def no_space(folder: Path, learner: Learner) -> Iterator[None]:
    """A disk that passes the check of free space and is full a little later: other programs write too."""
    filler = folder / "filler"
    free = shutil.disk_usage(folder).free - shards.size(learner) - 2**14
    filler.write_bytes(bytes(free))
    yield
    filler.unlink()


@contextmanager
def refused(folder: Path, learner: Learner) -> Iterator[None]:
    """Files that may not grow, as mounting a small disk takes privileges."""
    with smallest_files(50_000):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill_up(
    learner: Learner, folder: Path, full: Callable[[Path, Learner], AbstractContextManager[None]]
) -> str:
    """What the user reads when the disk refuses the second checkpoint; the first must hold."""
    checkpoints = saved(learner, folder, 1)
    learner.iteration = 2
    with full(folder, learner), pytest.raises(UserError, match="free space or change output") as error:
        checkpoints.save(learner)
    check_good(learner, folder, 1)
    saved(learner, folder, 2, keep=1)
    check_good(learner, folder, 2)
    return one_line(error)


def test_a_disk_that_fills_up_while_writing(learner: Learner, small_disk: Path) -> None:
    assert "(0.0 MiB free)" in fill_up(learner, small_disk, no_space)


def test_a_disk_that_refuses_a_file(learner: Learner, tmp_path: Path) -> None:
    assert "iteration_000002.partial" in fill_up(learner, tmp_path, refused)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> str:
    path = largest(folder)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    return f"learner/{path.name} has 1000 bytes of {size}"


def remove(folder: Path) -> str:
    path = largest(folder)
    path.unlink()
    return f"learner/{path.name} is missing"


def cut_description(folder: Path) -> str:
    (folder / "state.json").write_text('{"iteration": ')
    return "state.json: JSONDecodeError: Expecting value: line 1 column 15 (char 14)"


@pytest.mark.parametrize("damage", [truncate, remove, cut_description])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], str], learner: Learner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(learner, tmp_path, 3)
    what = damage(tmp_path / "iteration_000003")
    assert checkpoints.resumable(learner.layout) == 2
    path = tmp_path / "iteration_000003"
    assert capsys.readouterr().err == f"{path} is damaged ({what}); trying the one before it\n"
    with pytest.raises(UserError, match="if it is damaged, move it away to resume from an") as error:
        checkpoints.load(learner, 3)
    assert "iteration_000003" in one_line(error)
    checkpoints.load(learner, 2)
    for iteration in (1, 2):
        damage(tmp_path / f"iteration_{iteration:06d}")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged; choose another output"):
        checkpoints.resumable(learner.layout)


def test_every_flipped_bit_is_found_and_named(
    learner: Learner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(learner, tmp_path, 2)
    folder = tmp_path / "iteration_000002"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "state.json"]
    assert len(files) >= 4  # shards, their description, what is common to all, random states
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        assert checkpoints.resumable(learner.layout) == 1
        name = path.relative_to(folder)
        what = f"{folder} is damaged ({name} has another SHA-256 than was written)"
        assert capsys.readouterr().err == f"{what}; trying the one before it\n"
        path.write_bytes(whole)
    assert checkpoints.resumable(learner.layout) == 2


def test_a_file_of_other_content_is_refused(learner: Learner, tmp_path: Path) -> None:
    checkpoints = saved(learner, tmp_path, 1)
    path = largest(tmp_path / "iteration_000001")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match="if it is damaged, move it away to resume from an") as error:
        checkpoints.load(learner, 1)
    one_line(error)


def test_one_written_in_the_background_appears_when_it_is_complete(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, free = threading.Event(), threading.Event()
    write = shards.Writing._write

    def slow(self: shards.Writing, *arguments: Any) -> Any:
        started.set()
        assert free.wait(60)
        return write(self, *arguments)

    monkeypatch.setattr(shards.Writing, "_write", slow)
    # megatron itself copies what the distributed optimizer holds, but not the tensors of a plain one.
    cfg = ranks.config(distributed_optimizer=False)
    made = ranks.learner(ranks.Place(cfg, write_policy(tmp_path / "policy"), tmp_path, learner.layout))
    ranks.iterate(made, cfg, 0)
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, CheckpointConfig(background=True))
    checkpoints.save(made)
    assert started.wait(60)
    checkpoints.poll(made)
    assert names(folder) == ["iteration_000001.partial"]
    before = {name: tensor.clone() for name, tensor in made.policy.named_parameters()}
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 1  # training goes on
    free.set()
    checkpoints.finish(made)
    checkpoints.load(made, checkpoints.resumable(learner.layout))
    assert all(torch.equal(before[name], tensor) for name, tensor in made.policy.named_parameters())


def test_what_came_from_a_gpu_is_not_copied_again(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in host memory twice."""
    fetched: list[torch.Tensor] = []
    staged: list[torch.Tensor] = []
    write = shards.Writing._write

    def fetch(buckets: list[Any], non_blocking: bool) -> list[Any]:
        """As megatron's on a GPU, whose tensors become others of the host."""
        found: list[Any] = []
        for path, name, (blobs, tensors) in buckets:
            found.append((path, name, (blobs, [(item, tensor.clone()) for item, tensor in tensors])))
            fetched.extend(tensor for _, tensor in found[-1][2][1])
        return found

    def noting(self: shards.Writing, index: int, bucket: Any) -> Any:
        staged.extend(tensor for _, tensor in bucket[2][1])
        return write(self, index, bucket)

    monkeypatch.setattr(filesystem_async.FileSystemWriterAsync, "preload_tensors", staticmethod(fetch))
    monkeypatch.setattr(shards.Writing, "_write", noting)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(background=True))
    checkpoints.save(learner)
    checkpoints.finish(learner)
    assert len(staged) > 10
    assert {id(tensor) for tensor in staged} == {id(tensor) for tensor in fetched}


def test_a_checkpoint_of_fused_adam_is_refused_without_it(learner: Learner, tmp_path: Path) -> None:
    """It was called damaged."""
    checkpoints = saved(learner, tmp_path, 1)
    described = tmp_path / "iteration_000001" / "state.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"optimizer_steps": None}))
    before = {name: tensor.clone() for name, tensor in learner.policy.named_parameters()}
    message = "was written with the Adam of Transformer Engine or Apex, .* install one of them here"
    with pytest.raises(UserError, match=message) as error:
        checkpoints.load(learner, 1)
    assert "damaged" not in one_line(error)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.policy.named_parameters())


def test_what_a_killed_run_left_behind_goes(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / "iteration_000009.partial" / "learner").mkdir(parents=True)
    saved(learner, tmp_path, 1)
    assert names(tmp_path) == ["iteration_000001"]


def test_a_new_run_starts_at_zero(learner: Learner, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.resumable(learner.layout) == 0
    assert checkpoints.newest() is None
    assert checkpoints.oldest() is None


def test_a_learner_that_was_never_updated(learner: Learner, tmp_path: Path) -> None:
    fresh = Learner(ranks.config(), learner.shape, learner.layout)
    saved(fresh, tmp_path, 1).load(learner, 1)
    assert torch_adam.step_count(learner.optimizer) == 0
    for ours, theirs in zip(fresh.policy.parameters(), learner.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_old_checkpoints_go(learner: Learner, tmp_path: Path) -> None:
    checkpoints = saved(learner, tmp_path, 4, keep=2)
    assert names(tmp_path) == ["iteration_000003", "iteration_000004"]
    learner.iteration = 3  # a run that fell back to the third: what is newer stays until it is written again
    checkpoints.save(learner)
    assert names(tmp_path) == ["iteration_000003", "iteration_000004"]
