"""What covers which parameters."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.problem.problem import Problem


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
