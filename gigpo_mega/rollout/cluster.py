"""The Ray cluster that a run may use; the only module that imports ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.launch import import_path

ROOM_SECONDS = 300.0  # in which the cluster must find a place for an actor, and its process start


def connected(field: str) -> Any:
    """Ray, connected to a cluster, which `field` needs."""
    try:
        import ray
    except ImportError:
        raise UserError(f"{field} needs Ray, which is not installed: pip install ray") from None
    if not ray.is_initialized():
        try:
            ray.init(
                runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # of many kinds, from sockets to versions
            first, *_ = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"{field}: no Ray cluster can be used ({first}); set RAY_ADDRESS or start one"
            ) from None
    return ray


def own_address() -> str:
    """The address of the node that this actor is on."""
    import ray

    return str(ray.util.get_node_ip_address())


class ActorLost(Exception):
    """An actor has ended, or its node has; `at_start`: it could not be made."""

    def __init__(self, message: str, at_start: bool) -> None:
        super().__init__(message)
        self.at_start = at_start


@contextmanager
def noticing_ends() -> Iterator[None]:
    """Raises ActorLost for an actor that ends, however, before it has answered the call in the block.

    What its method raises (RayTaskError) and GetTimeoutError pass.
    """
    from ray import exceptions

    try:
        yield
    except (exceptions.RayTaskError, exceptions.GetTimeoutError):
        raise
    except exceptions.RayError as error:  # one killed for its node's memory raises no RayActorError
        never = exceptions.RuntimeEnvSetupError, exceptions.ActorUnschedulableError
        at_start = isinstance(error, never) or getattr(error, "actor_init_failed", False)
        raise ActorLost(str(error), at_start) from None


class Actor:
    """An actor that runs `kind(*arguments)`, with a CPU and `gpus` GPUs, nodes with few actors first.

    Messages say that `field` needs it, that it is for `purpose`, and that `count` is the number of such.
    """

    def __init__(
        self, field: str, purpose: str, count: str, kind: type, *arguments: Any, gpus: int = 0
    ) -> None:
        self._ray = connected(field)
        self._field, self._purpose, self._count, self._gpus = field, purpose, count, gpus
        self._kind, self._arguments = self._ray.remote(kind), arguments
        self._handle: Any = None

    def start(self) -> None:
        """Ask for a place, without waiting; harmless when repeated."""
        if self._handle is None:
            options = {"num_cpus": 1, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
            self._handle = self._kind.options(**options).remote(*self._arguments)

    def ask(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """What its `method` returns or raises; ActorLost, or TimeoutError after `timeout` seconds."""
        exceptions = self._ray.exceptions
        try:
            with noticing_ends():
                return self._ray.get(getattr(self._handle, method).remote(*arguments), timeout=timeout)
        except exceptions.GetTimeoutError:
            raise TimeoutError from None
        except exceptions.RayTaskError as error:
            raise error.cause from None

    def placed(self, method: str) -> Any:
        """What its `method` returns when it has a place; raises UserError if it gets none or cannot start."""
        deadline = time.monotonic() + ROOM_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self.ask(method, timeout=left)
            except TimeoutError:
                break
            except ActorLost as lost:
                if lost.at_start:
                    raise UserError(f"{self._field}: {self._purpose} cannot be started: {lost}") from None
                self.close()  # it was on a node that is gone, which the cluster may learn late
                self.start()
        needed = f"node with {self._gpus} free GPU(s)" if self._gpus else "CPU"
        raise UserError(
            f"{self._field}: the cluster had no {needed} for {self._purpose} within {ROOM_SECONDS:g} s; "
            f"lower {self._count} or add nodes"
        )

    def close(self) -> None:
        """Kill it; harmless when repeated."""
        if self._handle is not None and self._ray.is_initialized():
            self._ray.kill(self._handle)
        self._handle = None
