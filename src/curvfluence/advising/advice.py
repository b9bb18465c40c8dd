"""What is advised, and everything that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.advising.dampings import Tried
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.rung import Rung
from curvfluence.study.words import number, seconds, size


@dataclass(frozen=True)
class Measured:
    """LDS of a rung against retrained subsets, on queries that did not choose its λ: at the λ that
    the truth prefers, and at the one that was advised without it."""

    best: Damping
    lds: float
    at_advised: float

    @property
    def regret(self) -> float:
        """What the advised λ loses."""
        return self.lds - self.at_advised


@dataclass(frozen=True)
class Candidate:
    """A rung: its forecast for all queries, whether the budget and this machine allow it, and,
    where it was run on some queries, its seconds for all of them, how far its scores agree with
    those of the highest affordable rung (mean rank correlation, share of the ten most helpful), and
    the median residual of its inverse against the exact GGN."""

    name: str
    rung: Rung
    forecast: float
    nbytes: float
    affordable: bool
    reason: str = ""  # why it was left out, or not run
    seconds: float | None = None
    correlation: float | None = None
    overlap: float | None = None
    residual: float | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class Advice:
    """`rung` and `damping` for `budget` seconds. `candidates` are the ladder from the top down,
    `tried` the criteria for λ (none where they would have gone beyond the budget), `by` the one
    that was followed."""

    rung: Rung
    name: str
    damping: Damping
    budget: float
    queries: int
    asked: int  # queries that candidates were run on
    candidates: tuple[Candidate, ...]
    tried: tuple[Tried, ...]
    by: str
    notes: tuple[str, ...]
    seconds: float

    @property
    def candidate(self) -> Candidate:
        """The advised one."""
        return next(one for one in self.candidates if one.name == self.name)

    @property
    def above(self) -> Candidate | None:
        """One step more: the next rung up; None at the top."""
        place = self.candidates.index(self.candidate)
        return self.candidates[place - 1] if place else None

    @property
    def sentence(self) -> str:
        """What to use, and what it takes."""
        one = self.candidate
        taken = one.forecast if one.seconds is None else one.seconds
        text = (
            f"Use {self.name} with damping {written(self.damping)}: about {seconds(taken)} and "
            f"{size(one.nbytes)} for {self.queries} queries, "
            f"{'within' if taken <= self.budget else 'more than'} the budget of "
            f"{seconds(self.budget)}"
        )
        if one.measured is not None:
            text += f"; LDS {number(one.measured.lds)} against retraining"
        return f"{text}."

    @property
    def step(self) -> str:
        """What one step more accuracy would cost."""
        above = self.above
        if above is None:
            return f"{self.name} is the highest rung that is advised: there is no step more."
        cost = f"{seconds(above.forecast)} and {size(above.nbytes)}"
        text = f"One step more, {above.name}, is forecast at {cost}"
        return f"{text} ({above.reason})." if above.reason else f"{text}."

    def __str__(self) -> str:
        return "\n".join([self.sentence, self.step, *(f"note: {note}" for note in self.notes)])


def written(damping: Damping) -> str:
    """As a user writes it, with three digits."""
    value = getattr(damping, "value", None)
    return str(damping) if value is None else f"{type(damping).__name__}({value:.3g})"
