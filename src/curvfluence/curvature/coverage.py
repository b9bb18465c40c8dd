"""What covers which parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curvfluence.problem.problem import Problem

FALLBACK_SHARE = 0.05  # of P, above which the result's name says that fallbacks were used


@dataclass(frozen=True)
class CoverageLine:
    """Which parameters, how many numbers, by what rule; `fallback` where the rung has none."""

    block: str
    parameters: tuple[str, ...]
    count: int
    rule: str
    fallback: bool = False


def over_everything(problem: Problem, rule: str) -> tuple[CoverageLine, ...]:
    """The coverage of a single block over all parameters."""
    return (CoverageLine("all", problem.parameters.names, problem.parameters.count, rule),)


def fallback_share(lines: Sequence[CoverageLine]) -> float:
    """The share of all parameters that a fallback covers."""
    every = sum(line.count for line in lines)
    return sum(line.count for line in lines if line.fallback) / every


def named(rung: str, lines: Sequence[CoverageLine]) -> str:
    """The rung, and that fallbacks were used where they hold more than 5% of P."""
    share = fallback_share(lines)
    return rung if share <= FALLBACK_SHARE else f"{rung} + fallbacks for {share:.0%}"
