"""What the paper says of its own cells, and what they say of why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from curvfluence.errors import InputError
from curvfluence.study.claims.claim import Claim, Rule, error_share, gap, loss_share
from curvfluence.study.claims.estimate import Estimate, OverModels, Share, Smallest
from curvfluence.study.protocols import EXACT_VALUES, SAMPLED
from curvfluence.study.results import DecompositionStep
from curvfluence.study.results.rung import Errors, InverseErrorResult
from curvfluence.study.study import Study

CHAIN = ("GGN", "BlockGGN", "EKFAC", "KFAC")
OTHER = ("GGN", "BlockGGN", "EShampoo", "TKFAC")
SHARED = 0.01  # the λ at which damped inverses are compared in a claim; the page has the whole grid
SWAPPED = "eigenvalues of KFAC on BlockGGN"


@dataclass(frozen=True)
class CellClaim(Claim):
    """A claim of one cell. `exact`: it speaks of the Hessian, of errors of inverses or of hybrids,
    which the widest nets have for their first model only."""

    exact: bool = False


def table1_claims() -> tuple[CellClaim, ...]:
    """Every claim, first the paper's, then what explains it."""
    block, share = "BlockGGN", "The eigenvalue step is the majority of the approximation error"
    return (
        _claim("Better Hessians give better scores: H > K-FAC", gap("Hessian", "KFAC"), exact=True),
        _claim(
            "Better Hessians give better scores at every step: GGN > block > EK-FAC > K-FAC",
            lambda study: Smallest(tuple(gap(a, b)(study) for a, b in pairwise(CHAIN))),
        ),
        CellClaim("H ≥ GGN", Rule.NOT_LESS, gap("Hessian", "GGN"), exact=True),
        _claim("GGN ≫ block GGN", gap("GGN", block)),
        _claim("block GGN ≫ EK-FAC", gap(block, "EKFAC")),
        _claim("EK-FAC ≫ K-FAC", gap("EKFAC", "KFAC")),
        _claim("EK-FAC ≫ K-FAC with factored damping", gap("EKFAC", "KFAC(factored)")),
        *(
            _claim(f"EK-FAC ≫ K-FAC, {how} factors{of}", gap(f"{ekfac}[{f}]", f"KFAC[{f}]"))
            for f, how in zip(SAMPLED, ("1-sample", "5-sample", "empirical"), strict=True)
            for ekfac, of in (("EKFAC", ""), (EXACT_VALUES, " and exact eigenvalues"))
        ),
        *(
            CellClaim(f"{share}, squared norms{of}", Rule.MAJORITY, error_share(*pair, _squares))
            for of, pair in _eigenvalue_steps()
        ),
        CellClaim(f"{share}, norms", Rule.MAJORITY, error_share("EKFAC", "KFAC", _norms)),
        _claim(
            "The paper's error of the inverse grows at every step (mean)",
            _rises(lambda errors: errors.train.cut, "mean"),
            exact=True,
        ),
        _claim(
            "The paper's error of the inverse grows at every step (median)",
            _rises(lambda errors: errors.train.cut, "median"),
            exact=True,
        ),
        _claim(
            f"The error of the inverse damped by {SHARED:g} grows at every step (mean)",
            _rises_damped,
            exact=True,
        ),
        _claim(
            "In the paper's error of the inverse, the eigenvalue step is the largest (mean)",
            _largest(lambda errors: errors.train.cut, "mean"),
            exact=True,
        ),
        CellClaim(
            "The eigenvalue step is the majority of the influence loss",
            Rule.MAJORITY,
            loss_share(("EKFAC", "KFAC"), ("GGN", "KFAC")),
        ),
        CellClaim(
            "Wrong eigenvalues on the block's own eigenvectors lose the majority of what K-FAC "
            "loses to the block",
            Rule.MAJORITY,
            _swapped,
            exact=True,
        ),
        _claim("block GGN ≫ EShampoo", gap(block, "EShampoo")),
        _claim("EShampoo ≫ TKFAC", gap("EShampoo", "TKFAC")),
        _claim("TKFAC ≫ Shampoo", gap("TKFAC", "Shampoo")),
        _claim("EShampoo > EK-FAC", gap("EShampoo", "EKFAC")),
    )


def _claim(text: str, number: Callable[[Study], Estimate], *, exact: bool = False) -> CellClaim:
    return CellClaim(text, Rule.GREATER, number, exact=exact)


def _eigenvalue_steps() -> list[tuple[str, tuple[str, str]]]:
    """The last step of each chain, by what is said of it."""
    return [
        ("", ("EKFAC", "KFAC")),
        (", EShampoo → TKFAC", ("EShampoo", "TKFAC")),
        *((f", {f} factors", (f"{EXACT_VALUES}[{f}]", f"KFAC[{f}]")) for f in SAMPLED),
    ]


def _squares(step: DecompositionStep) -> tuple[float | None, ...] | None:
    return step.share_models


def _norms(step: DecompositionStep) -> tuple[float | None, ...] | None:
    return step.norm_share_models


def _swapped(study: Study) -> Share:
    """(LDS of the block − LDS of K-FAC's eigenvalues on the block's eigenvectors) / (LDS of the
    block − LDS of K-FAC): what the eigenvalues alone cost."""
    lost, whole = gap("BlockGGN", SWAPPED)(study), gap("BlockGGN", "KFAC")(study)
    return Share(lost, whole)


def inverse_errors_of(
    study: Study, name: str, of: Callable[[InverseErrorResult], Errors], middle: str
) -> tuple[float, ...]:
    """A number for each model. Errors: `InputError` where the study has none."""
    rung = study.results.rung(name)
    if rung is None or rung.inverse is None:
        raise InputError(f"{study.path} holds no error of the inverse of {name}")
    values = getattr(of(rung.inverse), middle)
    if any(value is None for value in values):
        raise InputError(f"{name} has no inverse at some model: its threshold drops everything")
    return tuple(values)


def _steps(
    study: Study, of: Callable[[InverseErrorResult], Errors], middle: str
) -> list[tuple[float, ...]]:
    """By how much the error grows at each step of the chain, for each model; they add up to the
    whole."""
    errors = [inverse_errors_of(study, name, of, middle) for name in CHAIN]
    return [
        tuple(b - a for a, b in zip(above, below, strict=True)) for above, below in pairwise(errors)
    ]


def _rises(of: Callable[[InverseErrorResult], Errors], middle: str) -> Callable[[Study], Smallest]:
    return lambda study: Smallest(tuple(map(OverModels, _steps(study, of, middle))))


def _rises_damped(study: Study) -> Smallest:
    at = study.results.spec.dampings.index(SHARED)
    return _rises(lambda errors: errors.train.damped[at], "mean")(study)


def _largest(
    of: Callable[[InverseErrorResult], Errors], middle: str
) -> Callable[[Study], OverModels]:
    """By how much the last step exceeds the largest of the others."""

    def number(study: Study) -> OverModels:
        *others, last = _steps(study, of, middle)
        pairs = zip(last, zip(*others, strict=True), strict=True)
        return OverModels(tuple(own - max(rest) for own, rest in pairs))

    return number
