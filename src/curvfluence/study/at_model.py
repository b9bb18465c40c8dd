"""Every rung of the ladder at one influence model, over the whole damping grid."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping
from curvfluence.curvature.rung import Rung, fit
from curvfluence.errors import SingularError
from curvfluence.fidelity import (
    InverseErrors,
    Spectral,
    Spectrum,
    StepLoss,
    Sweep,
    Yardstick,
    decompose,
    distance_squared,
    leading_by_block,
    leading_space,
    overlap,
    spectrum,
)
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import (
    forget_gradients,
    query_gradients,
    training_gradients,
)
from curvfluence.problem.problem import Problem
from curvfluence.runtime import journal
from curvfluence.runtime.paged import paged
from curvfluence.runtime.said import noted
from curvfluence.study.needs import Needs, needs
from curvfluence.study.protocols import Protocol, hybrids

VECTOR_WORK = 500_000_000  # vectors · P²
FEW, MANY = 64, 500  # gradients of either kind that inverses are measured on
EXACT = "Hessian"  # the rung whose inverse is the true one
OVERLAP_RANKS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Overlap:
    """What the leading eigenspaces of two rungs share at each rank; `blocks` by layer, where both
    rungs have the same."""

    a: str
    b: str
    whole: tuple[float, ...]
    blocks: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Vectors:
    """How many training gradients and then query gradients, and how many of them are 0: those
    have no relative error (NaN)."""

    train: int
    queries: int
    zero: int


@dataclass(frozen=True, eq=False)
class RungScores:
    """One rung, or one hybrid: `scores` [D, Q, N] are influences at every one of `dampings` at one
    model, or [J, D, Q, N] at all of them.

    Seconds are for one model and one damping, of several models their median. What the rung needs
    and its spectrum are those of the first model; a hybrid has neither seconds nor needs, and a
    study that measures no costs has no needs. `surprising_labels` is how many labels that a sampled
    Fisher draws are expected to differ from the likeliest, of several models their mean; None where
    none are drawn. `solutions` [D, Q, P] are those of (C + W + λ) x = g_q, while they are needed.
    A damping at which C + W + λ cannot be inverted is a hole, with the reason: NaN at one model,
    and not among the `dampings` of all.
    """

    full_name: str
    hybrid: bool
    fisher: str | None
    scores: Tensor
    dampings: tuple[float | None, ...]
    surprising_labels: float | None
    coverage: tuple[CoverageLine, ...]
    notes: tuple[str, ...]
    fit_seconds: float | None
    score_seconds: float | None
    spectrum: Spectrum | None
    solutions: Tensor | None = None
    name: str = ""
    needs: tuple[Needs, Needs] | None = None  # of the fit and of the scores
    inverse: tuple[InverseErrors, ...] = ()  # at each model, over `Ladder.vectors`
    holes: Mapping[float, str] = field(default_factory=dict[float, str])

    @property
    def middle(self) -> Damping:
        """The damping in the middle of those that are no holes; λ = 1 where it is fixed."""
        grid = [Absolute(1.0 if at is None else at) for at in self.dampings if at not in self.holes]
        return grid[len(grid) // 2]

    def put_away(self) -> RungScores:
        """Without the solutions, Q × P numbers a damping that serve the decomposition of their own
        model only; scores wait for the other models, and memory need not hold them."""
        return replace(self, solutions=None, scores=paged(self.scores))

    def sweep(self, left_out_mn: Tensor) -> Sweep:
        """The predicted change of each query: the sum of influences of what a subset leaves out."""
        return swept(self.scores, self.dampings, left_out_mn)


def swept(scores_jdqn: Tensor, dampings: tuple[float | None, ...], left_out_mn: Tensor) -> Sweep:
    """Σ_n left_out[m, n] I[q, n], summed in the dtype of the scores."""
    predicted_jdqm = scores_jdqn @ left_out_mn.to(scores_jdqn).T
    predicted_djmq = predicted_jdqm.double().permute(1, 0, 3, 2)
    return Sweep(dampings, np.ascontiguousarray(predicted_djmq.numpy()))


@dataclass(frozen=True, eq=False)
class ModelLadder:
    """All rungs and hybrids at one model, the decomposition of each chain by its name, overlaps of
    leading eigenspaces, of which gradients inverses were held against the exact one's, and the
    seconds that it took, those of killed commands among them."""

    rungs: dict[str, RungScores]
    decompositions: Mapping[str, tuple[StepLoss, ...]]
    overlaps: tuple[Overlap, ...]
    vectors: Vectors | None
    seconds: float

    def put_away(self) -> ModelLadder:
        """With all rungs put away."""
        return replace(self, rungs={name: row.put_away() for name, row in self.rungs.items()})

    def with_needs(self, rungs: Mapping[str, Rung], problem: Problem) -> ModelLadder:
        """With what each rung needs."""
        start = time.perf_counter()
        rows = {
            name: replace(
                self.rungs[name], needs=measured_needs(rung, problem, self.rungs[name].middle)
            )
            for name, rung in rungs.items()
        }
        seconds = self.seconds + time.perf_counter() - start
        return replace(self, rungs={**self.rungs, **rows}, seconds=seconds)


def measured_needs(rung: Rung, problem: Problem, damping: Damping) -> tuple[Needs, Needs]:
    """What a fit and its scores need, from a run of their own that no seconds are taken of, after
    nothing else: what an earlier fit left in memory would make it look cheap."""
    forget_gradients(problem, discover(problem))
    fitted: list[Curvature] = []
    of_fit = needs(lambda: fitted.append(fit(problem, rung)))
    return of_fit, needs(lambda: _scores_at(problem, fitted[0], damping))


def _fitted(problem: Problem, name: str, rung: Rung) -> tuple[Curvature, float | None]:
    """The curvature and the seconds of its fit; None where an earlier command had begun it."""
    before = journal.found()
    curvature = fit(problem, rung)
    seconds = curvature.cost.fit_seconds if journal.found() == before else None
    (seconds,) = journal.whole(f"seconds of {name}'s fit", lambda: [seconds], always=True)
    return curvature, seconds


def _seconds_of(problem: Problem, name: str, curvature: Curvature, damping: Damping) -> float:
    def timed() -> float:
        forget_gradients(problem, discover(problem))  # of fits before, which a user has not made
        start = time.perf_counter()
        with journal.apart():
            _scores_at(problem, curvature, damping)
        return time.perf_counter() - start

    return journal.whole(f"seconds of {name}'s scores", timed, always=True)


def _scores_at(problem: Problem, curvature: Curvature, damping: Damping) -> Tensor:
    """What a user pays for scores after the fit: gradients, one solve, one product."""
    layout = discover(problem)
    queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
    gradients = training_gradients(problem, layout)
    return gradients.inner(curvature.solve(queries_qp, damping))[..., 0] / len(problem.train)


def climb_one(
    rungs: Mapping[str, Rung],
    problem: Problem,
    grid: tuple[Absolute, ...],
    protocol: Protocol,
    *,
    keep: torch.dtype,
    spectra: bool,
    errors: bool,
    timed: bool,
    with_hybrids: bool,
) -> ModelLadder:
    """Every rung at one model, with hybrids, spectra and overlaps, and with the errors of inverses
    (where the ladder has the Hessian, and no weight decay is in the inverse) and the seconds of
    scoring as asked; scores are kept in `keep`, whatever the dtype of the problem."""
    start = time.perf_counter()
    surprising = _surprising_labels(rungs.values(), problem)
    sweep = _Sweeper(problem, grid, surprising, spectra, keep)
    # the others' solutions are of no more use
    every = (*protocol.steps, *(step for chain in protocol.chains for step in chain.steps))
    stepped = {name for step in every for name in step}
    measured = errors and EXACT in rungs and not bool(problem.decay.any())
    fitted: dict[str, Curvature] = {}
    spectral: dict[str, Spectral] = {}
    swept: dict[str, RungScores] = {}
    for name, rung in rungs.items():
        fitted[name], fit_seconds = _fitted(problem, name, rung)
        spectral[name] = Spectral(fitted[name])
        # where a decomposition is needed anyway, it serves every damping
        row = sweep(spectral[name], decomposed=measured)
        row = replace(
            row,
            full_name=f"{row.full_name}{_marked(name)}",
            fit_seconds=fit_seconds,
            score_seconds=_seconds_of(problem, name, fitted[name], row.middle) if timed else None,
        )
        swept[name] = row if name in stepped else row.put_away()
    parts = [name for name in ("BlockGGN", "KFAC") if with_hybrids and name in spectral]
    for name, curvature in hybrids({name: spectral[name].diagonal for name in parts}).items():
        row = sweep(Spectral(curvature)).put_away()
        swept[name] = replace(row, hybrid=True)  # without seconds: never had for its own sake
    decompositions = _decompositions(fitted, swept, protocol)
    swept = {name: row.put_away() for name, row in swept.items()}
    vectors: Vectors | None = None
    if measured:
        vectors, v_rp = sweep.vectors()
        yardstick = Yardstick(spectral[EXACT], v_rp)
        for name, one in spectral.items():
            found = yardstick.errors(one, [at.value for at in grid])
            swept[name] = replace(swept[name], inverse=(found,))
    return ModelLadder(
        rungs=swept,
        decompositions=decompositions,
        overlaps=_overlaps(spectral, _compared(every, fitted)) if spectra else (),
        vectors=vectors,
        seconds=time.perf_counter() - start + journal.earlier(),
    )


def _marked(name: str) -> str:
    """What a protocol's name of a rung adds to the rung's own: "(exact)[mc(1)]"."""
    own = re.match(r"[A-Za-z]*", name)
    return "" if own is None else name[own.end() :]


class _Sweeper:
    """Scores of one curvature after another at every damping, on the same gradients."""

    def __init__(
        self,
        problem: Problem,
        grid: tuple[Absolute, ...],
        surprising: Mapping[str | None, float | None],
        spectra: bool,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype  # that scores are kept in
        layout = discover(problem)
        self.queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
        self.gradients = training_gradients(problem, layout)
        self.count = len(problem.train)
        self.grid, self.surprising, self.spectra = grid, surprising, spectra

    def vectors(self) -> tuple[Vectors, Tensor]:
        """Gradients to measure inverses on: of training examples, drawn at random, and of the first
        queries; the same ones for every model. Their count goes down with P², which each costs."""
        count = min(MANY, max(FEW, VECTOR_WORK // self.queries_qp.shape[1] ** 2))
        drawn = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:count]
        train_rp = self.gradients[drawn.sort().values].to_dense()[:, 0]
        queries_qp = self.queries_qp[:count]
        v_rp = torch.cat([train_rp, queries_qp])
        zero = int((v_rp == 0).all(1).sum())
        return Vectors(len(train_rp), len(queries_qp), zero), v_rp

    def __call__(self, spectral: Spectral, *, decomposed: bool = False) -> RungScores:
        """At every damping, through the eigenbasis where `decomposed`. Errors: `SingularError`
        where every damping of the grid is a hole."""
        with noted() as said:
            curvature = spectral.diagonal if decomposed else spectral.curvature
            fixed = curvature.fixed_damping
            solutions, holes = self._solved(curvature, self.grid if fixed is None else (fixed,))
            found = spectrum(spectral.diagonal) if self.spectra else None
        return RungScores(
            full_name=curvature.name,
            hybrid=False,
            fisher=curvature.fisher,
            scores=torch.stack(
                [self.gradients.inner(x_qp)[..., 0] / self.count for x_qp in solutions]
            ).to(self.dtype),
            dampings=tuple(at.value for at in self.grid) if fixed is None else (None,),
            surprising_labels=self.surprising.get(curvature.fisher),
            coverage=curvature.coverage,
            notes=(*curvature.notes, *said),
            fit_seconds=None,
            score_seconds=None,
            spectrum=found,
            solutions=torch.stack(solutions),
            holes=holes,
        )

    def _solved(
        self, curvature: Curvature, dampings: Sequence[Absolute]
    ) -> tuple[list[Tensor], dict[float, str]]:
        """(x [Q, P] at each damping, NaN in a hole; why each hole is one)."""
        try:
            return list(curvature.solve_many(self.queries_qp, dampings)), {}
        except SingularError:
            pass  # at some of them: one by one
        solutions: list[Tensor] = []
        holes: dict[float, str] = {}
        for damping in dampings:
            try:
                solutions.append(curvature.solve(self.queries_qp, damping))
            except SingularError as error:
                solutions.append(torch.full_like(self.queries_qp, torch.nan))
                holes[damping.value] = str(error)
        if len(holes) == len(dampings):
            raise SingularError(
                f"{curvature.name} cannot be inverted at any damping of the grid, up to "
                f"{dampings[-1].value:g}: {holes[dampings[-1].value]}"
            )
        return solutions, holes


def _decompositions(
    fitted: Mapping[str, Curvature], swept: Mapping[str, RungScores], protocol: Protocol
) -> dict[str, tuple[StepLoss, ...]]:
    """The decomposition of each chain. The protocol's own stands among all steps of its ladder;
    another one by itself."""
    matrices = {name for name in fitted if fitted[name].fixed_damping is None}
    solutions = {n: row.solutions for n, row in swept.items() if row.solutions is not None}
    scores = {name: row.scores for name, row in swept.items()}
    ladder = [step for step in protocol.steps if set(step) <= matrices]
    by_chain: dict[str, tuple[StepLoss, ...]] = {}

    @cache
    def distance(above: str, below: str) -> float:  # chains share steps
        return distance_squared(fitted[above], fitted[below])

    for chain in protocol.chains:
        main = chain is protocol.chains[0]
        steps = ladder if main else [step for step in chain.steps if set(step) <= matrices]
        by_chain[chain.name] = decompose(
            fitted, solutions, scores, steps=steps, chain=chain.rungs, distance=distance
        )
    return by_chain


def _surprising_labels(rungs: Iterable[Rung], problem: Problem) -> dict[str | None, float | None]:
    """By the name of each Fisher type: one of the ladder's, or of a hybrid of its rungs."""
    found: dict[str | None, float | None] = {}
    for rung in rungs:
        counts = [fisher.surprising_labels(problem) for fisher in rung.fishers(problem)]
        known = [count for count in counts if count is not None]
        found[rung.fisher_name(problem)] = min(known, default=None)
    return found


