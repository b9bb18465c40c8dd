"""The parts of the page below the explorer: which figures and tables stand where."""

from __future__ import annotations

from collections import Counter

from curvfluence.report.parts.figure import Figure
from curvfluence.report.parts.page import Section
from curvfluence.report.parts.table import Table
from curvfluence.report.study.figures import (
    calibration,
    cost,
    decomposition,
    inverses,
    ladder,
    spectra,
)
from curvfluence.report.study.tables import claim_table, proven_table, rung_table
from curvfluence.study.results import Results
from curvfluence.study.results.claim import BASE
from curvfluence.study.study import Study
from curvfluence.study.words import counted, listed, short


def sections(study: Study, rung: str) -> tuple[Section, ...]:
    """Every part; `rung` is the chosen one."""
    results = study.results
    return (
        _ladder(results),
        _lost(results),
        _spectra(results),
        _cost(results),
        _calibration(study, rung),
        _claims(results),
    )


def missing(study: Results) -> tuple[str, ...]:
    """What this study did not compute."""
    reason = f" ({study.bregman_missing})" if study.bregman_missing else ""
    absent = {
        "the decomposition": study.decomposition is None,
        f"the proximal Bregman response{reason}": study.bregman is None,
        f"bounds on errors ({study.bounds_missing})": study.spec.bounds
        and study.bounds_missing is not None,
        "hybrids": not study.hybrids,
        "spectra": all(rung.spectrum is None for rung in study.rungs),
        "calibration": all(rung.calibration is None for rung in study.rungs),
        "operations and peak memory": all(rung.flops is None for rung in study.rungs),
        "claims of the paper": not study.claims,
    }
    left_out = (f"{name} ({why})" for name, why in study.refused.items())
    return (*(name for name, gone in absent.items() if gone), *left_out)


def _drawn(*figures: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures if figure is not None)


def _ladder(study: Results) -> Section:
    return Section(
        id="rungs",
        title="The ladder",
        lead=(
            "A step goes from one rung to the next coarser one. What it loses is the LDS of the "
            "upper rung less that of the lower on the same subsets, queries and models; it is not "
            "resolved where its 95% interval holds 0. Each rung stands at its own best damping λ, "
            "chosen on one half of the queries and reported on the other."
        ),
        figures=_drawn(ladder.steps(study), ladder.sweep(study)),
        tables=(rung_table(study),),
    )


def _lost(study: Results) -> Section:
    lead = (
        "From the GGN down to K-FAC the squared distances of the steps add up, so each has a "
        "share; from the Hessian to the GGN stands apart. What a step costs in distance, it need "
        "not cost in accuracy."
    )
    second = ""
    if study.hybrids:
        second = (
            "K-FAC differs from the block GGN in its eigenvalues and in its eigenvectors: a "
            "hybrid takes one from each and tells which of them costs."
        )
    if study.bregman is not None:
        second += f" {_response(study)}"
    by = decomposition.by_fisher(study)
    return Section(
        id="lost",
        title="Where accuracy is lost",
        lead=lead,
        second=second.strip(),
        figures=_drawn(
            decomposition.shares(study),
            decomposition.errors(study),
            ladder.hybrids(study),
            ladder.bregman(study),
            inverses.damped(study),
        ),
        tables=tuple(
            t for t in (by, proven_table(study), *inverses.tables(study)) if t is not None
        ),
    )


def _response(study: Results) -> str:
    response, truth = study.bregman, study.truth
    assert response is not None
    text = (
        "The proximal Bregman response is the truth whose exact derivative is the damped GGN "
        "influence, so what a rung lacks there is an error of its curvature alone. It was measured "
        f"at λ = {short(response.damping)} on {counted(response.groups, 'group')}"
    )
    if response.groups_dropped:
        text += f"; {response.groups_dropped} did not converge and are left out"
    if response.models < truth.models:
        text += f"; for the first {response.models} of {truth.models} models"
    return f"{text}."


def _spectra(study: Results) -> Section:
    negative = spectra.negative_part(study)
    return Section(
        id="spectra",
        title="Spectra",
        lead=(
            "An eigenvalue says how much the loss bends along a direction. The effective dimension "
            "counts the directions that stand above the damping λ: only along those does the data "
            "decide. The overlap says how much of the steepest directions of one rung are also the "
            f"steepest of the next. {negative}"
        ).strip(),
        figures=_drawn(
            spectra.eigenvalues(study), spectra.effective_dimension(study), spectra.overlaps(study)
        ),
        tables=spectra.spectrum_tables(study),
    )


def _cost(study: Results) -> Section:
    return Section(
        id="cost",
        title="What accuracy costs",
        lead=(
            "A rung on the dashed front is beaten by no other in cost and in LDS at once. Seconds "
            "are medians over the models, on this machine; training is not counted, since every "
            "rung needs it."
        ),
        figures=_drawn(cost.pareto(study), cost.operations(study), cost.memory(study)),
    )


def _calibration(study: Study, rung: str) -> Section:
    results, alpha = study.results, study.results.truth.alpha
    curve = calibration.calibration_curve(study, rung)
    slopes = calibration.calibration(results)
    return Section(
        id="calibration",
        title="Size of the predictions",
        lead=(
            "Influences carry units, so the true change can be regressed on the predicted one. A "
            "slope of 1 is to be expected for small removals only: where subsets keep a fraction "
            f"α, the first-order prediction falls short by about 1/α ({short(1 / alpha)} at α = "
            f"{short(alpha)}), and by more where single examples weigh much (ridge regression at "
            "α = 0.5: 2.35). A slope above 1 is then no fault."
        ),
        figures=_drawn(slopes, curve),
    )


def _claims(study: Results) -> Section:
    """The problem as it is in an open table; what is said across its variants below."""
    claims = study.claims
    counts = Counter(claim.verdict for claim in claims)
    told = listed([f"{verdict}: {count}" for verdict, count in counts.most_common()])
    base = [claim for claim in claims if claim.scope == BASE]
    tables: list[Table] = []
    if base:
        tables.append(claim_table("Claims and what was measured", base, open=True))
    if len(base) < len(claims):
        rest = [claim for claim in claims if claim.scope != BASE]
        caption = "Across width, depth and training length"
        tables.append(claim_table(caption, rest, open=False))
    return Section(
        id="claims",
        title="Claims of the paper",
        lead=(
            "What “Better Hessians Matter” (arXiv 2509.23437) says, and what was measured here "
            f"({len(claims)} rows; {told}). The interval alone makes the verdict."
        ),
        tables=tuple(tables),
    )
