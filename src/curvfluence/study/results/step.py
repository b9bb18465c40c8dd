"""What separates two rungs: the LDS lost from one to the next, distances and their shares."""

from __future__ import annotations

from curvfluence.fidelity import Interval
from curvfluence.store.records import Record
from curvfluence.study.results.settings import AtLeastOne, Count


class Step(Record, frozen=True, rename={"above": "from", "below": "to"}):
    """LDS of the upper rung less that of the lower, with its paired interval."""

    above: str
    below: str
    lds_lost: float
    interval: Interval

    @property
    def name(self) -> str:
        return f"{self.above} → {self.below}"

    @property
    def pair(self) -> tuple[str, str]:
        return self.above, self.below

    @property
    def resolved(self) -> bool:
        return self.interval.resolved


class DecompositionStep(Step, frozen=True):
    """A step as `fidelity.decompose` has it: squared distance, its share in ‖GGN − KFAC‖² and in
    the sum of plain norms (the mean over models, and each model's), and relative errors of the
    damped inverse and of scores at every λ of the grid, None in a hole of one of the two."""

    distance_squared: float
    share: float | None = None
    share_models: tuple[float | None, ...] | None = None
    norm_share: float | None = None
    norm_share_models: tuple[float | None, ...] | None = None
    inverse_error: tuple[float | None, ...] = ()
    score_error: tuple[float | None, ...] = ()
    lds_share: float | None = None
    lds_share_interval: Interval | None = None


class Decomposition(Record, frozen=True):
    """The steps of one chain, whose factors have one Fisher type: that names it, and where it
    does not end in K-FAC, what it ends in."""

    fisher: str
    dampings: tuple[float, ...]
    steps: tuple[DecompositionStep, ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            for errors in (step.inverse_error, step.score_error):
                if len(errors) not in (0, len(self.dampings)):
                    raise ValueError(
                        f"{step.name} has {len(errors)} errors for {len(self.dampings)} dampings"
                    )

    @property
    def chain(self) -> tuple[DecompositionStep, ...]:
        """The steps whose squared distances add up to ‖GGN − KFAC‖²."""
        return tuple(step for step in self.steps if step.share is not None)

    @property
    def eigenvalue_step(self) -> DecompositionStep | None:
        """The step from EK-FAC to K-FAC, in which only the eigenvalues change."""
        return self.chain[-1] if self.chain else None


class RungDifference(Record, frozen=True):
    """LDS of a less LDS of b, with its paired interval."""

    a: str
    b: str
    difference: float
    interval: Interval

    @property
    def reversed(self) -> RungDifference:
        return RungDifference(self.b, self.a, -self.difference, -self.interval)


class InverseVectors(Record, frozen=True):
    """What inverses were held against the exact Hessian's on: how many gradients of training
    examples and of queries, how many of them were 0 over all models, and the threshold τ."""

    threshold: float
    train: Count
    queries: Count
    zero: Count


class BlockOverlap(Record, frozen=True):
    """How much the leading eigenspaces of one layer share, by their size."""

    name: str
    overlap: tuple[float, ...]


class OverlapPair(Record, frozen=True):
    """How much of the leading eigenspace of a lies in that of b, by its size; and layer by layer
    where both are block-diagonal."""

    a: str
    b: str
    overlap: tuple[float, ...]
    blocks: tuple[BlockOverlap, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.a} & {self.b}"


class OverlapSummary(Record, frozen=True):
    """Overlaps of neighbours at the first model, at the ranks; a small layer has the first few."""

    ranks: tuple[AtLeastOne, ...]
    pairs: tuple[OverlapPair, ...]

    def __post_init__(self) -> None:
        for pair in self.pairs:
            for name, shared in (
                (pair.name, pair.overlap),
                *((f"{pair.name} at {block.name}", block.overlap) for block in pair.blocks),
            ):
                if not 0 < len(shared) <= len(self.ranks):
                    raise ValueError(
                        f"{name} has {len(shared)} overlaps for {len(self.ranks)} ranks"
                    )
