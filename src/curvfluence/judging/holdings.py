"""How large the truth in a bank is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from curvfluence.truth.bank import MODELS, RETRAINED, Bank


@dataclass(frozen=True)
class Holdings:
    """How many influence models a bank has, on how many subsets they were retrained, and in how
    many minibatch orders; 0 where it has none."""

    models: int
    subsets: int
    orders: int

    @staticmethod
    def of(bank: Bank, alpha: float) -> Holdings:
        """Of the retrainings that keep a fraction alpha. Errors: `InputError` for a bank whose
        records or subsets are not what was written."""
        models = 0
        subsets: dict[tuple[int, int], set[bytes]] = defaultdict(set)
        for entry in bank.entries():
            batch = entry.batch
            if batch.kind == MODELS:
                models = max(models, len(batch.init_seeds))
            elif batch.kind == RETRAINED and batch.alpha == alpha:
                at = batch.init_seeds[0], batch.order_seeds[0]
                subsets[at] |= {row.numpy().tobytes() for row in bank.arrays(entry)["subsets"]}
        inits = [init for init, _ in subsets]
        return Holdings(
            models,
            max(map(len, subsets.values()), default=0),
            max(map(inits.count, inits), default=0),
        )
