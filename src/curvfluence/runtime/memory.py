"""Whether an error says that memory is short."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, NumPy or torch; torch's CPU allocator has no type of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in said or "not enough memory" in said
    )
