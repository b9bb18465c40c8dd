"""Large arrays that the system may write to disk when memory is short."""

from __future__ import annotations

import os
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from curvfluence.runtime import budget


def paged(values: Tensor) -> Tensor:
    """The same numbers, in a file without a name where they are many: its pages are written out
    rather than held when memory is short, and it is gone with the tensor. Elsewhere than on POSIX,
    and for small arrays, `values` itself."""
    if values.nbytes < budget.PAGED or os.name != "posix":
        return values
    with NamedTemporaryFile() as file:
        room = torch.from_file(file.name, shared=True, size=values.numel(), dtype=values.dtype)
        return room.view(values.shape).copy_(values)
