"""Hugging Face model directories, one tensor in memory at a time: safetensors in one file or many."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import WEIGHTS_INDEX, read_object
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.families.mapping import entries

SHARD_BYTES = 1 << 30
_SINGLE = "model.safetensors"
_SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
               "vocab.json", "merges.txt", "tokenizer.model", "generation_config.json",
               "chat_template.jinja")  # fmt: skip
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # safetensors' names
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFER = "rotary_emb.inv_freq"  # in old Llama files; computed from config.json


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says of one tensor before its bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class HFReader:
    """The tensors of a Hugging Face directory by name; the files are mapped, never read whole.

    Raises UserError if a file is absent, cut off or unreadable.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._header: dict[str, _Header] = {}
        for file in self._files():
            for name, header in _headers(file):
                if name in self._header:
                    raise UserError(
                        f"{file} and {self._header[name].file.name} both hold {name}; keep one of the two"
                    )
                self._header[name] = header

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(file.stat().st_size for file in {header.file for header in self._header.values()})

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._header)

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def tensor(self, name: str) -> Tensor:
        """One whole tensor."""
        with safe_open(self._header[name].file, "pt") as opened:
            return opened.get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor; raises UserError if no policy is of that type."""
        header = self._header[name]
        if header.dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(f"{header.file} holds {name} of type {header.dtype}; supported: {known}")
        return _DTYPES[header.dtype]

    def check(self, shape: ModelShape) -> None:
        """Raise UserError unless the tensors are exactly those of `shape`, each in its shape."""
        wanted = {name: dims for entry in entries(shape) for name, dims in entry.hf.items()}
        self._check_tie(shape)
        if missing := [name for name in wanted if name not in self]:
            raise UserError(
                f"{self.directory} lacks {_some(missing)}, which its config.json asks for "
                f"({shape.described}); is it a complete checkpoint?"
            )
        unknown = [n for n in self.names if n not in wanted and n != _HEAD and not n.endswith(_BUFFER)]
        if unknown:
            raise UserError(
                f"{self.directory} holds {_some(unknown)}, which no {shape.family} policy has with its "
                f"config.json ({shape.described}); leaving them out would change the model"
            )
        for name, dims in wanted.items():
            header = self._header[name]
            if header.shape != dims:
                raise UserError(
                    f"{header.file} holds {name} of shape {list(header.shape)}; "
                    f"its config.json asks for {list(dims)} ({shape.described})"
                )
            self.dtype(name)

    def _check_tie(self, shape: ModelShape) -> None:
        config = f"{self.directory}/config.json has tie_word_embeddings"
        if not shape.tied and _HEAD not in self and _EMBEDDING in self:
            raise UserError(
                f"{config} false, but there is no {_HEAD}; set it to true if the model is tied (without "
                "the field it is not), or download it again"
            )
        if not shape.tied or _HEAD not in self or _EMBEDDING not in self:
            return
        if not torch.equal(self.tensor(_HEAD), self.tensor(_EMBEDDING)):
            raise UserError(
                f"{config} true, but {_HEAD} differs from {_EMBEDDING}: the head would be lost; "
                "set it to false"
            )

    def _files(self) -> list[Path]:
        index, single = self.directory / WEIGHTS_INDEX, self.directory / _SINGLE
        if (adapters := self.directory / "adapter_config.json").exists():
            raise UserError(
                f"{adapters} is of adapters; merge them with PEFT's merge_and_unload, or remove it"
            )
        try:
            listed = read_object(index).get("weight_map")
        except FileNotFoundError:
            pickles = sorted(file.name for file in self.directory.glob("pytorch_model*.bin"))
            if pickles and not single.exists():
                raise UserError(
                    f"{self.directory} holds {_some(pickles)} but no {_SINGLE}; load it with transformers' "
                    "AutoModelForCausalLM.from_pretrained and write it again with save_pretrained"
                ) from None
            return [single]
        names = list(listed.values()) if isinstance(listed, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{index} has no weight_map of tensors to file names; download it again")
        files = sorted(set(names))
        if single.exists() and files != [_SINGLE]:
            raise UserError(
                f"{self.directory} holds {_SINGLE}, which transformers reads, and {WEIGHTS_INDEX} of other "
                "files, which the engine reads; remove one of the two"
            )
        return [self.directory / name for name in files]


def _headers(file: Path) -> Iterator[tuple[str, _Header]]:
    """The names and headers of a file's tensors; raises UserError if it is absent, cut off or unreadable."""
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  no mapping
                found = opened.get_slice(name)
                yield name, _Header(file, str(found.get_dtype()), tuple(found.get_shape()))
    except (OSError, SafetensorError) as error:
        reason = "is missing" if not file.exists() else f"is cut off or no safetensors file: {error}"
        raise UserError(f"{file} {reason}; download it again") from None


class HFWriter:
    """Writes tensors into `directory` as they come: a file for each `SHARD_BYTES`, at the end the index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bucket: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._bytes = 0
        self.dtype = ""  # of the first tensor, as config.json spells it

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it may be changed afterwards."""
        if self._bucket and _bytes(self._bucket.values()) + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self.dtype = self.dtype or str(tensor.dtype).removeprefix("torch.")
        self._bucket[name] = tensor.to("cpu", copy=True).contiguous()

    def close(self) -> None:
        """Write what is left, under the final file names."""
        self._flush()
        count = len(self._shards)
        names = [_SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors"
                                              for i in range(1, count + 1)]  # fmt: skip
        for i, name in enumerate(names):
            self._shard(i).rename(self._directory / name)
        if count > 1:
            where = {tensor: name for name, held in zip(names, self._shards, strict=True) for tensor in held}
            index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(where.items()))}
            (self._directory / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _flush(self) -> None:
        save_file(self._bucket, self._shard(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._bucket))
        self._bytes += _bytes(self._bucket.values())
        self._bucket = {}

    def _shard(self, index: int) -> Path:
        return self._directory / f"shard-{index}.safetensors"


def check_side_files(source: Path) -> None:
    """Raise UserError if a file that `copy_side_files` would copy is damaged."""
    for path in (source / name for name in _SIDE_FILES):
        if not path.exists() and not path.is_symlink():
            continue
        try:
            if path.name == "tokenizer.json":
                Tokenizer.from_file(str(path))
            elif path.suffix == ".json":
                read_object(path)
            elif path.suffix in (".txt", ".jinja"):
                path.read_text(encoding="utf-8")
            else:
                path.read_bytes()
        except UserError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot read {path}: {reason}; download it again") from None


def copy_side_files(source: Path, directory: Path, dtype: str | None = None) -> None:
    """Copy configuration and tokenizer; with `dtype`, config.json names that instead of its own."""
    for name in _SIDE_FILES:
        if (source / name).exists():
            shutil.copy(source / name, directory / name)
    config = read_object(source / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)  # the older spelling
        config["dtype"] = dtype
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
