"""The program of the launch tests: ranks add up their numbers and print where they run.

With `wait` they hang then, and with `save` they take three seconds to end after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

import torch
import torch.distributed as dist


def save(number: int, frame: FrameType | None) -> None:
    """End as a run does, which saves first."""
    time.sleep(3)
    say("SAVED")
    os._exit(0)


def say(text: str) -> None:
    """Write a line at once, past `sys.stdout`: a signal may come in the middle of a line that is flushed."""
    os.write(1, f"{text}\n".encode())


def main() -> None:
    """Sum the rank numbers over all ranks."""
    if "save" in sys.argv:
        signal.signal(signal.SIGTERM, save)
    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    place = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "CUDA_DEVICE_MAX_CONNECTIONS")]
    say(f"MET {' '.join(place)} of {dist.get_world_size()}: {int(total)} {sys.argv[1:]}")
    if "wait" in sys.argv and dist.get_rank() == 0:
        dist.barrier()  # which the other ranks never enter
    while {"wait", "save"} & set(sys.argv):
        time.sleep(0.1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
