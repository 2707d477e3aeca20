"""A round trip is the identity at every layout; what cannot be converted is one line and no output."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gigpo_mega.commands import convert as command
from gigpo_mega.errors import UserError
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.manifest import LEARNER
from gigpo_mega.weights import convert, huggingface, verify
from gigpo_mega.weights.families.mapping import entries
from gigpo_mega.weights.huggingface import HFReader, HFWriter
from gigpo_mega.weights.sharded import Grid
from tests.helpers import refused, smallest_files
from tests.tiny import write_policy
from tools.bench import conversion as bench_conversion

FAMILIES = ("qwen2", "qwen3", "llama")
GRIDS = {"TP1-PP1": Grid(), "TP2-PP2": Grid(2, 2), "TP2-PP2-VPP2": Grid(2, 2, 2)}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A random untied Qwen2 policy of four layers, whose 203 tokens no layout divides."""
    return write_policy(tmp_path / "policy", num_hidden_layers=4, tie_word_embeddings=False)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    reader = HFReader(directory)
    names = [name for entry in entries(ModelShape.from_hf(directory)) for name in entry.hf]
    return {name: reader.tensor(name) for name in names}


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a directory of one file."""
    held = load_file(directory / "model.safetensors")
    change(held)
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same(one: Path, other: Path) -> None:
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert [name for name, tensor in left.items() if not verify.same_bits(tensor, right[name])] == []
    assert ModelShape.from_hf(one) == ModelShape.from_hf(other)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_exact(family: str, tied: bool, grid: str, tmp_path: Path) -> None:
    more = {"head_dim": 12} if family == "qwen3" else {}  # not hidden / heads
    hf = write_policy(tmp_path / "hf", family, tie_word_embeddings=tied, num_hidden_layers=4, **more)
    if grid != "TP1-PP1":  # the other runs are in float32
        rewrite(hf, lambda held: held.update({n: t.bfloat16() for n, t in held.items()}))
    convert.import_hf(hf, tmp_path / "checkpoint", GRIDS[grid])
    assert verify.different(hf, tmp_path / "checkpoint") == []
    convert.export_hf(tmp_path / "checkpoint", hf, tmp_path / "back")
    assert_same(hf, tmp_path / "back")
    dtype = "float32" if grid == "TP1-PP1" else "bfloat16"
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == dtype
    ranks = GRIDS[grid].tensor * GRIDS[grid].pipeline
    files = sorted(path.name for path in (tmp_path / "checkpoint" / LEARNER).glob("*.distcp"))
    assert files == [f"__{rank}_0.distcp" for rank in range(ranks)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    hf = write_policy(tmp_path / "hf", family, initializer_range=0.3)
    convert.import_hf(hf, tmp_path / "checkpoint", Grid(2, 2))
    gap = verify.logits_gap(hf, tmp_path / "checkpoint")
    assert gap.tokens == 128
    assert gap.scale > 1
    assert gap.max < 1e-5
    assert gap.biases_last < 1e-6


def test_files_of_any_number_of_shards(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    convert.import_hf(policy, tmp_path / "checkpoint", Grid(2, 1))
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 30_000)
    convert.export_hf(tmp_path / "checkpoint", policy, tmp_path / "shards")
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(policy).values())
    assert_same(policy, tmp_path / "shards")
    convert.import_hf(tmp_path / "shards", tmp_path / "again", Grid())
    assert verify.different(policy, tmp_path / "again") == []
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")  # transformers reads our index
    assert all(torch.equal(tensor, tensors(policy)[name]) for name, tensor in theirs.state_dict().items())


def test_bits_that_are_no_numbers_come_back(policy: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def scramble(held: dict[str, torch.Tensor]) -> None:
        for name, tensor in held.items():
            bits = torch.randint(-(2**15), 2**15, tensor.shape, dtype=torch.int16, generator=generator)
            held[name] = bits.view(torch.bfloat16)

    rewrite(policy, scramble)
    assert any(tensor.isnan().any() for tensor in tensors(policy).values())
    convert.import_hf(policy, tmp_path / "checkpoint", Grid(2, 2))
    convert.export_hf(tmp_path / "checkpoint", policy, tmp_path / "back")
    assert_same(policy, tmp_path / "back")


@pytest.mark.parametrize(("words", "option"), [
    ("import --hf nope --out new", "--hf"), ("verify --hf nope --checkpoint old", "--hf"),
    ("export --checkpoint old --hf-config nope --out new", "--hf-config"),
])  # fmt: skip
def test_the_option_whose_directory_does_not_exist_is_named(words: str, option: str) -> None:
    with pytest.raises(UserError, match=rf"^{option}: nope/config.json does not exist; give a Hugging Face"):
        command.main(words.split())


def test_verify_names_a_flipped_bit(policy: Path, tmp_path: Path) -> None:
    convert.import_hf(policy, tmp_path / "checkpoint", Grid(2, 2))
    name = "model.layers.3.self_attn.k_proj.weight"
    rewrite(policy, lambda held: held[name].view(torch.int32)[5, 7].bitwise_xor_(1))
    assert verify.different(policy, tmp_path / "checkpoint") == [name]


def test_the_command_imports_verifies_and_exports(policy: Path, tmp_path: Path, capsys: Any) -> None:
    def run(*arguments: object) -> str:
        command.main([*map(str, arguments)])
        return capsys.readouterr().out

    checkpoint, back = tmp_path / "checkpoint", tmp_path / "back"
    run("import", "--hf", policy, "--out", checkpoint, "--tensor", 2, "--pipeline", 2)
    verified = run("verify", "--hf", policy, "--checkpoint", checkpoint)
    assert verified.startswith("bits: every tensor is equal\nlogits: ")
    assert bench_conversion.parse_logits(verified)["max_gap"] < 1e-5
    assert run("export", "--checkpoint", checkpoint, "--hf-config", policy, "--out", back) == f"{back}\n"
    assert_same(policy, back)
    rewrite(policy, lambda held: held["model.norm.weight"].add_(1))
    with pytest.raises(UserError, match=r"1 tensors differ: model\.norm\.weight"):
        run("verify", "--hf", policy, "--checkpoint", checkpoint)


def shards(directory: Path) -> None:
    """Split the weights into files of at most 30 kB."""
    held = tensors(directory)
    (directory / "model.safetensors").unlink()
    writer = HFWriter(directory)
    for name, tensor in held.items():
        writer.add(name, tensor)
    writer.close()


def no_shard(hf: Path) -> None:
    shards(hf)
    (hf / "model-00002-of-00005.safetensors").unlink()


def no_weights(hf: Path) -> None:
    (hf / "model.safetensors").unlink()


def truncated(hf: Path) -> None:
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def bad_index(hf: Path) -> None:
    shards(hf)
    (hf / "model.safetensors.index.json").write_text("{}")


def wrong_shape(hf: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(hf, lambda held: held.update({name: held[name][:63].clone()}))


def no_tensor(hf: Path) -> None:
    rewrite(hf, lambda held: held.pop("model.layers.1.self_attn.q_proj.bias"))


def unknown_tensor(hf: Path) -> None:
    rewrite(hf, lambda held: held.update({"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}))


def other_type(hf: Path) -> None:
    configure(hf, model_type="gpt2")


def other_option(hf: Path) -> None:
    configure(hf, use_sliding_window=True)


def quantized(hf: Path) -> None:
    name = "model.norm.weight"
    rewrite(hf, lambda held: held.update({name: held[name].to(torch.int8)}))


def mixed(hf: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(hf, lambda held: held.update({name: held[name].half()}))


def tie_of_another_head(hf: Path) -> None:
    configure(hf, tie_word_embeddings=True)


def untied_without_head(hf: Path) -> None:
    rewrite(hf, lambda held: held.pop(HEAD))


FAULTS: dict[Callable[[Path], None], str] = {
    no_shard: r"model-00002-of-00005\.safetensors is missing",
    no_weights: r"model\.safetensors is missing",
    truncated: r"model\.safetensors is cut off",
    bad_index: r"index\.json has no weight_map of tensors to file names",
    wrong_shape: r"holds model\.layers\.1\.mlp\.up_proj\.weight of shape \[63, 32\]; .* asks for \[64, 32\]",
    no_tensor: r"lacks model\.layers\.1\.self_attn\.q_proj\.bias",
    unknown_tensor: r"holds model\.layers\.0\.self_attn\.o_proj\.bias, which no qwen2 policy has",
    other_type: r"has model_type \"gpt2\"; supported: qwen2, qwen3, llama",
    other_option: r"has use_sliding_window true; supported: false",
    quantized: r"holds model\.norm\.weight of type I8; supported: F32, F16, BF16",
    mixed: r"of one type: .*k_proj\.weight torch\.float16",
    tie_of_another_head: r"tie_word_embeddings true, but lm_head\.weight differs from model\.embed_tokens",
    untied_without_head: r"tie_word_embeddings false, but there is no lm_head\.weight",
}


def refusal(act: Callable[[], None], folder: Path) -> str:
    """The one line of a conversion that leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    line = refused(act)
    assert sorted(folder.rglob("*")) == before
    return line


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_directory_is_one_line(
    fault: Callable[[Path], None], policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 50_000)
    fault(policy)
    line = refusal(lambda: convert.import_hf(policy, tmp_path / "out", Grid()), tmp_path)
    assert re.search(FAULTS[fault], line), line


