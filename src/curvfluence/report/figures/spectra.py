"""Spectra: eigenvalues side by side, effective dimension, overlap of leading eigenspaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from curvfluence.report.axes import end_labels, log
from curvfluence.report.figure import Figure
from curvfluence.report.style import looks
from curvfluence.study.finished import Finished
from curvfluence.study.words import counted, listed, number, percent, short


def with_spectrum(study: Finished) -> list[dict[str, Any]]:
    """The rungs that kept their eigenvalues, without those that have none but 0."""
    return [r for r in study.ladder if any((r.get("spectrum") or {}).get("eigenvalues", []))]


def eigenvalues(study: Finished) -> Figure | None:
    """Eigenvalues by rank, both axes logarithmic; what is not positive does not show."""
    rungs = with_spectrum(study)
    if not rungs:
        return None
    look = looks([rung["name"] for rung in study.rungs])
    largest = {r["full_name"]: r["spectrum"]["eigenvalues"][0] for r in rungs}
    high, low = max(largest, key=lambda n: largest[n]), min(largest, key=lambda n: largest[n])
    reading = (
        f"The largest eigenvalue runs from {short(largest[low])} ({low}) to "
        f"{short(largest[high])} ({high})."
    )
    floor = 1e-9 * max(largest.values())

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        log(axes, "x", "y")
        ends: list[Any] = []
        for rung in rungs:
            ranks, values = rung["spectrum"]["ranks"], rung["spectrum"]["eigenvalues"]
            kept = [(i, v) for i, v in zip(ranks, values, strict=True) if v > floor]
            if kept:
                axes.plot(*zip(*kept, strict=True), color=look[rung["name"]].colour)
                ends.append((kept[-1][1], rung["full_name"], look[rung["name"]]))
        axes.set_xlabel("rank")
        axes.set_ylabel("eigenvalue")
        end_labels(axes, ends)

    ranks = sorted({rank for rung in rungs for rank in rung["spectrum"]["ranks"]})
    ranks = [ranks[i] for i in np.unique(np.linspace(0, len(ranks) - 1, 24).round().astype(int))]
    values = {
        r["name"]: dict(zip(r["spectrum"]["ranks"], r["spectrum"]["eigenvalues"], strict=True))
        for r in rungs
    }
    return Figure(
        name="eigenvalues",
        title="Eigenvalues side by side",
        reading=reading,
        description=(
            "One descending curve of eigenvalues for each rung, over the rank, both axes "
            "logarithmic. Only positive eigenvalues show. " + reading
        ),
        columns=("rank", *(rung["full_name"] for rung in rungs)),
        rows=tuple(
            (str(rank), *(short(values[rung["name"]].get(rank)) for rung in rungs))
            for rank in ranks
        ),
        draw=draw,
    )


def effective_dimension(study: Finished) -> Figure | None:
    """Σ μ/(μ + λ) over the damping: how many directions the data still decides."""
    rungs = [r for r in with_spectrum(study) if r["spectrum"].get("effective_dimension")]
    if not rungs:
        return None
    look = looks([rung["name"] for rung in study.rungs])
    first = {r["full_name"]: r["spectrum"]["effective_dimension"][0] for r in rungs}
    high = max(first, key=lambda name: first[name]["value"])
    reading = (
        f"At λ = {short(first[high]['damping'])}, {high} counts the most directions "
        f"({short(first[high]['value'])})."
    )

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        log(axes, "x", "y")
        ends: list[Any] = []
        for rung in rungs:
            kept = [e for e in rung["spectrum"]["effective_dimension"] if e["value"] > 0]
            at, value = [e["damping"] for e in kept], [e["value"] for e in kept]
            axes.plot(at, value, color=look[rung["name"]].colour)
            if kept:
                ends.append((value[-1], rung["full_name"], look[rung["name"]]))
        axes.set_xlabel("damping λ")
        axes.set_ylabel("effective dimension")
        end_labels(axes, ends)

    grid = sorted({e["damping"] for r in rungs for e in r["spectrum"]["effective_dimension"]})
    values = {
        r["name"]: {e["damping"]: e["value"] for e in r["spectrum"]["effective_dimension"]}
        for r in rungs
    }
    return Figure(
        name="effective-dimension",
        title="Effective dimension",
        reading=reading,
        description=(
            "One falling curve for each rung: the sum of μ/(μ + λ) over its eigenvalues μ, over "
            "the damping λ, both axes logarithmic. " + reading
        ),
        columns=("λ", *(rung["full_name"] for rung in rungs)),
        rows=tuple(
            (short(at), *(short(values[rung["name"]].get(at)) for rung in rungs)) for at in grid
        ),
        draw=draw,
    )


def overlaps(study: Finished) -> Figure | None:
    """How much of one rung's leading eigenspace lies in another's, by its size."""
    found = study.results.get("overlap") or {}
    pairs: list[dict[str, Any]] = found.get("pairs", [])
    if not pairs:
        return None
    ranks: list[int] = found["ranks"]
    at = int(np.argmin([abs(np.log(rank / 10)) for rank in ranks]))
    least = min(pairs, key=lambda pair: pair["overlap"][min(at, len(pair["overlap"]) - 1)])
    reading = (
        f"{_pair(least)} differ most: of the leading {ranks[at]} directions they share "
        f"{percent(_at(least['overlap'], at))}."
    )
    look = [looks([pair["b"]])[pair["b"]] for pair in pairs]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        log(axes, "x")
        for pair, mine in zip(pairs, look, strict=True):
            axes.plot(
                ranks[: len(pair["overlap"])],
                pair["overlap"],
                color=mine.colour,
                marker=mine.marker,
                ms=3,
            )
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("leading directions compared")
        axes.set_ylabel("share in common")
        end_labels(
            axes, [(p["overlap"][-1], _pair(p), m) for p, m in zip(pairs, look, strict=True)]
        )

    return Figure(
        name="overlap",
        title="Overlap of leading eigenspaces",
        reading=reading,
        description=(
            "One curve for each pair of rungs: the share of the leading eigenspace of one that "
            "lies in that of the other, 1 where they are the same. " + reading
        ),
        columns=("directions", *(_pair(pair) for pair in pairs)),
        rows=tuple(
            (str(rank), *(number(_at(pair["overlap"], k)) for pair in pairs))
            for k, rank in enumerate(ranks)
        ),
        draw=draw,
    )


def negative_part(study: Finished) -> str | None:
    """What the Hessian's negative eigenvalues amount to, in a sentence."""
    said = [
        f"{rung['full_name']} has {counted(part['count'], 'negative eigenvalue')}, the lowest "
        f"{short(part['lowest'])}, with {percent(part['share'])} of its absolute trace"
        for rung in with_spectrum(study)
        if (part := rung["spectrum"].get("negative")) and part["count"]
    ]
    return f"{listed(said)}." if said else None


def _pair(pair: dict[str, Any]) -> str:
    return f"{pair['a']} & {pair['b']}"


def _at(values: list[float], k: int) -> float | None:
    return values[k] if k < len(values) else None
