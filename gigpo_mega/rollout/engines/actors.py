"""SGLang servers as actors of a Ray cluster, on whatever nodes have room for them."""

from __future__ import annotations

from pathlib import Path

from gigpo_mega.config import EngineConfig
from gigpo_mega.rollout.cluster import Actor, ActorLost, own_address
from gigpo_mega.rollout.engines.base import EngineLost
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.server import SGLangServer


class ServerHost:
    """What an actor runs: a server on its node, which ends with it."""

    def __init__(self, model: Path, config: EngineConfig, log: Path, launch: Launch) -> None:
        self._server = SGLangServer(model, config, log, launch, host=own_address())
        self._server.launch()

    def url(self) -> str:
        """Where it listens."""
        return self._server.url

    def ready(self, seconds: float) -> bool:
        """As `SGLangServer.ready`."""
        return self._server.ready(seconds)

    def last_error(self) -> str:
        """As `SGLangServer.last_error`."""
        return self._server.last_error()


class RayServer:
    """A server for `model` on a node of the cluster; used as an `SGLangServer` is."""

    def __init__(self, model: Path, config: EngineConfig, log: Path, launch: Launch) -> None:
        self._actor = Actor(
            "engine.placement separate", "an SGLang server", "engine.replicas",
            ServerHost, model.absolute(), config, log.absolute(), launch,
            gpus=config.tensor if launch.stack.cuda else 0,
        )  # fmt: skip
        self.url = ""  # until it has a place

    def launch(self) -> None:
        """Ask for a place and start it there, without waiting."""
        self._actor.start()

    def placed(self) -> str:
        """Where it listens, when it has a place; raises UserError if the cluster has none for it."""
        self.url = str(self._actor.placed("url"))
        return self.url

    def ready(self, seconds: float) -> bool:
        """As `SGLangServer.ready`; raises EngineLost if its node is gone, too."""
        try:
            return bool(self._actor.ask("ready", seconds))
        except ActorLost:
            raise EngineLost(f"the SGLang server at {self.url} ended with its node or Ray actor") from None

    def last_error(self) -> str:
        """The newest error in its log, if the log can still be read."""
        try:
            return str(self._actor.ask("last_error", timeout=10))
        except (ActorLost, TimeoutError):
            return "its node or Ray actor is gone"

    def relaunch(self) -> None:
        """Kill it and ask for a place again."""
        self.close()
        self.launch()

    def close(self) -> None:
        """Kill the actor, and with it the server; harmless when repeated."""
        self._actor.close()
