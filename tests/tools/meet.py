"""What the launch tests launch: ranks add up their numbers and say where they run; `wait` hangs then."""

from __future__ import annotations

import os
import sys
import time

import torch
import torch.distributed as dist


def main() -> None:
    """Meet the other ranks."""
    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    place = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "CUDA_DEVICE_MAX_CONNECTIONS")]
    sys.stdout.write(f"MET {' '.join(place)} of {dist.get_world_size()}: {int(total)} {sys.argv[1:]}\n")
    sys.stdout.flush()
    if "wait" in sys.argv and dist.get_rank() == 0:
        dist.barrier()  # with a rank that never comes
    while "wait" in sys.argv:
        time.sleep(0.1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
