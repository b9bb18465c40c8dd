"""`index.json`: what an index is of, and the files that it consists of."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from curvfluence.store.arrays import Size, StoredArray
from curvfluence.store.records import Record

INDEX = "index.json"
BEGUN = "begun.json"  # until the first of index.json is written
CURVATURE = "curvature"  # the folder of the curvature
REMEDY = "make the index again in another folder"


Share = Annotated[float, Meta(ge=0, le=1)]


class Begun(Record, frozen=True):
    """Written before anything else: what is in a folder without `index.json` is this call's."""

    remedy = REMEDY

    key: str


class Shard(Record, frozen=True):
    """φ [n, d] of `examples` that follow on each other, and a number for the content of each. Of
    those that the index was made with, `ends` has the highest and lowest exact scores on the sample
    queries [2, S, k], with the numbers of the examples behind them."""

    examples: Size
    phi: StoredArray
    ids: StoredArray
    ends: StoredArray | None
    seconds: float


class Recall(Record, frozen=True):
    """Over `queries` of the problem's own: the share of the exact `k` most helpful and most harmful
    that is among the first `candidates` by φ, in the mean and of the worst query; and the relative
    error of scores by φ over the sample that landmarks were chosen among, by dimension."""

    queries: Size
    k: Size
    candidates: Size
    helpful: Share
    harmful: Share
    worst: Share
    errors: tuple[tuple[Size, float], ...]

    def __str__(self) -> str:
        dimension, error = self.errors[-1]
        return (
            f"of the exact {self.k} most helpful and most harmful of {self.queries} queries "
            f"{self.helpful:.1%} and {self.harmful:.1%} are among the first {self.candidates} "
            f"({self.worst:.0%} of the worst query); scores by {dimension} coordinates are off by "
            f"{error:.2g} of their norm"
        )


class SavedDamping(Record, frozen=True):
    """`Relative(value)`, or `Absolute(value)`."""

    relative: bool
    value: float


class IndexRecord(Record, frozen=True):
    """Written after each step: once the curvature is there, once landmarks are, after each shard.
    `made_of` names everything that the numbers depend on, and `key` is its hash; `recall` is there
    once all of the training set is. φ was divided by `scale` before it was written."""

    version_at = ("version",)
    remedy = REMEDY

    version: str
    key: str
    made_of: dict[str, str]
    fitted_on: str
    rung: str
    damping: SavedDamping
    examples: Size  # N, of the training set
    measurement: str
    unit: str
    lower_is_better: bool
    dtype: str
    notes: tuple[str, ...]
    scale: Annotated[float, Meta(gt=0)] = 1.0
    landmarks: StoredArray | None = None
    factor: StoredArray | None = None
    errors: tuple[tuple[Size, float], ...] = ()
    shards: tuple[Shard, ...] = ()
    recall: Recall | None = None
    # of what `fitted_on` is of, to say what differs; earlier indexes have none
    parts: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def dimension(self) -> int:
        return 0 if self.landmarks is None else self.landmarks.shape[0]

    @property
    def held(self) -> int:
        """How many examples there are so far, appended ones too."""
        return sum(one.examples for one in self.shards)
