"""What a run asks of the way its weights travel to engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from gigpo_mega.errors import UserError

NamedTensor = tuple[str, Tensor]  # Hugging Face name, whole tensor


class PushError(UserError):
    """The engine did not take the weights, or samples with others than it was sent."""


class WeightTransport(Protocol):
    """One way for whole tensors to reach engines; `WeightPush` makes sure that they arrived."""

    def send(self, weights: Iterable[NamedTensor], version: int) -> None:
        """Send `weights`, in any order, as `version`; the engines must be idle, and drop their prefix caches.

        Raises PushError if an engine refuses; the engines' weights are then undefined until a push succeeds.
        """
        ...

    def ceiling(self) -> float:
        """GiB/s at which bytes could travel this way at best on this machine; measured, in 0.1 s or so."""
        ...

    def damage(self) -> str | None:
        """What is wrong with what was sent last, as far as that can still be looked at."""
        ...


def check_version(url: str, reported: str | None, version: int) -> None:
    """Raise PushError unless the engine at `url`, which reports `reported`, has the weights of `version`."""
    if reported != str(version):
        raise PushError(
            f"the engine at {url} has weight version {reported}, the learner {version}: "
            "a push was lost; push again or restart the engine"
        )
