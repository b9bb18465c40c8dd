"""What this machine has."""

from __future__ import annotations

import os

import torch


def memory(device: torch.device | None = None) -> int:
    """Bytes of main memory, or of a CUDA device's own."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
