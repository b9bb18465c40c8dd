"""I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from curvfluence.curvature import Curvature, Rung, fit
from curvfluence.damping import Absolute, BestOf, Damping, Relative
from curvfluence.data import require_finite
from curvfluence.errors import InputError, NonFiniteError, SingularError
from curvfluence.fisher import Type2
from curvfluence.gradients import Rows, query_gradients, rows_in_chunks, training_gradients
from curvfluence.layers import Coverage, coverage
from curvfluence.problem import Problem
from curvfluence.scores import ScoreCost, Scores


def influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    leverage: bool = False,
    strict: bool = False,
) -> Scores:
    """I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n, the change of m_q when n is left out.

    Assumes that training converged to a minimum of J and that leaving n out keeps the normaliser
    (Koh & Liang 2017, eq. 2). `rung` may be a curvature that was fitted before. With
    `leverage=True` each example takes a full Newton step of the quadratic model instead,
    (1/N) g_qᵀ (C + diag w + λI)⁻¹ J_nᵀ S_n (I − H_n)⁻¹ t_n, exact for ridge regression with GGN.

    Cost: the fit, one solve for Q vectors, and 2 Q N P operations; leverage adds a solve for each
    of the N × C rows of the factor. Errors: `SingularError` where λ and w leave nothing to invert,
    `NonFiniteError` with the index of the example.
    """
    curvature = _fitted(problem, rung, damping, strict=strict)
    if leverage and curvature.fixed_damping is not None:
        raise InputError(f"{curvature.rung} has no units, so there is no leverage to correct for")
    start = time.perf_counter()
    covered = coverage(problem)
    queries_qp = query_gradients(problem, covered).to_dense()[:, 0]
    chosen = damping if curvature.fixed_damping is None else curvature.fixed_damping
    note = None
    if isinstance(chosen, BestOf):
        gradients = training_gradients(problem, covered)
        chosen, note = _choose(curvature, chosen, queries_qp, gradients)
    solved_qp = curvature.solve(queries_qp, chosen)
    n = len(problem.train)
    if leverage:
        values = _newton(problem, curvature, covered, chosen, solved_qp) / n
    else:
        values = training_gradients(problem, covered).inner(solved_qp)[..., 0] / n
    _require_finite_scores(values, curvature.rung)
    measurement = problem.measurement
    fixed = curvature.fixed_damping
    notes = curvature.notes_at(chosen)
    blocks = [block.name for block in curvature.blocks]
    return Scores(
        values=values,
        rung=curvature.name,
        damping=chosen,
        lambdas=tuple(zip(blocks, curvature.lambdas(chosen), strict=True)),
        fisher=curvature.fisher,
        measurement=measurement.name,
        unit=measurement.unit if fixed is None else "none (a gradient dot product)",
        lower_is_better=measurement.lower_is_better,
        leverage=leverage,
        coverage=curvature.coverage,
        cost=ScoreCost(
            curvature.cost.fit_seconds, time.perf_counter() - start, curvature.cost.nbytes
        ),
        notes=notes if note is None else (*notes, note),
    )


def self_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """(1/N) g_nᵀ (C + diag(w) + λI)⁻¹ g_n, [N]: how much leaving n out would raise n's own loss."""
    curvature = _fitted(problem, rung, damping, strict=strict)
    rows = training_gradients(problem, coverage(problem)).to_dense()[:, 0]
    values = (rows * curvature.solve(rows, damping)).sum(1) / len(problem.train)
    _require_finite_scores(values[None], curvature.rung)
    return values


def _fitted(
    problem: Problem, rung: Rung | Curvature, damping: Damping, *, strict: bool
) -> Curvature:
    """The curvature to use, after everything that can be refused before work was."""
    if not isinstance(damping, Damping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"damping must be an object such as Relative(0.1) or Absolute(1e-3); seen {damping!r}"
        )
    if not isinstance(rung, Curvature):
        if isinstance(rung, Rung):  # pyright: ignore[reportUnnecessaryIsInstance]
            _require_regular(problem, rung, damping)
        return fit(problem, rung, strict=strict)
    if rung.parameters != problem.parameters:
        raise InputError("the curvature was fitted on a model with other parameters")
    if rung.fitted_on != problem.fingerprint:
        raise InputError(
            "the curvature was fitted at other weights, weight decay, loss or training data: fit "
            "it on this problem"
        )
    return rung


