"""I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature, Solved
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.low_rank_inverses import LowRankInverses, low_rank_inverses
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.rung import Rung, require_together
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.jacobian.agreement import drawn
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.drawn import drawn_gradients
from curvfluence.jacobian.gradients import cached_gradients, own_gradients, query_gradients
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import sum_of
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.runtime import budget, heap, journal, precision, ranks
from curvfluence.runtime import device as machine
from curvfluence.runtime.said import noted
from curvfluence.score.best_damping import resolved
from curvfluence.score.certificate import Certifier, own_residuals, said_of_residuals
from curvfluence.score.compression import said_of_compression
from curvfluence.score.cost import ScoreCost
from curvfluence.score.fitted import fitted
from curvfluence.score.leverage import newton_scores
from curvfluence.score.matrix import ScoreMatrix, require_new
from curvfluence.score.reach import Reach
from curvfluence.score.saved import write_record
from curvfluence.score.scores import Scores
from curvfluence.score.within_bounds import require_boundable, within_bounds
from curvfluence.score.within_memory import memorable, within_memory

INVERSE_ERROR = 1e-5  # of a query's scores, relative to their norm, by default in float32


@precision.full()
def influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    leverage: bool = False,
    strict: bool = False,
    by_block: bool = False,
    compress: float | None = None,
    inverse_error: float | None = None,
    tolerance: float | None = None,
    bound_tolerance: float | None = None,
    out: Path | None = None,
    memory: int | str | None = None,
) -> Scores:
    """I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n, the change of m_q when n is left out.

    Assumes that training converged to a minimum of J and that leaving n out keeps the normaliser
    (Koh & Liang 2017, eq. 2). `rung` may be a curvature that was fitted before. With
    `leverage=True` each example takes a full Newton step of the quadratic model instead,
    (1/N) g_qᵀ (C + diag w + λI)⁻¹ J_nᵀ S_n (I − H_n)⁻¹ t_n, exact for ridge regression with GGN.

    `by_block=True` keeps each block's share in `Scores.blocks` as well. `compress` holds the solved
    queries of layers with shared positions at low rank, each within that relative error, and says
    what it came to. `inverse_error` is how far the scores of a query may be off, relative to their
    norm, for inverses of Kronecker blocks at low rank: a fraction of the product where many queries
    meet wide layers without shared positions; the scores of one example of a small gradient may be
    off by several times its root, relative to theirs. By default 1e-5 in float32, and 0, the
    product in full, in float64, with `leverage` and `by_block`. What all queries showed over some
    examples is in the result: a measurement, not a bound.

    `tolerance` is the relative residual ‖(C + diag(w) + λI) x − g‖/‖g‖ of every query at which an
    inverse by iteration stops, in the place of its form's own (a direct one is at rounding).
    `bound_tolerance`, in the units of m, asks of the GGN by iteration for ever smaller residuals
    until no error bound of a score is above it; the bounds are then `Scores.bounds`, and what was
    not reached is said and warned of.

    `memory` ("8GiB", or bytes) bounds what a rung of blocks holds at a time: its matrices, solved
    queries and kept gradients. As many blocks as fit are fitted and scored together, one group of
    parameters after another, and their scores are added; each group takes the passes that all would
    take together, and products in full whatever `inverse_error`. What a pass needs for activations
    comes to it, and 2 Q N for the scores.

    `out` names a new .npy file that scores are written to as they are made;
    `Scores.values` is then a memory map of it, and `cf.load_scores` reads it back by the JSON that
    is put beside it in the end.

    Cost: the fit, one solve for Q vectors, and 2 Q N P operations, or 2 Q N r (o + i) for a layer
    with an inverse of rank r; leverage adds a solve for each of the N × C rows of the factor.
    Queries are taken so many at a time that their solutions stay below 2²⁸ numbers, with a pass
    over the training set each. Errors: `SingularError` where λ and w leave nothing to invert,
    `NonFiniteError` with the index of the example.
    """
    out = kinds.path(out, "out")
    require_new(out)
    said = None if out is None or out.suffix != ".npy" else out.with_suffix(".json")
    require_new(said)
    _require_settings(leverage=leverage, by_block=by_block, compress=compress)
    _require_errors(tolerance, inverse_error, plain=not (leverage or by_block))
    require_boundable(bound_tolerance, problem, rung, plain=not (leverage or by_block or out))
    room = None if memory is None else kinds.memory(memory, "memory")
    settings = leverage, strict, by_block, compress, inverse_error, tolerance, bound_tolerance, out
    settings += (room,)
    require_problem(problem)
    require_together(problem, the_damping=damping, what_is_asked=settings)
    if leverage or by_block:
        inverse_error = 0.0
    elif inverse_error is None:
        inverse_error = INVERSE_ERROR if problem.dtype == torch.float32 else 0.0
    asked = _Asked(damping, inverse_error, compress, leverage=leverage, by_block=by_block, out=out)
    if room is not None:
        plain = not (leverage or by_block or out) and tolerance is None and bound_tolerance is None
        return within_memory(
            problem,
            memorable(problem, rung, damping, strict=strict, plain=plain),
            room,
            # of a share alone nobody knows what its error is of a query's scores
            lambda part, own, alone: _scored(
                part,
                fitted(part, own, damping, strict=strict),
                replace(asked, share=True, inverse_error=inverse_error if alone else 0.0),
            ),
        )
    curvature = fitted(problem, rung, damping, strict=strict)
    if tolerance is not None:
        curvature = curvature.within(tolerance)
    if bound_tolerance is not None:
        return within_bounds(
            lambda closer: influence(
                problem, closer, damping=damping, compress=compress, inverse_error=inverse_error
            ),
            curvature,
            bound_tolerance,
        )
    made = _scored(problem, curvature, asked)
    if said is not None:
        with ranks.alike():
            if ranks.leads():
                write_record(replace(made, blocks=None).record, said)
    return made


@dataclass(frozen=True)
class _Asked:
    """Which scores. A `share` is that of some parameters alone: no prediction by itself."""

    damping: Damping
    inverse_error: float
    compress: float | None
    leverage: bool
    by_block: bool
    out: Path | None
    share: bool = False


def _scored(problem: Problem, curvature: Curvature, asked: _Asked) -> Scores:
    """The scores under a fitted curvature."""
    n, compress, out = len(problem.train), asked.compress, asked.out
    leverage, by_block = asked.leverage, asked.by_block
    with ExitStack() as stack:
        about = f"{asked.damping} {asked.inverse_error} {curvature.tolerance}"
        stack.enter_context(journal.scope(lambda: f"scores {about} {curvature.coverage}"))
        told = stack.enter_context(noted())
        run = _Run.begin(problem, curvature, asked)
        scores = stack.enter_context(ScoreMatrix.of(len(run.queries), n, problem.dtype, out))
        for first, g_q in run.batches():
            if leverage:
                scores.put(first, 0, run.predicted(run.newton(g_q.pop()), first, 0))
                continue
            if by_block:
                x_q = run.solve(g_q, compress)
                with ranks.alike():
                    for at, g_n in own_gradients(problem, run.layout):
                        shares = x_q.by_block(*g_n)
                        whole = sum_of(shares.values())[..., 0]
                        scores.put(first, at, run.predicted(whole, first, at))
                        scores.put_blocks(first, at, {k: v[..., 0] / n for k, v in shares.items()})
                continue
            tiles = run.tiles(g_q, compress)
            with ranks.alike():
                for at, whole in tiles:
                    scores.put(first, at, run.predicted(whole, first, at))
        if not leverage:
            scores.gather()
            if run.reach is not None:
                run.reach.gather()
    return run.scores(scores, told, leverage=leverage)


def _require_settings(*, leverage: bool, by_block: bool, compress: float | None) -> None:
    kinds.flag(leverage, "leverage")
    kinds.flag(by_block, "by_block")
    if compress is not None and not 0 < kinds.number(compress, "compress") < 1:
        raise InputError(f"compress must lie between 0 and 1; seen {compress}")
    if leverage and (by_block or compress is not None):
        raise InputError("leverage-corrected scores come neither by block nor compressed")


def _require_errors(tolerance: float | None, inverse_error: float | None, *, plain: bool) -> None:
    if tolerance is not None and not 0 < kinds.number(tolerance, "tolerance") < 1:
        raise InputError(f"tolerance must lie between 0 and 1; seen {tolerance}")
    if inverse_error is not None and kinds.number(inverse_error, "inverse_error") >= 1:
        raise InputError(f"inverse_error must be at least 0 and less than 1; seen {inverse_error}")
    if inverse_error and not plain:
        raise InputError(
            "leverage-corrected scores, and shares by block, take the product in full: leave "
            "inverse_error out"
        )


@dataclass(eq=False)
class _Run:
    """One call: what its solves rest on, and what they found that the result must say."""

    problem: Problem
    curvature: Curvature
    layout: Layout
    queries: Rows
    damping: Damping
    notes: tuple[str, ...]
    start: float
    reach: Reach | None
    inverses: LowRankInverses
    compress: float | None = None
    residuals: tuple[float, ...] = ()
    compression: float | None = None

    @staticmethod
    def begin(
        problem: Problem,
        curvature: Curvature,
        asked: _Asked,
    ) -> _Run:
        start = machine.clock(problem.device)
        layout = discover(problem)
        queries = query_gradients(problem, layout)
        chosen, notes = resolved(problem, curvature, asked.damping, queries)
        notes += _of_underflow(queries)
        inverses = low_rank_inverses(
            curvature,
            queries,
            chosen,
            examples=len(problem.train),
            error=asked.inverse_error,
            sample=lambda: drawn_gradients(problem, layout),
        )
        notes += () if inverses.note is None else (inverses.note,)
        reach = None if asked.share else Reach(problem)
        of = problem, curvature, layout, queries, chosen, notes, start, reach, inverses
        return _Run(*of, asked.compress)

    def batches(self) -> Iterator[tuple[int, list[Rows]]]:
        """All queries at once where their solutions fit, else as many as do; in a list that whoever
        solves for them empties, so that their rows are not held beside the solutions."""
        step = max(1, budget.SOLVED // self.inverses.numbers(self.curvature))
        if step >= len(self.queries):
            whole = [self.queries]
            self.queries = self.queries[torch.arange(0)]  # a copy: a slice would hold them all
            yield 0, whole
            return
        for start in range(0, len(self.queries), step):
            yield start, [self.queries[start : start + step]]

    def tiles(self, g_q: list[Rows], compress: float | None) -> Iterator[tuple[int, Tensor]]:
        """(first example, N times the scores [Q, count]) of these queries."""
        solved: list[Solved] = []
        told = self.curvature.tolerance is not None or compress is not None
        if told or ranks.here() is not None:
            solved.append(self.solve(g_q, compress))  # which finds what the result must say

        def from_example(first: int) -> Iterator[tuple[int, Tensor]]:
            x_q = solved[0] if solved else self.solve(g_q, compress)
            for at, g_n in own_gradients(self.problem, self.layout, first=first):
                yield at, x_q.inner(*g_n)[..., 0]

        return journal.in_pieces("tiles", from_example)

    def solve(self, g_q: list[Rows], compress: float | None) -> Solved:
        """(C + diag(w) + λI)⁻¹ g_q of queries in a list, which is emptied."""
        told = list(g_q) if self.curvature.tolerance is not None else []
        heap.trim()  # of the pass for queries
        cached = cached_gradients(self.problem, self.layout)
        against = Against(len(self.problem.train), tuple(rows for _, rows in cached))
        x_q = self.curvature.solve_handed(
            g_q,
            self.damping,
            against=against,
            compress=compress,
            inverses=self.inverses.by_block,
        )
        if compress is not None:
            self.compression = max(self.compression or 0.0, x_q.compression_error)
        heap.trim()  # of the queries' rows
        for rows in told:
            self.residuals += x_q.residuals or own_residuals(
                self.curvature, x_q.flat(), rows.to_dense()[:, 0], self.damping
            )
        return x_q

    def newton(self, g_q: Rows) -> Tensor:
        """Leverage-corrected scores times N, [Q, N]."""
        if self.curvature.fixed_damping is not None:
            rung = self.curvature.rung
            raise InputError(f"{rung} has no units, so there is no leverage to correct for")
        x_qp = self.curvature.solve(g_q.to_dense()[:, 0], self.damping)
        return newton_scores(self.problem, self.curvature, self.layout, self.damping, x_qp)

    def predicted(self, values_qn: Tensor, first: int, at: int) -> Tensor:
        """The scores of a tile from N times them; looked at for what is not finite, which raises
        `NonFiniteError` with query and example, or larger than m can move, which is noted."""
        require_finite_scores(values_qn, self.curvature.rung, first, at)
        i_qn = values_qn / len(self.problem.train)
        if self.reach is not None and self.curvature.fixed_damping is None:
            self.reach.look(i_qn, first, at)  # without units they are no predictions
        return i_qn

    def scores(self, matrix: ScoreMatrix, told: list[str], *, leverage: bool) -> Scores:
        problem, curvature, damping = self.problem, self.curvature, self.damping
        measurement, notes = problem.measurement, [*self.notes, *told]
        if self.compression is not None:
            notes.append(said_of_compression(self.compression))
        if curvature.tolerance is not None and self.residuals:
            notes.append(said_of_residuals(self.residuals, curvature.tolerance))
        names = [block.name for block in curvature.blocks]
        seconds = machine.clock(problem.device) - self.start
        return Scores(
            values=matrix.values,
            rung=curvature.name,
            damping=damping,
            lambdas=tuple(zip(names, curvature.lambdas(damping), strict=True)),
            fisher=curvature.fisher,
            measurement=measurement.name,
            unit=unit_of(curvature, measurement),
            lower_is_better=measurement.lower_is_better,
            leverage=leverage,
            coverage=curvature.coverage,
            cost=ScoreCost(curvature.cost.fit_seconds, seconds, curvature.cost.nbytes),
            notes=(
                *curvature.notes_at(damping),
                *notes,
                *(() if self.reach is None else self.reach.notes()),
            ),
            blocks=matrix.blocks or None,
            residuals=self.residuals or None,
            inverse_error=self.inverses.error,
            certifier=Certifier(problem, curvature, damping, self.compress),
        )


def unit_of(curvature: Curvature, measurement: Measurement) -> str:
    """Of scores: the measurement's, or none where the curvature has no units."""
    if curvature.fixed_damping is None:
        return measurement.unit
    return "none (a gradient dot product)"


def _of_underflow(queries: Rows) -> tuple[str, ...]:
    """What to say of gradients that are there and whose squares are not."""
    gone = queries.squared_norms()[:, 0] == 0
    lost = int((gone & (queries.inner(drawn(queries, 0))[0, :, 0] != 0)).sum()) if gone.any() else 0
    if not lost:
        return ()
    return (
        f"{lost} queries have gradients so small that their squares are 0 in "
        f"{queries.dense.dtype}, and so may be their scores: scale the loss, or use float64",
    )


def require_finite_scores(values_qn: Tensor, rung: str, first: int, start: int) -> None:
    bad = (~values_qn.isfinite()).nonzero()
    if len(bad):
        q, n = bad[0].tolist()
        raise NonFiniteError(
            f"{rung}: the influence of training example {start + n} on query {first + q} is "
            f"{float(values_qn[q, n])} ({len(bad)} such values), though all gradients are finite: "
            "use a larger damping, or float64"
        )
