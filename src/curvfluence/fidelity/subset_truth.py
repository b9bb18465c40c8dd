"""A truth of retrained subsets by which `BestOf` chooses a damping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.fidelity.lds import query_halves, spearman


@dataclass(frozen=True, eq=False)
class SubsetTruth:
    """What retraining without each of m groups gave: `left_out` [m, N] and `values` [m, Q].

    `judge` scores predictions [m, Q] by their LDS on each of two fixed random halves of the
    queries: one to choose by, the other to report. Errors: `InputError` for mismatched groups, or
    for fewer than 3 groups or 2 queries.
    """

    left_out: Tensor
    values: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("left_out", self.left_out), ("values", self.values)):
            if not (isinstance(value, Tensor) and value.ndim == 2):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InputError(
                    f"{name} must be a matrix with a row for each group, such as "
                    f"Subsets.left_out; seen {type(value).__name__}"
                )
        if len(self.left_out) != len(self.values):
            raise InputError(
                f"{len(self.left_out)} groups were left out, but there are values for "
                f"{len(self.values)}"
            )
        if len(self.values) < 3 or self.values.shape[1] < 2:
            raise InputError(
                "choosing a damping needs at least 3 groups to rank and 2 queries to hold one out; "
                f"seen {len(self.values)} and {self.values.shape[1]}"
            )

    def judge(self, predicted_mq: Tensor) -> tuple[float, float]:
        """(LDS on the validation half of the queries, LDS on the held-out half)."""
        rows = predicted_mq.detach().cpu().double().numpy()
        truth = self.values.detach().cpu().double().numpy()
        per_query = spearman(np.ascontiguousarray(rows.T), np.ascontiguousarray(truth.T))
        chosen = query_halves(len(per_query), self.seed)
        return float(per_query[chosen].mean()), float(per_query[~chosen].mean())
