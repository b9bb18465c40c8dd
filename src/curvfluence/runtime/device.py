"""What this machine has, and its time."""

from __future__ import annotations

import os
import time

import torch


def memory(device: torch.device) -> int:
    """Bytes of a CUDA device's own memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def clock(device: torch.device) -> float:
    """Seconds by a clock, once the device has done what it was given: CUDA's calls do not wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
