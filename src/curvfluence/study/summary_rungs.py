"""What is kept of each rung, and of the distances between rungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan, log10

import torch
from msgspec.structs import replace
from torch import Tensor

from curvfluence.fidelity import LDS, THRESHOLD, InverseErrors, Spectrum, StepLoss, mean_steps
from curvfluence.study.at_model import RungScores, Vectors
from curvfluence.study.climb import Ladder
from curvfluence.study.compare import LadderFidelity, RungFidelity
from curvfluence.study.response import NoResponse, Response
from curvfluence.study.results.rung import (
    BlockSpectrum,
    CoveredBlock,
    EffectiveDimension,
    Errors,
    Hole,
    InverseErrorResult,
    InverseErrorsOver,
    NegativePart,
    Operations,
    ProvenError,
    RungResult,
    SpectrumSummary,
    SweepPoint,
)
from curvfluence.study.results.step import (
    BlockOverlap,
    Decomposition,
    DecompositionStep,
    InverseVectors,
    OverlapPair,
    OverlapSummary,
)

Dampings = tuple[float, ...]


def rung_results(
    ladder: Ladder,
    fidelity: LadderFidelity,
    response: Response | NoResponse,
    proven: Mapping[str, ProvenError],
    grid: Dampings,
) -> tuple[tuple[RungResult, ...], tuple[RungResult, ...]]:
    """The rungs of the ladder, and the hybrids."""
    pairs = list(zip(ladder.rungs, fidelity.rungs, strict=True))
    at = ladder.vectors
    rows = [(scores.hybrid, _rung(scores, judged, response, grid, at)) for scores, judged in pairs]
    rungs = [replace(row, proven=proven.get(row.name)) for hybrid, row in rows if not hybrid]
    cost = [(rung.seconds or 0.0, rung.lds) for rung in rungs]
    marked = (
        # a rung that is at least as cheap and more faithful beats it
        replace(rung, pareto=not any(s <= seconds and v > lds for s, v in cost))
        for rung, (seconds, lds) in zip(rungs, cost, strict=True)
    )
    return tuple(marked), tuple(row for hybrid, row in rows if hybrid)


def _rung(
    scores: RungScores,
    fidelity: RungFidelity,
    response: Response | NoResponse,
    grid: Dampings,
    vectors: Vectors | None,
) -> RungResult:
    independent, ensemble, needs = fidelity.independent, fidelity.ensemble, scores.needs or ()
    row = RungResult(
        name=scores.name,
        full_name=scores.full_name,
        fisher=scores.fisher,
        surprising_labels=scores.surprising_labels,
        lds=fidelity.matched.value,
        interval=fidelity.intervals.crossed,
        interval_subsets=fidelity.intervals.subsets,
        interval_queries=fidelity.intervals.queries,
        lds_independent=None if independent is None else independent.value,
        lds_ensemble=None if ensemble is None else ensemble.value,
        dampings=fidelity.matched.dampings,
        dampings_independent=None if independent is None else independent.dampings,
        dampings_ensemble=None if ensemble is None else ensemble.dampings,
        damping_on_edge=fidelity.matched.on_edge,
        undefined=fidelity.matched.undefined,
        sweep=_sweep(fidelity.matched, independent, ensemble),
        fit_seconds=scores.fit_seconds,
        score_seconds=scores.score_seconds,
        peak_bytes=max((n.peak_bytes for n in needs if n.peak_bytes is not None), default=None),
        flops=Operations(*(n.flops for n in needs)) if needs else None,
        calibration=fidelity.calibration,
        spectrum=None if scores.spectrum is None else _spectrum(scores.spectrum, grid),
        coverage=tuple(CoveredBlock(**asdict(line)) for line in scores.coverage),
        notes=scores.notes,
        holes=tuple(Hole(at, why) for at, why in scores.holes.items()),
        inverse=_inverse(scores.inverse, vectors),
    )
    if isinstance(response, NoResponse):
        return row
    against = response.lds[scores.name]
    return replace(
        row,
        lds_bregman=against.value,
        interval_bregman=response.intervals[scores.name],
        dampings_bregman=against.dampings,
    )


def _sweep(matched: LDS, independent: LDS | None, ensemble: LDS | None) -> tuple[SweepPoint, ...]:
    return tuple(
        SweepPoint(
            damping,
            value,
            None if independent is None else independent.sweep[k][1],
            None if ensemble is None else ensemble.sweep[k][1],
        )
        for k, (damping, value) in enumerate(matched.sweep)
    )


def _inverse(
    models: tuple[InverseErrors, ...], vectors: Vectors | None
) -> InverseErrorResult | None:
    if vectors is None or not models:
        return None
    return InverseErrorResult(
        _over(models, slice(vectors.train)), _over(models, slice(vectors.train, None))
    )


def _over(models: tuple[InverseErrors, ...], rows: slice) -> InverseErrorsOver:
    grid = range(len(models[0].damped))
    return InverseErrorsOver(
        cut=_errors([one.cut[rows] for one in models]),
        signed=_errors([one.signed[rows] for one in models]),
        damped=tuple(_errors([one.damped[k, rows] for one in models]) for k in grid),
        plain=tuple(_errors([one.plain[k, rows] for one in models]) for k in grid),
    )


def _errors(models: list[Tensor]) -> Errors:
    return Errors(
        tuple(_known(float(errors_r.nanmean())) for errors_r in models),
        tuple(_known(float(errors_r.nanquantile(0.5))) for errors_r in models),
    )


def inverse_vectors(ladder: Ladder) -> InverseVectors | None:
    """What inverses were measured on, where they were."""
    at = ladder.vectors
    return None if at is None else InverseVectors(THRESHOLD, at.train, at.queries, at.zero)


def _spectrum(spectrum: Spectrum, grid: Dampings) -> SpectrumSummary:
    ranks, values = _thinned(spectrum.eigenvalues)
    middle = grid[len(grid) // 2]
    return SpectrumSummary(
        ranks=ranks,
        eigenvalues=values,
        effective_dimension=tuple(
            EffectiveDimension(damping, spectrum.effective_dimension(damping)) for damping in grid
        ),
        condition=spectrum.condition(middle),
        condition_damping=middle,
        negative=NegativePart(
            count=len(spectrum.negative),
            lowest=float(spectrum.eigenvalues[-1]),
            share=spectrum.negative_share,
        ),
        blocks=tuple(BlockSpectrum(*_thinned(block), name) for name, block in spectrum.blocks),
    )


def _thinned(values: Tensor, count: int = 120) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """About `count` of the eigenvalues at log-spaced ranks, the first and last among them."""
    ranks = torch.logspace(0, log10(len(values)), count).round().long().unique()
    ranks = ranks.clamp(1, len(values))
    return tuple(ranks.tolist()), tuple(values[ranks - 1].double().tolist())


def decompositions(
    ladder: Ladder, fidelity: LadderFidelity, grid: Dampings
) -> tuple[Decomposition, ...]:
    """One for each chain: the mean over models, and each model's share of each step."""
    return tuple(
        Decomposition(
            chain,
            grid,
            tuple(
                _decomposed(chain, step, [model[k] for model in models], fidelity)
                for k, step in enumerate(mean_steps(models))
            ),
        )
        for chain, models in ladder.decompositions.items()
    )


