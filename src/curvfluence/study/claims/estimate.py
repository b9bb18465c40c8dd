"""A measured number and how far it can be trusted, at any level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

Floats = NDArray[np.float64]
TAIL = 0.025  # probability beyond each end of a 95% interval


class Estimate(ABC):
    """`value` is None where the number is not defined; an end may be infinite."""

    value: float | None

    @abstractmethod
    def low(self, tail: float) -> float:
        """What the true number lies below with probability at most `tail`."""

    @abstractmethod
    def high(self, tail: float) -> float:
        """What it lies above with probability at most `tail`."""


@dataclass(frozen=True, eq=False)
class Drawn(Estimate):
    """A number with its replicates of the crossed bootstrap, [B]: percentiles."""

    value: float  # pyright: ignore[reportIncompatibleVariableOverride]
    draws: Floats

    def low(self, tail: float) -> float:
        return float(np.quantile(self.draws, tail))

    def high(self, tail: float) -> float:
        return float(np.quantile(self.draws, 1 - tail))


@dataclass(frozen=True)
class OverModels(Estimate):
    """The mean of one number for each influence model: Student's t over the models."""

    values: Sequence[float]

    @property
    def value(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return fmean(self.values)

    def low(self, tail: float) -> float:
        return self.value - self._reach(tail)

    def high(self, tail: float) -> float:
        return self.value + self._reach(tail)

    def _reach(self, tail: float) -> float:
        n = len(self.values)
        if n < 2:
            return inf
        return float(student.ppf(1 - tail, n - 1)) * stdev(self.values) / sqrt(n)


@dataclass(frozen=True, eq=False)
class Share(Estimate):
    """part / whole, each with its paired replicates.

    An interval holds every s for which part − s · whole is not resolved from 0 (Fieller 1954, by
    the bootstrap). Where no replicate of the whole is 0 or less, that is the percentile interval
    of the ratio; where the whole is not resolved from 0, there is nothing to be a share of: no
    value, and no s is left out.
    """

    part: Drawn
    whole: Drawn

    @property
    def value(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.part.value / self.whole.value if self.whole.low(TAIL) > 0 else None

    def low(self, tail: float) -> float:
        return self._end(tail, tail, -inf)

    def high(self, tail: float) -> float:
        return self._end(1 - tail, tail, inf)

    def _end(self, quantile: float, tail: float, unknown: float) -> float:
        if self.whole.low(tail) <= 0:
            return unknown

        def excess(share: float) -> float:
            return float(np.quantile(self.part.draws - share * self.whole.draws, quantile))

        reach = 1.0
        while not excess(-reach) > 0 > excess(reach):
            reach *= 2
            if reach > 2**30:
                return unknown
        return _root(excess, reach)


def _root(function: Callable[[float], float], reach: float) -> float:
    return float(brentq(function, -reach, reach, xtol=1e-10))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Smallest(Estimate):
    """The smallest of several numbers, which is what "in every one of them" speaks of.

    Below: min_v L_v, each at the full level, for to claim too much the smallest's own bound must
    fail (the intersection-union test, Berger 1982). Above: min_v U_v at tail / V, because one
    bound of V that fails is enough to refute too much (Bonferroni). The numbers may depend on each
    other in any way.
    """

    parts: tuple[Estimate, ...]

    @property
    def value(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        known = [part.value for part in self.parts if part.value is not None]
        return min(known) if known else None

    def low(self, tail: float) -> float:
        return min(part.low(tail) for part in self.parts)

    def high(self, tail: float) -> float:
        return min(part.high(tail / len(self.parts)) for part in self.parts)