def _compared(
    steps: Iterable[tuple[str, str]], fitted: Mapping[str, Curvature]
) -> list[tuple[str, str]]:
    """Steps between matrices of the ladder itself, whose eigenspaces are compared."""
    matrices = {n for n, one in fitted.items() if one.fixed_damping is None and "[" not in n}
    return [step for step in dict.fromkeys(steps) if set(step) <= matrices]


def _overlaps(
    spectral: Mapping[str, Spectral], steps: Iterable[tuple[str, str]]
) -> tuple[Overlap, ...]:
    count = max(OVERLAP_RANKS)
    curvatures = {
        name: spectral[name].diagonal for name in dict.fromkeys(n for step in steps for n in step)
    }
    parts = {name: leading_by_block(one, count) for name, one in curvatures.items()}
    wholes = {name: leading_space(curvatures[name], parts[name], count) for name in curvatures}

    def shared(a_pk: Tensor, b_pk: Tensor) -> tuple[float, ...]:
        return overlap(a_pk, b_pk, [k for k in OVERLAP_RANKS if k <= len(a_pk)])

    return tuple(
        Overlap(
            a,
            b,
            shared(wholes[a], wholes[b]),
            tuple(
                (block, shared(parts[a][block].vectors, parts[b][block].vectors))
                for block in parts[a]
            )
            if parts[a].keys() == parts[b].keys() and len(parts[a]) > 1
            else (),
        )
        for a, b in steps
    )
