"""What scores are worth, as a file holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from curvfluence.errors import InputError
from curvfluence.fidelity import Calibration, Interval
from curvfluence.store.records import Record, read
from curvfluence.study.results import Environment, StudySettings
from curvfluence.study.results.rung import Dampings
from curvfluence.study.results.settings import AtLeastOne, Count, Seconds
from curvfluence.study.results.truth import ByQuestion


class Removed(Record, frozen=True):
    """The mean change of a query's measurement when the `count` examples that help it most by some
    method are left out and the model is trained again, with its 95% interval over models and
    queries. `share` is that of the training set."""

    share: float
    count: AtLeastOne
    change: float
    interval: Interval


class Method(Record, frozen=True):
    """One method on the judged models.

    `lds` answers for retraining from the same initial weights, with the crossed 95% `interval` and
    those over subsets and over queries alone; `lds_independent` for other initial weights;
    `lds_ensemble` of the mean of the judged models' scores, for the mean of their truths, None of a
    single model. `less`
    is the LDS of the judged scores minus this one's, paired, with its interval; None for
    themselves. `calibration` is of methods whose scores have units. `dampings` are those of a rung
    of ours whose λ is cross-fitted. `undefined` counts pairs of model and query whose predictions
    or truth are constant, which count as LDS 0.
    """

    name: str
    kind: Literal["judged", "ours", "baseline"]
    said: str
    lds: float
    interval: Interval
    interval_subsets: Interval
    interval_queries: Interval
    lds_independent: float | None = None
    lds_ensemble: float | None = None
    less: float | None = None
    less_interval: Interval | None = None
    calibration: Calibration | None = None
    dampings: Dampings | None = None
    undefined: Count = 0
    removed: tuple[Removed, ...] = ()


class Judgement(Record, frozen=True):
    """What scores are worth: `methods` has them first, then rungs of ours and baselines.

    Of the `retrainings` of the truth, and of its influence models, `trained` were not in the bank
    before. `models` are the influence models that the scores are of; `best_lds` is what the truth's
    noise allows under each question, about the root of `reliability`. `control` is what leaving
    out as many random examples does. `notes` is what a reader must know of these numbers.
    """

    version_at = ("environment", "curvfluence")
    remedy = "judge the scores again"

    environment: Environment
    problem: str
    unit: str
    lower_is_better: bool
    settings: StudySettings
    bank: str
    retrainings: AtLeastOne
    trained: Count
    models: tuple[Count, ...]
    scores: tuple[str, ...]
    positive: str
    order: str
    has_units: bool
    reliability: ByQuestion
    best_lds: ByQuestion
    methods: Annotated[tuple[Method, ...], Meta(min_length=1)]
    control: tuple[Removed, ...]
    removal_queries: Count
    removal_retrainings: Count
    notes: tuple[str, ...]
    seconds: Seconds  # of the command that wrote it, no killed one before it

    @property
    def judged(self) -> Method:
        """The scores that were given."""
        return self.methods[0]

    def method(self, name: str) -> Method:
        """That of a name. Errors: `InputError` lists the names."""
        for method in self.methods:
            if method.name == name:
                return method
        raise InputError(
            f"there is no method {name!r}; there are {', '.join(m.name for m in self.methods)}"
        )


def read_judgement(path: Path | str) -> Judgement:
    """What `judge` wrote. Errors: `InputError` where there is none, or it does not fit."""
    found = read(Path(path), Judgement)
    if found is None:
        raise InputError(f"{path} is not there")
    return found