def test_a_tied_model_that_repeats_its_embedding(tmp_path: Path) -> None:
    hf = write_policy(tmp_path / "hf", tie_word_embeddings=True)
    rewrite(hf, lambda held: held.update({HEAD: held[EMBEDDING].clone()}))
    convert.import_hf(hf, tmp_path / "checkpoint", Grid())
    convert.export_hf(tmp_path / "checkpoint", hf, tmp_path / "back")
    assert_same(hf, tmp_path / "back")


def test_slime_345_a_tie_flag_that_is_not_the_checkpoints(policy: Path, tmp_path: Path) -> None:
    tied = write_policy(tmp_path / "tied", num_hidden_layers=4)
    cases = ((policy, tied, "true, but .* holds an"), (tied, policy, "false, but .* lacks the"))
    for source, flag, reason in cases:
        checkpoint = tmp_path / f"checkpoint_{source.name}"
        convert.import_hf(source, checkpoint, Grid())
        with pytest.raises(UserError, match=f"tie_word_embeddings {reason} output_layer.weight"):
            convert.export_hf(checkpoint, flag, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_layout_that_does_not_divide_the_model(policy: Path, tmp_path: Path) -> None:
    for grid, reason in (
        (Grid(tensor=3), "--tensor 3 does not divide the model's 4 attention heads"),
        (Grid(1, 2, 4), "--pipeline 2 x --virtual-pipeline 4 does not divide the model's 4 layers"),
    ):
        assert reason in refusal(lambda grid=grid: convert.import_hf(policy, tmp_path / "o", grid), tmp_path)


def test_an_output_that_exists_stays(policy: Path, tmp_path: Path) -> None:
    convert.import_hf(policy, tmp_path / "checkpoint", Grid())
    for act in (
        lambda: convert.import_hf(policy, tmp_path / "checkpoint", Grid()),
        lambda: convert.export_hf(tmp_path / "checkpoint", policy, policy),
    ):
        assert "exists already; remove it or name another directory" in refusal(act, tmp_path)


@pytest.fixture
def converted(policy: Path, tmp_path: Path) -> Path:
    convert.import_hf(policy, tmp_path / "checkpoint", Grid(2, 2))
    return tmp_path / "checkpoint"


def test_a_disk_that_fills_up(policy: Path, converted: Path, tmp_path: Path) -> None:
    for act in (
        lambda: convert.import_hf(policy, tmp_path / "out", Grid()),
        lambda: convert.export_hf(converted, policy, tmp_path / "out"),
    ):
        with smallest_files(100_000):
            line = refusal(act, tmp_path)
        assert line.startswith(f"cannot write {tmp_path}/out: ")
        assert "File too large" in line
        assert line.endswith("free space or name another directory")


def test_a_disk_without_room_is_seen_before_writing(
    policy: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1000))
    wanted = "0.2 MiB are needed, 0.0 MiB are free; free space or name another directory"
    assert wanted in refusal(lambda: convert.import_hf(policy, tmp_path / "out", Grid()), tmp_path)
    assert wanted in refusal(lambda: convert.export_hf(converted, policy, tmp_path / "out"), tmp_path)


