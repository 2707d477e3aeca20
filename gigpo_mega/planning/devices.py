"""Rates and sizes of GPUs, nodes and networks from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU; rates are per second and one way."""

    name: str
    memory: float  # bytes that CUDA reports
    flops: float  # dense bfloat16
    flops_float32: float
    bandwidth: float  # bytes of its own memory
    link: float  # bytes to a GPU of the same node
    network: float  # bytes to a GPU of another node, with a network card for each GPU


# NVIDIA's data sheets of the SXM boards (H100 80 GB, H200, A100 80 GB), with the network cards of a DGX node:
# 400 Gb/s per H100 or H200, 200 Gb/s per A100. NVLink's 900 and 600 GB/s count both directions.
DEVICES: dict[str, Device] = {
    "h100": Device("h100", 79.1 * GIB, 989e12, 67e12, 3.35e12, 450e9, 50e9),
    "h200": Device("h200", 139.8 * GIB, 989e12, 67e12, 4.8e12, 450e9, 50e9),
    "a100": Device("a100", 79.2 * GIB, 312e12, 19.5e12, 2.04e12, 300e9, 25e9),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes` nodes with `per_node` GPUs each."""

    device: Device
    nodes: int = 1
    per_node: int = 8

    @property
    def world(self) -> int:
        """GPUs, each with one learner rank."""
        return self.nodes * self.per_node

    def serving(self, ranks: int, gpus: int) -> int:
        """Of the first `ranks`, those on the first `gpus` GPUs of a node."""
        nodes, rest = divmod(ranks, self.per_node)
        return nodes * gpus + min(rest, gpus)

    def link(self, ranks: int) -> float:
        """Bytes per second between neighbors in a group of `ranks` consecutive ranks."""
        return self.device.link if ranks <= self.per_node else self.device.network
