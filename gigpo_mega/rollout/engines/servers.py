"""The SGLang servers of one node: launched together, launched again when they fail, ended together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.launch import node, node_address
from gigpo_mega.rollout.engines.actors import RayServer
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.server import Launched, SGLangServer, Startable, wait
from gigpo_mega.telemetry.progress import Bar, stage

_MOST = 1024  # servers of a node


class Servers(Launched):
    """The servers that a run launches on this node, or on any of a Ray cluster if they are separate, or those
    that `engine.url` names; a context manager.

    They serve the Hugging Face directory `model`, whose weights are tagged version 0; logs go to `folder`.
    """

    def __init__(self, model: Path, config: EngineConfig, folder: Path, launch: Launch) -> None:
        self._model, self._config, self._folder, self._launch = model, config, folder, launch
        count, host = len(config.urls) or launch.replicas(config), node_address()
        alone = count == 1 and host == "127.0.0.1"
        logs = ["sglang.log"] if alone else [f"sglang_{node()}_{number}.log" for number in range(count)]
        launches = [launch.of_server(node() * _MOST + number) for number in range(count)]
        self._servers: Sequence[SGLangServer | RayServer]
        if config.placement == "separate":
            self._servers = [
                RayServer(model, config, folder / log, one) for log, one in zip(logs, launches, strict=True)
            ]
        else:
            self._servers = [
                SGLangServer(model, config, folder / log, one, number=number, host=host)
                for number, (log, one) in enumerate(zip(logs, launches, strict=True))
            ]
        self._restarts = Counter[int]()  # by server

    @property
    def urls(self) -> list[str]:
        """Where the launched servers listen."""
        return [server.placed() for server in self._servers]

    def launch(self) -> None:
        """Start the servers without waiting for them."""
        for server in self._servers:
            server.launch()

    def wait_until_healthy(self) -> None:
        """Wait until all can be used."""
        self.wait(self.urls)

    def wait(self, urls: Collection[str]) -> None:
        """Wait until all of `urls` are healthy, ours and those of other nodes, with a progress bar."""
        ours = {server.url: server for server in self._servers}
        elsewhere = partial(SGLangServer, self._model, self._config, self._folder / "none", self._launch)
        servers: list[Startable] = [ours.get(url) or elsewhere(url=url) for url in urls]
        with stage("engine", None, "s of start-up") as bar:
            wait(servers, _Seconds(bar))

    def relaunch(self, urls: Collection[str]) -> None:
        """End those of `urls` that were launched here, and start them again without waiting for them.

        Raises UserError past `engine.restarts` of one of them.
        """
        if self._config.urls:  # their owner has to
            return
        failed = {server.url: number for number, server in enumerate(self._servers) if server.url in urls}
        for url, number in failed.items():
            self._restarts[number] += 1
            if self._restarts[number] > self._config.restarts:
                raise UserError(
                    f"the SGLang server at {url} failed, and its {self._config.restarts} restarts of "
                    f"engine.restarts are used up: {self._servers[number].last_error()}; --resume starts anew"
                )
            self._servers[number].relaunch()

    def close(self) -> None:
        """End the launched servers and wait until they are gone; harmless when repeated."""
        for server in self._servers:
            server.close()


class _Seconds:
    """Feeds a bar the seconds that a start-up takes."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._done = bar, 0.0

    def __call__(self, seconds: float) -> None:
        self._bar.advance(seconds - self._done)
        self._done = seconds
