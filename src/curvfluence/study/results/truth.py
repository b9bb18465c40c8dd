"""What the truth of a study is, how far it agrees with itself, and what measuring took."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from curvfluence.store.records import Record
from curvfluence.study.results.settings import AtLeastOne, Count, Seconds


class ByQuestion(Record, frozen=True):
    """A number for retraining from the same initial weights, and one for other initial weights;
    None where the truth is too small to say."""

    matched: float | None = None
    independent: float | None = None


class DivergedRetraining(Record, frozen=True):
    """A retraining that ended in NaN or infinity, by the numbers of its initialisation, of its
    order, and of its subset among those that were drawn."""

    model: Count
    order: Count
    subset: Count


class TruthSummary(Record, frozen=True):
    """Retraining on `subsets` that keep `kept` of `train` examples each; those on which a
    retraining diverged are not among them. `noise_ceiling` is the
    reliability of each question's truth, `best_lds` about its square root."""

    subsets: AtLeastOne
    alpha: Annotated[float, Meta(gt=0, lt=1)]
    kept: Count
    train: AtLeastOne
    queries: AtLeastOne
    models: AtLeastOne
    orders: AtLeastOne
    retrainings: Count
    measurement: str
    unit: str
    lower_is_better: bool
    path: str
    influence_model_loss: Annotated[tuple[float, ...], Meta(min_length=1)]
    retrained_loss: float
    seconds: Seconds
    noise_ceiling: ByQuestion
    best_lds: ByQuestion
    notes: tuple[str, ...]
    diverged: tuple[DivergedRetraining, ...] = ()


class ResponseSummary(Record, frozen=True):
    """How the proximal Bregman response was measured: at which damping λ, of how many models, and
    how many groups of examples converged at all of them."""

    damping: float
    epsilon: float
    alpha: float
    models: Count
    groups: Count
    groups_dropped: Count
    converged: bool
    mean_evaluations: float
    seconds: Seconds


class StageSeconds(Record, frozen=True):
    """Wall-clock seconds of each stage: of training the influence models, of climbing the ladder
    (both may have served other studies too), of retraining, comparing, of the response and of
    bounds; those of killed commands among them."""

    models: Seconds
    climb: Seconds
    truth: Seconds
    compare: Seconds
    bregman: Seconds
    bounds: Seconds = 0.0
