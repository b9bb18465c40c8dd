"""The claims of "Better Hessians Matter" (arXiv 2509.23437), as numbers that decide themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from curvfluence.errors import InputError
from curvfluence.study.claims.estimate import (
    TAIL,
    Drawn,
    Estimate,
    Floats,
    OverModels,
    Share,
    Smallest,
)
from curvfluence.study.protocols import EXACT_VALUES, protocol
from curvfluence.study.results import DecompositionStep
from curvfluence.study.study import Study

MARGIN = 0.02  # LDS by which a rung may fall short and still count as no worse
Word: TypeAlias = Literal["holds", "does not hold", "not resolved"]
HOLDS: Word = "holds"
FAILS: Word = "does not hold"
OPEN: Word = "not resolved"


class Rule(Enum):
    """When an interval (low, high) says that a claim holds, and when that it does not."""

    GREATER = "> 0"
    NOT_LESS = f"≥ 0, to within {MARGIN:g}"
    MAJORITY = "> ½"

    def verdict(self, low: float, high: float) -> Word:
        least = {Rule.GREATER: 0.0, Rule.NOT_LESS: -MARGIN, Rule.MAJORITY: 0.5}[self]
        refuted = 0.5 if self is Rule.MAJORITY else 0.0
        if high < refuted:
            return FAILS
        return HOLDS if low > least else OPEN


@dataclass(frozen=True)
class Claim:
    """What is said, the number that it speaks of in one study, and what decides it."""

    text: str
    rule: Rule
    number: Callable[[Study], Estimate]

    @property
    def share(self) -> bool:
        """Whether its number is a share, which has no sign."""
        return self.rule is Rule.MAJORITY

    def verdict(self, estimate: Estimate) -> Word:
        return self.rule.verdict(estimate.low(TAIL), estimate.high(TAIL))


def claims(protocol_name: str) -> tuple[Claim, ...]:
    """Every claim, in terms of the rungs of a protocol.

    A sampled ladder has EK-FAC twice: with exact eigenvalues, which is the orthogonal chain's, and
    with eigenvalues of the same sample.
    """
    chain = protocol(protocol_name).chains[0]
    ggn, block, ekfac, kfac = chain.rungs
    forms = {"EK-FAC": ekfac}
    if ekfac == EXACT_VALUES:
        forms = {"EK-FAC (exact eigenvalues)": ekfac, "EK-FAC (sampled eigenvalues)": "EKFAC"}
    error = "The eigenvalue mismatch is the majority of the approximation error"
    return (
        Claim("Better Hessians give better scores: H > K-FAC", Rule.GREATER, gap("Hessian", kfac)),
        Claim(
            "Better Hessians give better scores at every step: GGN > block > EK-FAC > K-FAC",
            Rule.GREATER,
            lambda study: Smallest(tuple(gap(a, b)(study) for a, b in chain.steps)),
        ),
        Claim("H ≥ GGN", Rule.NOT_LESS, gap("Hessian", ggn)),
        Claim("GGN ≫ block GGN", Rule.GREATER, gap(ggn, block)),
        *(Claim(f"block GGN ≫ {k}", Rule.GREATER, gap(block, v)) for k, v in forms.items()),
        *(Claim(f"{k} ≫ K-FAC", Rule.GREATER, gap(v, kfac)) for k, v in forms.items()),
        Claim(
            f"{error}, squared norms",
            Rule.MAJORITY,
            error_share(ekfac, kfac, lambda step: step.share_models),
        ),
        Claim(
            f"{error}, norms",
            Rule.MAJORITY,
            error_share(ekfac, kfac, lambda step: step.norm_share_models),
        ),
        *(
            Claim(
                "The eigenvalue mismatch is the majority of the influence loss"
                + name.removeprefix("EK-FAC").replace(" (", ", ").rstrip(")"),
                Rule.MAJORITY,
                loss_share((rung, kfac), (ggn, kfac)),
            )
            for name, rung in forms.items()
        ),
    )


def gap(above: str, below: str) -> Callable[[Study], Drawn]:
    """LDS of one rung less that of another, paired."""

    def number(study: Study) -> Drawn:
        (a, a_draws), (b, b_draws) = drawn_lds(study, above), drawn_lds(study, below)
        return Drawn(a - b, a_draws - b_draws)

    return number


def loss_share(step: tuple[str, str], whole: tuple[str, str]) -> Callable[[Study], Share]:
    return lambda study: Share(gap(*step)(study), gap(*whole)(study))


def error_share(
    above: str, below: str, by_model: Callable[[DecompositionStep], tuple[float | None, ...] | None]
) -> Callable[[Study], OverModels]:
    """The step's share of ‖GGN − KFAC‖² (or of the sum of norms), a number for each model."""

    def number(study: Study) -> OverModels:
        for part in study.results.decompositions:
            for step in part.chain:
                if step.pair == (above, below):
                    return OverModels(tuple(x for x in by_model(step) or () if x is not None))
        raise InputError(f"{study.path} has no decomposition of {above} → {below}")

    return number


def drawn_lds(study: Study, name: str) -> tuple[float, Floats]:
    """LDS of a rung and its draws."""
    rung, draws = study.results.rung(name), study.array(f"draws.{name}")
    if rung is None or draws is None:
        raise InputError(f"{study.path} keeps no bootstrap draws of {name}: run it again")
    return rung.lds, draws
