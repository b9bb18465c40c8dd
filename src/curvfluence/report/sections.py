"""The parts of the page: which figures and tables stand where, and what is said above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curvfluence.report import figures
from curvfluence.report.figure import Figure
from curvfluence.report.figures.decomposition import by_fisher
from curvfluence.report.figures.spectra import negative_part, with_spectrum
from curvfluence.report.table import Table
from curvfluence.report.verdict import Verdict
from curvfluence.study.finished import Finished
from curvfluence.study.words import (
    bounds,
    dampings,
    flops,
    interval,
    listed,
    number,
    percent,
    plain,
    seconds,
    short,
    size,
)


@dataclass(frozen=True, eq=False)
class Section:
    """One part of the page. `missing` says what was not computed."""

    id: str
    title: str
    lead: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: str = ""


def sections(study: Finished, said: Verdict) -> tuple[Section, ...]:
    """Every part between the verdict and the explorer."""
    return (
        _ladder(study),
        _lost(study),
        _spectra(study),
        _cost(study),
        _calibration(study, said.rung),
        _claims(study),
    )


def _drawn(*found: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in found if figure is not None)


def _ladder(study: Finished) -> Section:
    truth = study.results["truth"]
    return Section(
        id="rungs",
        title="The ladder",
        lead=(
            "LDS is the rank correlation, over subsets, of the predicted and the true change of a "
            "query, averaged over queries and models: 1 is perfect, 0 is chance. The truth is "
            f"{truth['retrainings']:,} retrainings on {truth['subsets']} random subsets that keep "
            f"{percent(truth['alpha'])} of the data. Each rung is measured at its own best "
            "damping, chosen on one half of the queries and reported on the other."
        ),
        figures=_drawn(figures.ladder(study), figures.steps(study), figures.sweep(study)),
        tables=(_rungs(study),),
    )


def _rungs(study: Finished) -> Table:
    columns = [
        "Rung", "LDS", "95% interval", "other initial weights", "ensemble", "λ", "fit", "score",
        "operations", "peak memory", "surprising labels",
    ]  # fmt: skip
    rows = [
        [
            rung["full_name"],
            number(rung["lds"]),
            interval(rung["interval"]),
            number(rung.get("lds_independent")),
            number(rung.get("lds_ensemble")),
            dampings(rung["dampings"]),
            seconds(rung.get("fit_seconds")),
            seconds(rung.get("score_seconds")),
            flops(_operations(rung)),
            size(rung.get("peak_bytes")),
            short(rung.get("surprising_labels")),
        ]
        for rung in study.rungs
    ]
    kept = [k for k in range(len(columns)) if any(row[k] != "–" for row in rows)]
    return Table(
        "Every rung: LDS for the same and for other initial weights, for the mean of all models "
        "as one predictor, and the cost for one model and one damping",
        tuple(columns[k] for k in kept),
        tuple(tuple(row[k] for k in kept) for row in rows),
        open=True,
    )


def _operations(rung: Mapping[str, Any]) -> float | None:
    found = rung.get("flops") or {}
    return None if not found else sum(found.get(part) or 0.0 for part in ("fit", "score"))


def _lost(study: Finished) -> Section:
    drawn = _drawn(figures.shares(study), figures.errors(study), figures.bregman(study))
    missing = [
        text
        for found, text in (
            (
                study.results.get("decomposition"),
                "The decomposition was not computed in this study.",
            ),
            (study.results.get("bregman"), _no_response(study)),
        )
        if not found
    ]
    lead = (
        "From the GGN down to K-FAC squared distances add up, so each step has a share; from the "
        "Hessian to the GGN stands apart. What a step costs in distance, it need not cost in "
        "accuracy."
    )
    response = study.results.get("bregman")
    if response:
        dropped = response.get("groups_dropped") or 0
        converged = "converged" if response.get("converged") else "did not converge"
        if dropped:
            converged += f" for {dropped} groups, which are left out"
        lead += (
            " The proximal Bregman response is the truth whose exact derivative is the damped GGN "
            f"influence; its minimisation {converged} (damping {short(response.get('damping'))}, "
            f"{plain(response.get('groups'))} groups"
        )
        models = response.get("models", study.results["truth"]["models"])
        if models < study.results["truth"]["models"]:
            lead += f", the first {models} of {study.results['truth']['models']} models"
        lead += ")."
    by = by_fisher(study)
    return Section(
        id="lost",
        title="Where accuracy is lost",
        lead=lead,
        figures=drawn,
        tables=() if by is None else (by,),
        missing=" ".join(missing),
    )


def _no_response(study: Finished) -> str:
    reason = study.results.get("bregman_missing")
    text = "The proximal Bregman response was not computed"
    return f"{text}: {reason}." if reason else f"{text}."


def _spectra(study: Finished) -> Section:
    drawn = _drawn(
        figures.eigenvalues(study), figures.effective_dimension(study), figures.overlaps(study)
    )
    lead = "How much each curvature bends along its own directions, from the steepest down."
    negative = negative_part(study)
    blocks = tuple(
        (
            rung["full_name"],
            block["name"],
            short(block["eigenvalues"][0]),
            short(block["eigenvalues"][len(block["eigenvalues"]) // 2]),
            short(block["eigenvalues"][-1]),
        )
        for rung in with_spectrum(study)
        for block in rung["spectrum"].get("blocks") or []
        if block["eigenvalues"]
    )
    conditions = tuple(
        (
            rung["full_name"],
            short(rung["spectrum"]["condition"]),
            short(rung["spectrum"].get("condition_damping")),
        )
        for rung in with_spectrum(study)
        if rung["spectrum"].get("condition") is not None
    )
    tables = (
        Table("Condition numbers", ("Rung", "largest over smallest", "at λ"), conditions),
        Table(
            "Eigenvalues by block",
            ("Rung", "block", "largest", "middle", "lowest"),
            blocks,
            text=(1,),
        ),
    )
    return Section(
        id="spectra",
        title="Spectra",
        lead=f"{lead} {negative}" if negative else lead,
        figures=drawn,
        tables=tuple(table for table in tables if table.rows),
        missing="" if drawn else "The spectra were not computed in this study.",
    )


def _cost(study: Finished) -> Section:
    drawn = _drawn(figures.pareto(study), figures.operations(study))
    return Section(
        id="cost",
        title="What accuracy costs",
        lead=(
            "A rung on the dashed front is beaten by no other in cost and in LDS at once. Seconds "
            "are medians over the models, on this machine; training is not counted, since every "
            "rung needs it."
        ),
        figures=drawn,
        missing="" if drawn else "Costs need two rungs or more.",
    )


def _calibration(study: Finished, chosen: str) -> Section:
    alpha = study.results["truth"]["alpha"]
    drawn = _drawn(figures.calibration(study), figures.calibration_curve(study, chosen))
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
        figures=drawn,
        missing="" if drawn else "Calibration was not computed in this study.",
    )


def _claims(study: Finished) -> Section:
    """The problem as it is in an open table; what is said across its variants below."""
    claims: list[dict[str, Any]] = study.results.get("claims") or []
    own = [claim for claim in claims if claim.get("scope", "base") == "base"]
    across = [claim for claim in claims if claim not in own]
    counts = Counter(claim["verdict"] for claim in claims)
    lead = "What “Better Hessians Matter” (arXiv 2509.23437) says, and what was measured here"
    if counts:
        lead += f" ({len(claims)} rows; {listed([f'{v}: {n}' for v, n in counts.most_common()])})"
    tables = (
        _claimed("Claims and what was measured", own, open=True),
        _claimed("Across width, depth and training length", across, open=False),
    )
    return Section(
        id="claims",
        title="Claims of the paper",
        lead=f"{lead}. The interval alone makes the verdict.",
        tables=tuple(table for table in tables if table.rows),
        missing="" if claims else "No claims were tested in this study.",
    )


def _claimed(caption: str, claims: list[dict[str, Any]], *, open: bool) -> Table:
    rows = tuple(
        (
            claim["claim"],
            claim["protocol"],
            claim["measured"] if isinstance(claim["measured"], str) else short(claim["measured"]),
            bounds(claim.get("interval")),
            claim["verdict"],
            claim.get("detail") or "",
        )
        for claim in claims
    )
    columns = ("Claim", "protocol", "measured", "95% interval", "verdict", "detail")
    return Table(caption, columns, rows, open=open, text=(1, 4, 5))
