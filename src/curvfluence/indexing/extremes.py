"""The largest and the smallest numbers of long rows, of which some columns are seen at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Extremes:
    """Of each row the `k` largest and the `k` smallest so far, with the numbers of their columns;
    [2, Q, k], the largest first, the smallest first."""

    k: int
    values: Tensor = field(default_factory=lambda: torch.empty(2, 0, 0))
    indices: Tensor = field(default_factory=lambda: torch.empty(2, 0, 0, dtype=torch.long))

    def add(self, start: int, tile_qn: Tensor) -> None:
        """Columns from number `start` on."""
        tile = tile_qn.cpu()
        count = min(self.k, tile.shape[1])
        ends = [tile.topk(count, largest=largest) for largest in (True, False)]
        self.merge(
            torch.stack([one.values for one in ends]),
            torch.stack([start + one.indices for one in ends]),
        )

    def merge(self, values: Tensor, indices: Tensor) -> None:
        """Those of other columns."""
        if self.values.numel():
            values = torch.cat([self.values, values], 2)
            indices = torch.cat([self.indices, indices], 2)
        count = min(self.k, values.shape[2])
        chosen = torch.stack(
            [values[0].topk(count).indices, values[1].topk(count, largest=False).indices]
        )
        self.values, self.indices = values.gather(2, chosen), indices.gather(2, chosen)
