"""What an index answers to a query."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from curvfluence.indexing.records import Recall
from curvfluence.score.certificate import Certificate, Certifier
from curvfluence.score.scores import Ranked


@dataclass(frozen=True)
class Took:
    """Seconds: gradients and solves of the queries, the search through φ, and exact scores of the
    candidates."""

    encoding: float
    searching: float
    scoring: float


@dataclass(frozen=True, eq=False)
class Found:
    """The most helpful and the most harmful examples of each query, [Q, k], with exact influences
    under `rung`, in the units of the measurement; out of `candidates` at either end by φ.

    `recall` is what the first stage was measured to miss when the index was made, for its own k and
    number of candidates. Numbers from `trained` on are of appended examples: their influence is
    that of an example that was trained on with weight 0.
    """

    top: Ranked
    bottom: Ranked
    rung: str
    measurement: str
    unit: str
    candidates: int
    searched: int  # examples of the index
    trained: int
    recall: Recall | None
    took: Took
    notes: tuple[str, ...]
    certifier: Certifier = field(repr=False)

    def certificate(self, against: str = "GGN", dtype: torch.dtype | None = None) -> Certificate:
        """As `Scores.certificate`: the residual of each query's inverse, by one product over the
        training set."""
        return self.certifier(against, dtype)

    def __str__(self) -> str:
        q, k = self.top.indices.shape
        took = self.took
        lines = [
            f"The {k} most helpful and most harmful of {self.searched:,} examples for {q} queries: "
            f"{self.rung}, exact among {self.candidates} candidates at either end",
            f"  measurement  {self.measurement}; unit: {self.unit}",
            f"  seconds      {took.encoding:.3g} gradients and solves, {took.searching:.3g} search,"
            f" {took.scoring:.3g} exact scores",
        ]
        if self.recall is not None:
            lines.append(f"  recall       {self.recall}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
