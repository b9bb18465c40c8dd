"""A workload's data, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Training examples and queries, as tensors over a first axis of examples."""

    inputs: Tensor
    targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor
    source: str  # what the bytes are, with their hash
