"""`results.json`: every number of a study."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from curvfluence.store.folder import MadeBy
from curvfluence.store.records import Record, as_json
from curvfluence.study.results.claim import ClaimRow
from curvfluence.study.results.rung import RungResult
from curvfluence.study.results.settings import (
    Count,
    DisplaySummary,
    Environment,
    Seconds,
    StudySettings,
)
from curvfluence.study.results.step import (
    Decomposition,
    DecompositionStep,
    InverseVectors,
    OverlapSummary,
    RungDifference,
    Step,
)
from curvfluence.study.results.truth import ResponseSummary, StageSeconds, TruthSummary
from curvfluence.study.words import plain

# What differs between two runs of the same study, and every "..._seconds".
MEASURED = frozenset({"digest", "manifest", "seconds", "peak_bytes", "pareto"})


def _unmeasured(value: Any) -> Any:
    """JSON without what differs between two runs of the same study."""
    if isinstance(value, list | tuple):
        return [_unmeasured(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    return {
        key: _unmeasured(each)
        for key, each in value.items()
        if key not in MEASURED and not key.endswith("_seconds")
    }


class Results(Record, frozen=True):
    """What a study found: rungs from the top of the ladder down, then hybrids; steps between
    neighbours; paired differences of all pairs.

    `decomposition` is the first of `decompositions`, one for each Fisher type. `flipped` are the
    training examples whose label was changed on purpose, `flipped_from` their true labels.
    `refused` are the rungs that were left out, with the reason, `bounds_missing` is why no errors
    are bounded. `own_model` is the influence model
    that is the problem's own, where it has one. `digest` is the
    SHA-256 of all of it but what was measured (seconds, memory, and which rungs these put ahead):
    equal for equal numbers. `manifest` is the seal of the manifest that lists its arrays.
    """

    version_at = ("environment", "curvfluence")
    remedy = "run the study again with --rerun, or remove its folder"

    problem: str
    protocol: str
    spec: StudySettings
    recipe: dict[str, Any]
    environment: Environment
    truth: TruthSummary
    rungs: Annotated[tuple[RungResult, ...], Meta(min_length=1)]
    steps: tuple[Step, ...]
    made_by: MadeBy
    title: str = ""
    description: str = ""
    display: DisplaySummary | None = None
    flipped: tuple[Count, ...] | None = None
    flipped_from: tuple[int, ...] | None = None
    own_model: Count | None = None
    hybrids: tuple[RungResult, ...] = ()
    decomposition: Decomposition | None = None
    decompositions: tuple[Decomposition, ...] = ()
    overlap: OverlapSummary | None = None
    inverse: InverseVectors | None = None
    refused: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    differences: tuple[RungDifference, ...] = ()
    bregman: ResponseSummary | None = None
    bregman_missing: str | None = None
    bounds_missing: str | None = None
    seconds: StageSeconds | None = None
    study_seconds: Seconds | None = None
    report_seconds: Seconds | None = None
    claims: tuple[ClaimRow, ...] = ()
    digest: str = ""
    manifest: str = ""

    def sealed(self) -> Results:
        """With the digest of what it holds now: to be taken before it is written."""
        held = json.dumps(_unmeasured(as_json(self)), sort_keys=True, separators=(",", ":"))
        return replace(self, digest=sha256(held.encode()).hexdigest())

    def __post_init__(self) -> None:
        names = Counter(rung.name for rung in self.every_rung)
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"the rung {name!r} stands {count} times")
            if not name or set(name) & set("/\\\0"):  # arrays are files of that name
                raise ValueError(f"no rung can be named {name!r}")

    @property
    def every_rung(self) -> tuple[RungResult, ...]:
        """The ladder from the top down, then the hybrids."""
        return (*self.rungs, *self.hybrids)

    @property
    def ladder(self) -> tuple[RungResult, ...]:
        """The rungs without those of further Fisher types, which would crowd a figure."""
        return tuple(rung for rung in self.rungs if "[" not in rung.name)

    @property
    def best(self) -> RungResult:
        """The rung of the ladder with the highest LDS."""
        return max(self.rungs, key=lambda rung: rung.lds)

    @property
    def heading(self) -> str:
        """What the problem is called."""
        return self.title or self.problem

    @property
    def changed(self) -> str:
        """What differs from the problem as it is: "depth 2, weight decay 0", or ""."""
        changes = self.spec.variant.items()
        return ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in changes)

    @property
    def loss(self) -> str:
        """The kind of loss that the recipe describes, "" where it says none."""
        loss = self.recipe.get("loss")
        return str(loss.get("kind", "")) if isinstance(loss, dict) else ""

    def rung(self, name: str) -> RungResult | None:
        """The rung or hybrid of that name."""
        return next((rung for rung in self.every_rung if rung.name == name), None)

    def step(self, above: str, below: str) -> Step | None:
        """The step down the ladder between two rungs."""
        return next((step for step in self.steps if step.pair == (above, below)), None)

    def difference(self, a: str, b: str) -> RungDifference | None:
        """LDS of a less LDS of b, where the study has it."""
        for pair in self.differences:
            if (pair.a, pair.b) == (a, b):
                return pair
            if (pair.b, pair.a) == (a, b):
                return pair.reversed
        return None

    def eigenvalue_step(self, fisher: str) -> DecompositionStep | None:
        """The step from EK-FAC to K-FAC of one Fisher type, where the study has its share."""
        for part in self.decompositions:
            if part.fisher == fisher:
                return part.eigenvalue_step
        return None
