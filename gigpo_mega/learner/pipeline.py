"""How pipeline stages hand each other micro-batches of uneven lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.transformer.transformer_config import TransformerConfig

Shape = list[int]


class Communicator(P2PCommunicator):
    """megatron's, with the `shapes` of all micro-batches known beforehand; good for one run of a schedule.

    megatron exchanges the length of every tensor before it. In an interleaved schedule a stage then waits for
    the length of a gradient while it still holds back the activation that the gradient is made from.
    """

    def __init__(self, group: dist.ProcessGroup, config: TransformerConfig, shapes: Sequence[Shape]) -> None:
        super().__init__(group, config)
        chunks = config.virtual_pipeline_model_parallel_size or 1
        order = get_schedule_table(len(shapes), chunks, config.microbatch_group_size_per_vp_stage)

        def received(by_end: bool) -> Iterator[Shape]:
            # Between the ends of the pipeline travels what goes on in another chunk.
            return iter([shapes[i] for i, chunk in order if chunk < chunks - 1 or not by_end])

        self._activations = received(by_end=group.rank() == 0)
        self._gradients = received(by_end=group.rank() == group.size() - 1)

    def _communicate_shapes(
        self, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool
    ) -> tuple[Shape, Shape]:
        return (
            next(self._activations) if recv_prev else [],
            next(self._gradients) if recv_next else [],
        )
