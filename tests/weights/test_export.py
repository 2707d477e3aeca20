"""On every rank of every layout, load and export are inverse; native checkpoints and imports are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from gigpo_mega.storage.manifest import LEARNER
from gigpo_mega.weights import convert, verify
from gigpo_mega.weights.huggingface import HFReader
from gigpo_mega.weights.sharded import Grid
from tests.programs import results
from tests.tiny import write_policy

pytestmark = pytest.mark.distributed
LAYOUTS = ("2x2x1", "1x2x2", "2x1x1")
POLICIES: dict[str, dict[str, Any]] = {
    "qwen2_tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3_untied": {"family": "qwen3", "tie_word_embeddings": False, "head_dim": 12},
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What the ranks left and printed; their checkpoint is cut for a layout that is none of theirs."""
    root = tmp_path_factory.mktemp("export")
    for name, options in POLICIES.items():
        hf = write_policy(root / name / "hf", num_hidden_layers=4, **options)
        convert.import_hf(hf, root / name / "checkpoint", Grid(1, 4))
    return root, results(4, "tests/weights/export_ranks.py", str(root), *LAYOUTS)


def test_every_rank_exports_what_was_loaded(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    _, rows = launched
    assert {(row["layout"], row["policy"]) for row in rows} == {(x, p) for x in LAYOUTS for p in POLICIES}
    for row in rows:
        assert row["wrong"] == [[[], []]] * 4  # by rank: from Hugging Face, from the checkpoint


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_ranks_save(
    layout: str, policy: str, launched: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder = launched[0] / policy
    assert verify.different(folder / f"saved_{layout}", folder / "checkpoint") == []
    assert verify.different(folder / "hf", folder / f"native_{layout}") == []
    convert.export_hf(folder / f"native_{layout}", folder / "hf", tmp_path / "back")
    original, back = HFReader(folder / "hf"), HFReader(tmp_path / "back")
    assert sorted(back.names) == sorted(original.names)
    assert all(verify.same_bits(back.tensor(name), original.tensor(name)) for name in original.names)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_import_is_cut_as_megatron_cuts(
    layout: str, policy: str, launched: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder = launched[0] / policy
    convert.import_hf(folder / "hf", tmp_path / "out", Grid(*map(int, layout.split("x"))))
    ours = FileSystemReader(tmp_path / "out" / LEARNER)
    native = FileSystemReader(folder / f"native_{layout}" / LEARNER)
    assert len(tensors(ours)) > 8
    assert tensors(ours) == tensors(native)
    assert len(ranks(ours)) == int(layout[0]) * int(layout[2])
    assert ranks(ours) == ranks(native)


def tensors(checkpoint: FileSystemReader) -> dict[str, Any]:
    """Of every tensor: its size, type, and where its chunks begin and how large they are."""
    return {
        key: (found.size, found.properties.dtype, sorted((c.offsets, c.sizes) for c in found.chunks))
        for key, found in checkpoint.read_metadata().state_dict_metadata.items()
        if isinstance(found, TensorStorageMetadata)
    }


def ranks(checkpoint: FileSystemReader) -> set[frozenset[Any]]:
    """The chunks that each rank wrote."""
    written: dict[str, set[Any]] = {}
    for index, place in checkpoint.read_metadata().storage_data.items():
        if index.offset is not None and "_extra_state" not in index.fqn:
            written.setdefault(place.relative_path.split("_")[2], set()).add((index.fqn, index.offset))
    return {frozenset(chunks) for chunks in written.values()}
