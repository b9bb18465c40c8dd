"""Influence of single positions of training examples: tokens of a sequence, pixels of a map."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvfluence import kinds
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.estimate.linearised import Linearised
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.rung import Rung
from curvfluence.errors import CurvfluenceWarning, InputError, NonFiniteError, counted_from
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.in_chunks import InChunks
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data
from curvfluence.problem.tree import Batched
from curvfluence.runtime import attention, budget, precision
from curvfluence.score.best_damping import require_named
from curvfluence.score.fitted import fitted

DIRECTIONS = 0.6  # passes of a position by itself that a product along a query takes, about
ADDED = 1000.0  # ε of their size, that rounding leaves between positions and x_q · Σ_n g_n


@precision.full()
def token_influence(
    problem: Problem,
    rung: Rung | Curvature,
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    strict: bool = False,
    examples: Sequence[int] | None = None,
) -> Tensor:
    """(1/N) g_qᵀ (C + diag(w) + λI)⁻¹ ∇(c_n ℓ_nt), [Q, N, T]: the share of target t of example n.

    Under `CausalLM` target t is the token at t + 1, and T − 1 of them are counted.

    ℓ_n = c_n Σ_t ℓ_nt, so they add up over t to `influence(...).values`: what leaving the loss of
    one position out would change, with its token still in the context. A position that does not
    count has 0, and so have those behind the last of a shorter example, where lengths differ. On
    the CPU. `examples` names some training examples, of which alone it is then: [Q, len(examples),
    T], with T that of the longest of them.

    It is the derivative of c_n ℓ_nt along each solved query, (∂ℓ_nt/∂f_t)ᵀ (J_n x_q)_t, of which
    one product J_n x_q has all positions: about a pass over the examples a query, by double
    backward, which is held against x_q · Σ_n g_n on every chunk. Where queries are many next to T,
    or the model runs under autocast, it is T backward passes instead, one a position, whatever the
    queries; so it is, with a warning, where the model cannot be differentiated twice.

    Errors: `InputError` for a loss that is not `Positions`.
    """
    count = require_positions(problem)
    curvature = fitted(problem, rung, damping, strict=strict)
    chosen = require_named(curvature, damping, "BestOf chooses by whole examples", "tokens")
    layout, n = discover(problem), len(problem.train)
    g_q = query_gradients(problem, layout)
    x_q = curvature.solve_rows(g_q, chosen, against=Against(n * count))
    asked = problem.train if examples is None else _some(problem, examples)
    parts: list[Tensor] | None = None
    if along_queries(problem, len(g_q)):
        parts = _by_directions(problem, asked, x_q.flat())
    if parts is None:
        columns = Columns(count, "training set", _each_position)
        rows_of = rows_in_chunks(problem, layout, asked, columns)
        parts = [x_q.inner(g_nt).cpu() for _, g_nt in rows_of]
    longest = max(part.shape[2] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[2])) for part in parts], dim=1) / n


def require_positions(problem: Problem) -> int:
    """How many positions an example has. Errors: `InputError` for a loss without."""
    if problem.loss.positions is None:
        raise InputError(
            f"token influence needs a loss over positions, Positions(...); seen {problem.loss}"
        )
    return problem.loss.positions


def along_queries(problem: Problem, queries: int) -> bool:
    """Whether a product along each query is cheaper than a pass for each position; under autocast
    it would not be the passes' own derivative."""
    positions = problem.loss.positions or 0
    return DIRECTIONS * queries < positions and problem.autocast is None


def _by_directions(problem: Problem, asked: Data, x_qp: Tensor) -> list[Tensor] | None:
    """[Q, n, T] of successive examples; None, with a warning, where the model cannot be
    differentiated twice, or positions do not add up to x_q · Σ_n g_n: an operation in it then has a
    wrong double backward."""
    try:
        with attention.plain():  # the others cannot be differentiated twice
            chunks = InChunks(asked, _chunk(problem))
            return [_shares(problem, start, part, x_qp).cpu() for start, part in chunks]
    except NonFiniteError:
        raise  # either way
    except InputError as error:
        warnings.warn(
            f"token influence takes a pass for each position, and longer: {error}",
            CurvfluenceWarning,
            stacklevel=4,  # past the decorator
        )
        return None


def _shares(problem: Problem, start: int, part: Examples, x_qp: Tensor) -> Tensor:
    """[Q, n, T] of these examples."""
    model = Linearised.of(problem, start, part, "GGN")
    output = model.output.detach()
    with counted_from(start):
        slope_bo = model.loss.gradient(output, part.targets)
        _, f_rk, _ = model.loss.of_rows(output, part.targets)
    require_finite(slope_bo, "output gradient of training set", start)
    shape = len(part), -1, f_rk.shape[1]
    shares = [(model.along(x).view(shape) * slope_bo.view(shape)).sum(2) for x in x_qp]
    shares_qbt = torch.stack(shares)
    whole_p, exact_qbt = model.pulled(slope_bo), shares_qbt.double()
    size_q = exact_qbt.abs().sum((1, 2)) + (x_qp.norm(dim=1) * whole_p.norm()).double()
    gap_q = (exact_qbt.sum((1, 2)) - (x_qp @ whole_p).double()).abs()
    if bool((gap_q > ADDED * torch.finfo(problem.arithmetic).eps * size_q).any()):
        raise InputError(
            f"products along queries do not add up to gradients at examples from {start} on, so an "
            "operation in the model has a wrong double backward"
        )
    return shares_qbt


def _chunk(problem: Problem) -> int:
    """Examples at a time: graphs of two derivatives are held."""
    return max(1, min(256, budget.PASS // max(1, 4 * discover(problem).elements(1))))


def _some(problem: Problem, examples: Sequence[int]) -> Examples:
    rows = kinds.counts(examples, "examples")
    if not rows or max(rows) >= len(problem.train):
        raise InputError(
            f"examples are numbers of training examples, one or more of 0 to "
            f"{len(problem.train) - 1}; seen {rows}"
        )
    return problem.train.take(torch.tensor(rows, device=problem.device))


def _each_position(loss: Loss, output: Tensor, target: Batched) -> Tensor:
    """∂(c_n ℓ_nt)/∂f of every position by itself, [B, T K, T]."""
    _, f_rk, _ = loss.of_rows(output, target)
    g_btk = loss.gradient(output, target).view(len(output), -1, f_rk.shape[1])
    each = torch.diag_embed(g_btk.movedim(1, -1), dim1=1, dim2=3)  # [B, T, K, T]
    return each.flatten(1, 2)
