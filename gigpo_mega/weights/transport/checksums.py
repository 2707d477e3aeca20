"""The checksums that SGLang must report for the tensors that were sent.

SGLang 0.5.23 keeps the projections of attention and of the MLP as one tensor each, pads the vocabulary, and
hashes what it holds: SHA-256 on a CPU, a kernel of its own on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.receivers import Receivers

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_FUSED_IN = {part: fused for fused, parts in _FUSED.items() for part in parts}
_PADDED = ("model.embed_tokens.weight", "lm_head.weight")
_VOCABULARY_MULTIPLE = 64  # rows


class Checksums:
    """Counts and hashes tensors on their way to engines."""

    def __init__(self, hashed: bool) -> None:
        self.nbytes = 0
        self._hashed = hashed
        self._parts: dict[str, dict[str, Tensor]] = {}  # of the engine's tensors that are not complete
        self._sums: dict[str, str] = {}  # by the engine's name
        self._device = "cpu"

    def passing(self, weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
        """`weights`, each hashed before it is given away."""
        for name, tensor in weights:
            self.nbytes += tensor.nbytes
            self._device = tensor.device.type
            if self._hashed:
                self._add(name, tensor.detach())
            yield name, tensor

    def compare(self, receivers: Receivers) -> None:
        """Raise PushError for a tensor that an engine holds otherwise than it was sent.

        An engine that holds parts of tensors (several ranks), or hashes on another kind of device, reports
        checksums that say nothing about ours.
        """
        if not self._hashed:
            return
        answers = receivers.post("/weights_checker", {"action": "checksum"})
        for url, about, answer in zip(receivers.urls, receivers.get("/server_info"), answers, strict=True):
            if about.get("device") == self._device and len(answer["ranks"]) == 1:
                self._compare(url, answer["ranks"][0]["checksums"])

    def _compare(self, url: str, held: dict[str, str]) -> None:
        wrong = [name for name, found in self._sums.items() if held.get(name) != found]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise PushError(
                f"the engine at {url} holds other values of {wrong[0]}{more} than the learner sent: push "
                "again or restart the engine; if it changes weights as it loads them, e.g. to fp8, set "
                "weights.checksums to false"
            )

    def _add(self, name: str, tensor: Tensor) -> None:
        module_name, _, kind = name.rpartition(".")
        stem, _, module = module_name.rpartition(".")
        fused = _FUSED_IN.get(module)
        if fused is None:
            padding = -len(tensor) % _VOCABULARY_MULTIPLE if name in _PADDED else 0
            zeros = tensor.new_zeros(padding, *tensor.shape[1:])
            self._sums[name] = _hash([tensor, zeros] if padding else [tensor])
            return
        whole = f"{stem}.{fused}.{kind}"
        parts = self._parts.setdefault(whole, {})
        parts[module] = tensor
        if len(parts) == len(_FUSED[fused]):
            self._sums[whole] = _hash([parts[part] for part in _FUSED[fused]])
            del self._parts[whole]


def _hash(rows: list[Tensor]) -> str:
    """As SGLang's `WeightChecker` writes the hash of a tensor of these rows."""
    if rows[0].is_cuda:
        from sglang.kernels.ops.memory.gpu_tensor_hash import gpu_tensor_hash

        return f"{gpu_tensor_hash(torch.cat([part.flatten() for part in rows])):016x}"
    digest = hashlib.sha256()
    for part in rows:
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
