"""I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from curvfluence.curvature import Curvature, Rung, fit
from curvfluence.curvature.damping import Absolute, BestOf, Damping, Relative
from curvfluence.errors import CurvfluenceWarning, InputError, NonFiniteError, SingularError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.passes import (
    gradient_batches,
    gradient_rows,
    kept_gradients,
    query_gradients,
)
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import sum_of
from curvfluence.problem.problem import Problem
from curvfluence.runtime import device as machine
from curvfluence.runtime import precision
from curvfluence.score.best_damping import choose
from curvfluence.score.certificate import Certificate, certify, own_residuals, wanted_tolerance
from curvfluence.score.leverage import newton_scores
from curvfluence.score.scores import ScoreCost, Scores
from curvfluence.score.solved import Everything, quadratic_forms, solve_queries
from curvfluence.score.table import Table

SOLVED = 2**28  # numbers of solved queries that are held at a time


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
    out: Path | None = None,
) -> Scores:
    """I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n, the change of m_q when n is left out.

    Assumes that training converged to a minimum of J and that leaving n out keeps the normaliser
    (Koh & Liang 2017, eq. 2). `rung` may be a curvature that was fitted before. With
    `leverage=True` each example takes a full Newton step of the quadratic model instead,
    (1/N) g_qᵀ (C + diag w + λI)⁻¹ J_nᵀ S_n (I − H_n)⁻¹ t_n, exact for ridge regression with GGN.

    `by_block=True` keeps each block's share in `Scores.blocks` as well. `compress` holds the solved
    queries of layers with shared positions at low rank, each within that relative error, and says
    what it came to. `out` names a new .npy file that scores are written to as they are made;
    `Scores.values` is then a memory map of it.

    Cost: the fit, one solve for Q vectors, and 2 Q N P operations; leverage adds a solve for each
    of the N × C rows of the factor. Queries are taken so many at a time that their solutions stay
    below 2²⁸ numbers, with a pass over the training set each. Errors: `SingularError` where λ and w
    leave nothing to invert, `NonFiniteError` with the index of the example.
    """
    if out is not None and Path(out).exists():
        raise InputError(f"{out} exists: name a new file")
    curvature = fitted(problem, rung, damping, strict=strict)
    if leverage and curvature.fixed_damping is not None:
        raise InputError(f"{curvature.rung} has no units, so there is no leverage to correct for")
    if compress is not None and (isinstance(compress, bool) or not 0 < compress < 1):
        raise InputError(f"compress must lie between 0 and 1; seen {compress}")
    if leverage and (by_block or compress is not None):
        raise InputError("leverage-corrected scores come neither by block nor compressed")
    start = machine.clock(problem.device)
    layout = discover(problem)
    queries = query_gradients(problem, layout)
    chosen = damping if curvature.fixed_damping is None else curvature.fixed_damping
    notes: list[str] = []
    if isinstance(chosen, BestOf):
        chosen, note = choose(curvature, chosen, queries.to_dense()[:, 0], problem, layout)
        notes.append(note)
    table = Table.of(len(queries), len(problem.train), problem.dtype, out)
    blocks: dict[str, Tensor] = {}
    residuals: tuple[float, ...] = ()
    wanted = wanted_tolerance(curvature)
    try:
        if leverage:
            solved_qp = curvature.solve(queries.to_dense()[:, 0], chosen)
            found = newton_scores(problem, curvature, layout, chosen, solved_qp)
            table.put(0, 0, found / len(problem.train))
        else:
            error = 0.0
            for first, part in _in_batches(queries, curvature):
                solved = solve_queries(
                    curvature,
                    part,
                    chosen,
                    examples=len(problem.train),
                    kept=kept_gradients(problem, layout),
                    compress=compress,
                )
                error = max(error, solved.compression_error)
                if wanted is not None:
                    (every,) = solved.parts
                    assert isinstance(every, Everything)
                    g_qp = part.to_dense()[:, 0]
                    residuals += own_residuals(curvature, every.x_qp, g_qp, chosen)
                for at, rows in gradient_batches(problem, layout):
                    shares = solved.by_block(*rows) if by_block else {"all": solved.values(*rows)}
                    found = sum_of(shares.values())[..., 0]
                    _require_finite_scores(found, curvature.rung, first, at)
                    table.put(first, at, found / len(problem.train))
                    if by_block:
                        _keep(blocks, shares, table.shape, first, at, len(problem.train))
            if compress is not None:
                notes.append(
                    f"queries of shared layers at low rank: relative error up to {error:.2g}"
                )
    except BaseException:
        table.discard()
        raise
    values = table.finished()
    if wanted is not None and residuals:
        notes.append(_say_residuals(residuals, wanted))
    measurement = problem.measurement
    fixed = curvature.fixed_damping
    names = [block.name for block in curvature.blocks]
    return Scores(
        values=values,
        rung=curvature.name,
        damping=chosen,
        lambdas=tuple(zip(names, curvature.lambdas(chosen), strict=True)),
        fisher=curvature.fisher,
        measurement=measurement.name,
        unit=measurement.unit if fixed is None else "none (a gradient dot product)",
        lower_is_better=measurement.lower_is_better,
        leverage=leverage,
        coverage=curvature.coverage,
        cost=ScoreCost(
            curvature.cost.fit_seconds, machine.clock(problem.device) - start, curvature.cost.nbytes
        ),
        notes=(*curvature.notes_at(chosen), *notes),
        blocks=blocks or None,
        residuals=residuals or None,
        certifier=Certifier(problem, curvature, chosen),
    )


@precision.full()
def self_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """(1/N) g_nᵀ (C + diag(w) + λI)⁻¹ g_n, [N]: how much leaving n out would raise n's own loss;
    on the CPU.

    Where examples have weights, v_n of that: v_n ℓ_n is left out, and ℓ_n is what rises.

    Cost: a pass over the training set, and in a Kronecker eigenbasis N (o² + i² + o i) a layer
    where no position is shared; a solve for each example otherwise.
    """
    curvature = fitted(problem, rung, damping, strict=strict)
    if isinstance(damping, BestOf):
        raise InputError("BestOf chooses by queries: name a damping for self-influence")
    chosen = damping if curvature.fixed_damping is None else curvature.fixed_damping
    parts: list[Tensor] = []
    for start, rows in gradient_rows(problem, discover(problem)):
        found = quadratic_forms(curvature, rows, chosen) / len(problem.train)
        if rows.weights is not None:  # the rows hold v twice
            v_n = rows.weights.to(found)
            found = torch.where(v_n > 0, found / v_n, 0.0)
        _require_finite_scores(found[None], curvature.rung, 0, start)
        parts.append(found.cpu())
    return torch.cat(parts)


@precision.full()
def group_influence(
    problem: Problem,
    rung: Rung | Curvature,
    groups: Tensor,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
) -> Tensor:
    """Predicted change of each query when each group is left out, [Q, m]: Σ_{n in group} I[q, n];
    on the CPU.

    `groups` is a group's number for each training example [N], or weights [m, N] of how much of
    each example each group leaves out. Gradients are summed before the product, so nothing of size
    Q × N is formed: 2 (N + Q) m P operations.
    """
    weights_mn = _group_weights(torch.as_tensor(groups), len(problem.train))
    curvature = fitted(problem, rung, damping, strict=strict)
    layout = discover(problem)
    queries_qp = query_gradients(problem, layout).to_dense()[:, 0]
    weights_mn = weights_mn.to(queries_qp)
    summed = queries_qp.new_zeros(len(weights_mn), queries_qp.shape[1])
    for start, rows in gradient_rows(problem, layout):
        summed += rows.weighted_sum(weights_mn[:, start : start + len(rows)])
    chosen = damping if curvature.fixed_damping is None else curvature.fixed_damping
    if isinstance(chosen, BestOf):
        chosen, _ = choose(curvature, chosen, queries_qp, problem, layout)
    found = curvature.solve(queries_qp, chosen) @ summed.T / len(problem.train)
    _require_finite_scores(found, curvature.rung, 0, 0)
    return found.cpu()


class Certifier:
    """Makes the certificate of a set of scores when it is asked for."""

    def __init__(self, problem: Problem, curvature: Curvature, damping: Damping) -> None:
        self._problem, self._curvature, self._damping = problem, curvature, damping

    def __call__(self, against: str, dtype: torch.dtype | None) -> Certificate:
        return certify(self._problem, self._curvature, self._damping, against, dtype)


def _in_batches(queries: Rows, curvature: Curvature) -> Iterator[tuple[int, Rows]]:
    """All queries at once where their solutions fit, else as many as do."""
    step = max(1, SOLVED // curvature.parameters.count)
    for start in range(0, len(queries), step):
        yield start, queries[start : start + step]


def _keep(
    blocks: dict[str, Tensor],
    shares: dict[str, Tensor],
    shape: tuple[int, int],
    first: int,
    at: int,
    n: int,
) -> None:
    for name, value in shares.items():
        whole = blocks.setdefault(name, value.new_empty(shape, device="cpu"))
        whole[first : first + len(value), at : at + value.shape[1]] = value[..., 0] / n


def _say_residuals(residuals: tuple[float, ...], wanted: float) -> str:
    """What a result says of an inverse by iteration; warns where it stopped short."""
    worst = max(residuals)
    text = (
        f"solved by iteration: the largest relative residual ‖(C + diag(w) + λI)x − g‖/‖g‖ of a "
        f"query is {worst:.2g}, wanted {wanted:g}"
    )
    if worst > 2 * wanted:
        warnings.warn(text, CurvfluenceWarning, stacklevel=4)  # past the decorator
    return text


def _group_weights(groups: Tensor, n: int) -> Tensor:
    if groups.ndim == 2 and groups.shape[1] == n:
        if groups.is_floating_point() and not bool(groups.isfinite().all()):
            m = int((~groups.isfinite()).any(1).nonzero()[0])
            raise InputError(f"the weights of group {m} hold a NaN or infinity")
        return groups
    plain = not (groups.is_floating_point() or groups.dtype == torch.bool)
    if groups.ndim != 1 or len(groups) != n or not plain:
        raise InputError(
            f"groups are the number of each example's group, integers [{n}], or weights [m, {n}] "
            "(one row for a mask); "
            f"seen shape {tuple(groups.shape)} of {groups.dtype}"
        )
    if len(groups) and int(groups.min()) < 0:
        raise InputError(f"group numbers start at 0; seen {int(groups.min())}")
    return torch.nn.functional.one_hot(groups.long()).T


def fitted(
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
    if rung.decay.device != problem.device:
        raise InputError(
            f"the curvature is on {rung.decay.device}, the problem on {problem.device}: fit it on "
            "this problem, or move the problem with problem.to(device=...)"
        )
    if rung.fitted_on != problem.fingerprint:
        raise InputError(
            "the curvature was fitted at other weights, weight decay, loss or training data: fit "
            "it on this problem"
        )
    return rung


def _require_finite_scores(values_qn: Tensor, rung: str, first: int, start: int) -> None:
    bad = (~values_qn.isfinite()).nonzero()
    if len(bad):
        q, n = bad[0].tolist()
        raise NonFiniteError(
            f"{rung}: the influence of training example {start + n} on query {first + q} is "
            f"{float(values_qn[q, n])} ({len(bad)} such values), though all gradients are finite: "
            "use a larger damping, or float64"
        )


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
