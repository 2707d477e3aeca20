"""The engines of one node as the run sees them: their servers, and the way weights reach them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from torch import Tensor

from gigpo_mega.config import Config
from gigpo_mega.launch import node
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.servers import Servers
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.push import Pushed, WeightPush


class NodeEngines:
    """Launches and ends the servers of this node, and gives them the learner's weights.

    Whole tensors are on every rank during an export, so each node's first rank pushes to the engines beside
    it, and a push takes as long on many nodes as on one. Servers of `engine.url`, and separate ones, are the
    leader's.
    """

    def __init__(self, cfg: Config, launch: Launch, model: Path, shape: ModelShape) -> None:
        self._cfg, self._shape = cfg, shape
        self._servers = Servers(model, cfg.engine, cfg.output, launch)
        self._numbers: dict[str, int] = {}  # of the servers, by all addresses that they have had
        self._push: WeightPush | None = None

    def launch(self) -> list[str]:
        """Start the servers without waiting for them; returns where they will listen."""
        self._servers.launch()
        folder = (self._cfg.weights.folder or self._cfg.output / "weights") / f"node_{node()}"
        busy = self._cfg.rollout.max_staleness > 0
        urls = self._servers.urls
        self._numbers = {url: number for number, url in enumerate(urls)}
        self._push = WeightPush(self._cfg.weights, self._shape, urls, folder, busy=busy)
        return urls

    def wait(self, urls: Collection[str]) -> None:
        """Wait until all of `urls`, on whatever node, are healthy; raises UserError if one never will be."""
        self._servers.wait(urls)

    def relaunch(self, urls: Collection[str]) -> dict[str, str]:
        """Start those of `urls` again that are ours, without waiting; returns where each will listen then.

        By every address that a server has had before: one whose node was lost meanwhile moves without being
        asked to, and who asks may not have heard of the last move.
        """
        self._servers.relaunch(urls)
        now = self._servers.urls
        self._numbers |= {url: number for number, url in enumerate(now)}
        self._pushing().move(now)
        return {url: now[number] for url, number in self._numbers.items() if url != now[number]}

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Pushed:
        """Give the engines `weights`; raises PushError if one does not have them afterwards."""
        return self._pushing().push(weights, version)

    def close(self) -> None:
        """End the servers; harmless when repeated."""
        self._servers.close()

    def _pushing(self) -> WeightPush:
        assert self._push is not None, "the engines were not launched"
        return self._push
