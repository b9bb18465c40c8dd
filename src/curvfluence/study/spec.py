"""What a study does: every setting, each default in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from curvfluence.errors import InputError
from curvfluence.study.protocols import PROTOCOLS, Protocol, protocol
from curvfluence.study.results import StudySettings
from curvfluence.study.variant import Variant

LADDER: tuple[str, ...] = tuple(PROTOCOLS["clean"].rungs(0))  # from the top down
# λ in the units of C: half decades, one shared grid for all rungs.
GRID: tuple[float, ...] = tuple(float(f"{value:.6g}") for value in np.logspace(-5, 1, 13))
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class StudySpec:
    """Settings of one study. Equal specs on equal data give equal numbers.

    Errors: `InputError` for a setting that makes no study, before any work.
    """

    problem: str
    subsets: int
    seed: int = 0
    models: int = 4
    orders: int = 2
    alpha: float = 0.5
    rungs: tuple[str, ...] | None = None  # all of the protocol's
    dampings: tuple[float, ...] = GRID
    replicates: int = 500
    dtype: str = "float32"
    protocol: str = "clean"
    fishers: tuple[str, ...] = ()  # K-FAC and EK-FAC of further Fisher types, beside the protocol's
    variant: Variant = Variant()  # noqa: RUF009 - a frozen value
    bregman: bool = True  # whether every rung is held against the proximal Bregman response too
    hybrids: bool = True  # whether hybrids stand beside the ladder
    costs: bool = True  # whether memory and operations are measured, in a run of their own
    queries: int | None = None  # how many of the problem's, the first ones; all
    spectra: bool = True  # whether rungs are decomposed: spectra, overlaps, errors of inverses
    scores: bool = True  # whether every rung's scores and predictions are kept, for the explorer
    bounds: bool = False  # whether the errors of scores against the exact GGN's are bounded

    def __post_init__(self) -> None:
        known = tuple(self.plan.rungs(0))
        chosen = known if self.rungs is None else self.rungs
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise InputError(f"there is no rung {unknown[0]!r}; the ladder is {', '.join(known)}")
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"name each rung once; seen {', '.join(chosen) or 'none'}")
        # All of them named is none named: the same study, whose folder has the same key.
        named = tuple(name for name in known if name in chosen)
        object.__setattr__(self, "rungs", None if named == known else named)
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}; seen {self.dtype!r}")
        if not 0 < self.alpha < 1:
            raise InputError(
                f"alpha, the fraction of the data that a subset keeps, must lie between 0 and 1; "
                f"seen {self.alpha}"
            )
        for name, least in (("subsets", 3), ("models", 1), ("orders", 1), ("replicates", 200)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}; seen {value}")
        if self.queries is not None and self.queries < 2:
            raise InputError(f"queries must be at least 2; seen {self.queries}")
        if self.seed < 0:
            raise InputError(f"seed must be >= 0; seen {self.seed}")

    @property
    def plan(self) -> Protocol:
        """The protocol with the further Fisher types."""
        return protocol(self.protocol).with_fishers(self.fishers)

    @property
    def ladder(self) -> tuple[str, ...]:
        """The chosen rungs from the top down."""
        return tuple(self.plan.rungs(0)) if self.rungs is None else self.rungs

    def seeds(self, purpose: str, count: int) -> list[int]:
        """`count` seeds for one purpose, derived from `seed`; no two purposes share a stream."""
        words = [self.seed, *purpose.encode()]
        return [int(s) for s in np.random.SeedSequence(words).generate_state(count)]

    @property
    def settings(self) -> StudySettings:
        """As results keep them: every rung by its name."""
        fields: dict[str, Any] = {
            **asdict(self),
            "rungs": self.ladder,
            "variant": self.variant.changes,
        }
        return StudySettings(**fields)