def test_an_interrupted_conversion_leaves_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "copy_side_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.import_hf(policy, tmp_path / "out", Grid())
    assert list(tmp_path.iterdir()) == [policy]


def test_a_damaged_checkpoint_is_one_line(policy: Path, converted: Path, tmp_path: Path) -> None:
    def export() -> str:
        return refusal(lambda: convert.export_hf(converted, policy, tmp_path / "out"), tmp_path)

    file = converted / LEARNER / "__1_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    assert "is damaged" in export()
    file.write_bytes(whole[:-1000])
    assert f"{file} is cut off: {len(whole) - 1000} of {len(whole)} bytes" in export()
    file.unlink()
    assert f"{file} is missing" in export()
    (converted / LEARNER / ".metadata").write_bytes(b"nonsense")
    assert "cannot read" in export()
    shutil.rmtree(converted / LEARNER)
    assert "holds no learner/.metadata; give what `gigpo-mega convert import` wrote" in export()


def test_a_checkpoint_of_another_model_is_one_line(policy: Path, converted: Path, tmp_path: Path) -> None:
    configure(policy, intermediate_size=60)
    line = refusal(lambda: convert.export_hf(converted, policy, tmp_path / "out"), tmp_path)
    wanted = "holds decoder.layers.mlp.linear_fc1.weight of shape [4, 128, 32]; config.json asks for [4, 120"
    assert wanted in line