def _require_finite_scores(values_qn: Tensor, rung: str) -> None:
    bad = (~values_qn.isfinite()).nonzero()
    if len(bad):
        q, n = bad[0].tolist()
        raise NonFiniteError(
            f"{rung}: the influence of training example {n} on query {q} is "
            f"{float(values_qn[q, n])} ({len(bad)} such values), though all gradients are finite: "
            "use a larger damping, or float64"
        )


def group_predictions(
    curvature: Curvature,
    queries_qp: Tensor,
    groups_mp: Tensor,
    dampings: tuple[Damping, ...],
    n: int,
) -> Tensor:
    """Predicted change of each query for each group of summed gradients, [D, Q, m].

    Σ_{n in group} I[q, n] by (C + W + λ)⁻¹ g_q against the group's summed gradient: nothing of size
    Q × N is formed, and operators share what they can between dampings.
    """
    return torch.stack(
        [solved @ groups_mp.T / n for solved in curvature.solve_many(queries_qp, dampings)]
    )


@dataclass(frozen=True)
class _Choice:
    damping: Damping
    validation: float
    held_out: float


def _choose(
    curvature: Curvature, best: BestOf, queries_qp: Tensor, gradients: Rows
) -> tuple[Damping, str]:
    assert best.truth is not None
    n = len(gradients.dense)
    left_out = best.truth.left_out.to(queries_qp)
    groups = gradients.weighted_sum(left_out)
    predicted = group_predictions(curvature, queries_qp, groups, best.candidates, n)
    tried = [
        _Choice(damping, *best.truth.judge(row.T))
        for damping, row in zip(best.candidates, predicted, strict=True)
    ]
    if not all(isfinite(choice.validation) for choice in tried):
        raise InputError(f"the truth gave a score that is not finite: {tried}")
    won = max(tried, key=lambda choice: choice.validation)
    sizes = {id(c): sum(curvature.lambdas(c.damping)) for c in tried}
    edge = len(tried) > 1 and sizes[id(won)] in (min(sizes.values()), max(sizes.values()))
    note = (
        f"damping {won.damping} chosen among {len(tried)}: {won.validation:.3f} on validation "
        f"queries, {won.held_out:.3f} on held-out ones"
    )
    return won.damping, note + ("; the choice is on the edge of the candidates" if edge else "")


def _newton(
    problem: Problem,
    curvature: Curvature,
    covered: Coverage,
    damping: Damping,
    solved_qp: Tensor,
) -> Tensor:
    """g_qᵀ (C + W + λ)⁻¹ J_nᵀ S_n (I − H_n)⁻¹ t_n, [Q, N]."""
    n = len(problem.train)
    loss = problem.loss
    per_example = problem.parameters.count * loss.columns(problem.n_outputs)
    chunk = max(1, 2**26 // per_example)
    columns = Type2().columns(problem)
    parts: list[Tensor] = []
    found = rows_in_chunks(
        problem, covered, problem.train, columns, what="training set", chunk=chunk
    )
    for start, rows in found:
        part = problem.train[slice(start, start + len(rows.dense))]
        with torch.no_grad():
            t_bc = loss.coordinates(problem.forward(part.inputs), part.targets)
        require_finite(t_bc, "leverage coordinates of training set", start)
        z_bcp = rows.to_dense()
        h_bcc = z_bcp @ curvature.solve(z_bcp, damping).transpose(1, 2) / n
        kept = torch.eye(h_bcc.shape[1]).to(h_bcc) - h_bcc
        lowest_b = torch.linalg.eigvalsh(kept)[:, 0]
        bad = (lowest_b <= 0).nonzero().flatten()
        if len(bad):
            raise SingularError(
                f"example {start + int(bad[0])} has a leverage of {1 - float(lowest_b[bad[0]]):.3g}"
                " >= 1: without it the quadratic model has no minimum. Use a larger damping"
            )
        step_bc = torch.linalg.solve(kept, t_bc)
        parts.append((rows.inner(solved_qp) * step_bc).sum(-1))
    return torch.cat(parts, dim=1)


def _require_regular(problem: Problem, rung: Rung, damping: Damping) -> None:
    """Before any work: refuse a λ of 0 where the rank alone shows the matrix to be singular."""
    rank = rung.rank(problem)
    if rank is None or not isinstance(damping, Absolute | Relative) or damping.value > 0:
        return
    bare = int((problem.decay == 0).sum())
    if bare > rank:
        raise SingularError(
            f"{rung.name} with damping {damping} cannot be inverted: {bare:,} parameters have no "
            f"weight decay, and {len(problem.train):,} examples give the curvature a rank of at "
            f"most {rank:,}. Use Relative(0.1), or any damping > 0"
        )