def _decomposed(
    chain: str, mean: StepLoss, models: list[StepLoss], fidelity: LadderFidelity
) -> DecompositionStep:
    step = (mean.above, mean.below)
    lost = fidelity.lost[step]
    lds_share, interval = fidelity.lds_shares.get((chain, *step), (None, None))
    shared = mean.share is not None
    return DecompositionStep(
        above=mean.above,
        below=mean.below,
        lds_lost=lost.value,
        interval=lost.interval,
        distance_squared=mean.distance_squared,
        share=mean.share,
        share_models=tuple(model.share for model in models) if shared else None,
        norm_share=mean.norm_share,
        norm_share_models=tuple(model.norm_share for model in models) if shared else None,
        inverse_error=tuple(map(_known, mean.inverse_error)),
        score_error=tuple(map(_known, mean.score_error)),
        lds_share=lds_share,
        lds_share_interval=interval,
    )


def _known(error: float) -> float | None:
    """None in a hole."""
    return None if isnan(error) else error


def overlaps(ladder: Ladder) -> OverlapSummary:
    """Of leading eigenspaces of neighbours."""
    pairs = (
        OverlapPair(one.a, one.b, one.whole, tuple(BlockOverlap(*block) for block in one.blocks))
        for one in ladder.overlaps
    )
    return OverlapSummary(ladder.overlap_ranks, tuple(pairs))
