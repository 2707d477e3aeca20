"""Weights through a folder that learner and engines both see: safetensors files, which engines load."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from gigpo_mega.storage import manifest
from gigpo_mega.storage.files import published
from gigpo_mega.weights.huggingface import HFWriter
from gigpo_mega.weights.transport import ceiling
from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.receivers import Receivers

CHECKSUMS = "SHA256SUMS"  # of a version's files, as sha256sum writes and checks them


class DiskTransport:
    """Writes each version into a folder of its own in `folder`, and has servers on any host load it.

    The servers must see the folder under the same path. The version before is removed when all have loaded.
    """

    def __init__(self, receivers: Receivers, folder: Path) -> None:
        self._receivers, self._folder = receivers, folder.absolute()
        self._sent: tuple[Path, manifest.Files] | None = None

    def send(self, weights: Iterable[NamedTensor], version: int) -> None:
        """As `WeightTransport.send`; raises UserError if the disk refuses."""
        directory = self._folder / f"version_{version:06d}"
        with published(directory, replace=True) as partial:
            files = _write(weights, partial)
        self._sent = directory, files
        fields = {"model_path": str(directory), "load_format": "safetensors"}
        self._receivers.post(
            "/update_weights_from_disk", fields | {"weight_version": str(version), "flush_cache": True}
        )
        for other in self._folder.glob("version_*"):
            if other != directory:
                shutil.rmtree(other, ignore_errors=True)

    def ceiling(self) -> float:
        """GiB/s of a file that is written to the folder and flushed."""
        return ceiling.writing(self._folder)

    def damage(self) -> str | None:
        """The first file of the last version that is not as it was written."""
        if self._sent is None:
            return None
        directory, files = self._sent
        found = manifest.damage(directory, files)
        return found and f"{directory}: {found}"


def _write(weights: Iterable[NamedTensor], directory: Path) -> manifest.Files:
    """The entries of the files that now hold `weights`; their checksums are in another file beside them."""
    writer = HFWriter(directory)
    for name, tensor in weights:
        writer.add(name, tensor)
    if not writer.dtype:
        raise PushError("there is nothing to push: the learner exported no weights")
    writer.close()
    files = manifest.describe(directory, directory.iterdir())
    lines = [f"{entry['sha256']}  {name}\n" for name, entry in files.items()]
    (directory / CHECKSUMS).write_text("".join(lines))
    return files
