"""What a study says of one rung: its LDS under each question, its cost, size and spectrum."""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

from msgspec import Meta

from curvfluence.fidelity import Calibration, Interval
from curvfluence.store.records import Record
from curvfluence.study.results.settings import AtLeastOne, Count, Seconds

Dampings = tuple[float | None, float | None]  # of the first and the second half of the queries
NO_UNITS = "Identity"  # the rung whose values are in no units


class SweepPoint(Record, frozen=True):
    """LDS over all queries at one λ of the shared grid; None is the one λ of a rung without any."""

    damping: float | None
    lds: float
    lds_independent: float | None = None
    lds_ensemble: float | None = None


class Operations(Record, frozen=True):
    """Floating-point operations of the fit, and of scores after it."""

    fit: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    score: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class EffectiveDimension(Record, frozen=True):
    """Σ μ/(μ + λ) over the eigenvalues μ at λ = `damping`."""

    damping: float
    value: float


class NegativePart(Record, frozen=True):
    """How many eigenvalues lie below 0 beyond the rounding of one decomposition, the lowest
    eigenvalue, and Σ |negative| / Σ |all|."""

    count: Count
    lowest: float
    share: float


class Eigenvalues(Record, frozen=True):
    """Eigenvalues at some of their ranks, descending."""

    ranks: tuple[AtLeastOne, ...]
    eigenvalues: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.eigenvalues):
            raise ValueError(f"{len(self.ranks)} ranks for {len(self.eigenvalues)} eigenvalues")


class BlockSpectrum(Eigenvalues, frozen=True):
    """Of one block."""

    name: str


class SpectrumSummary(Eigenvalues, frozen=True):
    """Of the first model's curvature; `condition` is that of the curvature damped by
    `condition_damping`."""

    effective_dimension: tuple[EffectiveDimension, ...]
    condition: float | None
    condition_damping: float
    negative: NegativePart
    blocks: tuple[BlockSpectrum, ...]

    @property
    def largest(self) -> float:
        """The largest size of an eigenvalue."""
        return max(map(abs, self.eigenvalues), default=0.0)

    def floor(self, rounding: float) -> float:
        """10 eps of the largest: an eigenvalue nearer to 0 is not told from it."""
        return 10 * rounding * self.largest

    def indefinite(self, rounding: float) -> bool:
        """Whether negative eigenvalues are more than rounding.

        The lowest must lie beyond the floor. A product B ⊗ A of positive matrices can miss that
        alone: its lowest eigenvalue carries the error of A's times the largest of B's. So all
        negative ones together must be more than 10 eps of all.
        """
        part = self.negative
        return part.lowest < -self.floor(rounding) and part.share > 10 * rounding


class CoveredBlock(Record, frozen=True):
    """Which parameters one block of the curvature covers, how many numbers, by what rule."""

    block: str
    parameters: tuple[str, ...]
    count: Count
    rule: str
    fallback: bool


class Errors(Record, frozen=True):
    """Of the inverse of a rung over some vectors: mean and median, a number for each model; None
    where there is no inverse."""

    mean: tuple[float | None, ...]
    median: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.median):
            raise ValueError(f"{len(self.mean)} means for {len(self.median)} medians")

    @property
    def mean_over_models(self) -> float | None:
        """None where one of them has no inverse."""
        return _mean(self.mean)

    @property
    def median_over_models(self) -> float | None:
        """The mean over models of the median over vectors."""
        return _mean(self.median)


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


class InverseErrorsOver(Record, frozen=True):
    """‖H Ĥ⁺v − v‖²/‖v‖² with |μ| ≤ τ dropped and with μ ≤ τ dropped (`signed`), and at every λ of
    the grid ‖(|H| + λ)(Ĥ + λ)⁻¹v − v‖²/‖v‖² and the same with H for |H| (`plain`)."""

    cut: Errors
    signed: Errors
    damped: tuple[Errors, ...]
    plain: tuple[Errors, ...]


class InverseErrorResult(Record, frozen=True):
    """Over training gradients, and over queries'."""

    train: InverseErrorsOver
    queries: InverseErrorsOver


class Hole(Record, frozen=True):
    """A λ of the grid at which C + diag(w) + λI could not be inverted, at which model and why: it
    is not in the sweep."""

    damping: float
    reason: str


class ProvenError(Record, frozen=True):
    """Bounds on the errors of all scores at the first model against the exact GGN's at the same
    dampings: the largest and the median, in the measurement's unit, and the share of scores that
    exceed theirs, so that their sign is proven. `rows` rows of the GGN hold `trace` of it. None is
    no bound at all."""

    largest: Annotated[float, Meta(ge=0)] | None
    median: Annotated[float, Meta(ge=0)] | None
    signs: Annotated[float, Meta(ge=0, le=1)]
    rows: Count
    trace: float


class RungResult(Record, frozen=True):
    """One rung, or one hybrid, on all influence models.

    `lds` answers for retraining from the same initial weights, with the crossed 95% `interval`, and
    those over subsets and over queries alone. Seconds are medians over the models for one model and
    one damping; None for a hybrid, which is never computed for its own sake. `pareto` says whether
    no rung beats it in LDS and seconds at once. `undefined` counts the pairs of model and query
    whose predictions or truth are constant, which count as LDS 0.
    """

    name: str
    full_name: str
    lds: float
    interval: Interval
    dampings: Dampings
    sweep: Annotated[tuple[SweepPoint, ...], Meta(min_length=1)]
    fit_seconds: Seconds | None
    score_seconds: Seconds | None
    fisher: str | None = None
    surprising_labels: float | None = None
    interval_subsets: Interval | None = None
    interval_queries: Interval | None = None
    lds_independent: float | None = None
    lds_ensemble: float | None = None
    dampings_independent: Dampings | None = None
    dampings_ensemble: Dampings | None = None
    damping_on_edge: bool = False
    undefined: Count = 0
    peak_bytes: Count | None = None
    flops: Operations | None = None
    calibration: Calibration | None = None
    spectrum: SpectrumSummary | None = None
    coverage: tuple[CoveredBlock, ...] = ()
    notes: tuple[str, ...] = ()
    lds_bregman: float | None = None
    interval_bregman: Interval | None = None
    dampings_bregman: Dampings | None = None
    pareto: bool | None = None
    holes: tuple[Hole, ...] = ()
    inverse: InverseErrorResult | None = None
    proven: ProvenError | None = None

    @property
    def seconds(self) -> float | None:
        """Fit and scores together."""
        if self.fit_seconds is None or self.score_seconds is None:
            return None
        return self.fit_seconds + self.score_seconds

    @property
    def operations(self) -> float | None:
        """Of fit and scores together."""
        return None if self.flops is None else float(self.flops.fit + self.flops.score)

    @property
    def has_units(self) -> bool:
        """Whether its values are in the units of the measurement."""
        return self.name != NO_UNITS

    @property
    def best(self) -> SweepPoint:
        """The point of the sweep with the highest LDS."""
        return max(self.sweep, key=lambda point: point.lds)

    @property
    def beyond_edge(self) -> float:
        """The change of LDS from the chosen end of the grid to the λ next to it: near 0 where the
        sweep is merely flat there, and negative where the best λ may lie beyond the grid."""
        if len(self.sweep) < 2:
            return 0.0
        low = self.sweep[0].damping in self.dampings
        end, following = self.sweep[:2] if low else self.sweep[-1:-3:-1]
        return following.lds - end.lds

    @property
    def parameters(self) -> int:
        """How many parameters its blocks cover."""
        return sum(block.count for block in self.coverage)