def resident(field: str) -> int:
    """Bytes of this process's memory: now (VmRSS), or the most since it was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)[field].removesuffix("kB")) * 1024


def growth(act: Callable[[], None]) -> int:
    """The most bytes of memory that `act` adds, those of files that it maps among them."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    act()
    return resident("VmHWM") - before


def test_a_conversion_holds_one_layer_or_one_file_of_many(
    policy: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.export_hf(converted, policy, tmp_path / "small")  # what is imported once is not counted
    hf = write_policy(tmp_path / "hf", num_hidden_layers=16, hidden_size=256, intermediate_size=2048)
    size = (hf / "model.safetensors").stat().st_size
    assert size > 100e6
    monkeypatch.setattr(huggingface, "SHARD_BYTES", size // 16)
    assert growth(lambda: convert.import_hf(hf, tmp_path / "large", Grid(2, 2))) < size / 4
    assert growth(lambda: convert.export_hf(tmp_path / "large", hf, tmp_path / "back")) < size / 4


def test_the_page_shows_the_record() -> None:
    record = json.loads(bench_conversion.RECORD.read_text())
    assert bench_conversion.table(record) in bench_conversion.PAGE.read_text()
    assert record["cases"].keys() == {case.name for case in bench_conversion.CASES}
    for name, case in record["cases"].items():
        assert case["tensors_equal"] == case["tensors"], name
        assert max(case["import"]["peak_mib"], case["export"]["peak_mib"]) < 6 * 1024, name
