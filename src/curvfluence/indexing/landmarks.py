"""Training examples whose gradients span, nearly, what scores are made of.

With A = C + diag(w) + λI ≻ 0, influence is an inner product, N I[q, n] = ⟨g_q, g_n⟩ in A⁻¹. Of d
landmarks with L Lᵀ = their Gram matrix in it, φ(g) = L⁻¹ (⟨g_l, g⟩)_l are the coordinates of the
projection of g on their span: φ(g_q)·φ(g_n) is the Nyström approximation of the score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping
from curvfluence.curvature.operators.operator import Against
from curvfluence.errors import InputError
from curvfluence.indexing.inner_products import (
    Gradients,
    inner_products,
    parts_of,
    room_of,
)
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.drawn import gradient_sizes, keys_by
from curvfluence.jacobian.layers import Layout
from curvfluence.problem.problem import Problem
from curvfluence.runtime import budget

BLOCK = 32  # examples that are proposed at a time
SAMPLE = 4096  # training examples that landmarks are chosen among, at most
SPENT = 1e-5  # of an example's own ‖g‖²: what is left below that is rounding


@dataclass(frozen=True, eq=False)
class Landmarks:
    """`numbers` of d training examples in the order of their choice, and L [d, d], lower
    triangular, of their products in A⁻¹; the first of them span less, and are landmarks as well."""

    numbers: Tensor
    factor: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def coordinates(self, products_dn: Tensor) -> Tensor:
        """φ [n, d], in float64, from ⟨g_l, A⁻¹ g⟩ of the landmarks with n gradients."""
        solved = torch.linalg.solve_triangular(self.factor, products_dn.double(), upper=False)
        return solved.T

    def first(self, count: int) -> Landmarks:
        return Landmarks(self.numbers[:count], self.factor[:count, :count])


@dataclass(frozen=True, eq=False)
class Chosen:
    """Landmarks with the sample that they were chosen among: its gradients, their φ [m, d], and
    the places of the landmarks among them."""

    landmarks: Landmarks
    sample: Gradients
    coordinates: Tensor
    places: Tensor

    def errors(self, exact_qm: Tensor, products_dq: Tensor, counts: list[int]) -> list[float]:
        """Of some queries with these landmarks' `products_dq` and `exact_qm` with the sample: the
        relative error, in norm, of their scores by so many landmarks each."""
        largest = float(exact_qm.abs().max())
        if largest == 0:
            return [0.0 for _ in counts]
        exact, products = exact_qm.double() / largest, products_dq.double() / largest
        found: list[float] = []
        for count in counts:
            few = self.landmarks.first(count)
            gap = few.coordinates(products[:count]) @ self.coordinates[:, :count].T - exact
            found.append(float(gap.norm() / exact.norm()))
        return found


def candidates(problem: Problem, layout: Layout, most: int, generator: torch.Generator) -> Tensor:
    """The numbers of up to 4,096 training examples among which up to `most` landmarks are chosen,
    drawn by the size of their gradients. Cost: a backward pass over the training set where it has
    more."""
    return _drawn(problem, layout, sample_size(problem, layout, most), generator)


def choose(
    problem: Problem,
    layout: Layout,
    curvature: Curvature,
    damping: Damping,
    numbers: Tensor,
    *,
    most: int,
    generator: torch.Generator,
    vectors: int | None = None,
    memory: int | None = None,
) -> Chosen:
    """Up to `most` landmarks among the training examples of these numbers, by randomly pivoted
    Cholesky: each with a chance that goes with what the others leave of ‖g‖² in A⁻¹.

    Blocks of 32 are proposed and rejected so that the choice has the distribution of one after the
    other. Fewer come out where the gradients have a smaller rank. Assumes A ≻ 0.
    Cost: about `most` solves, and 2 `most` M P operations for M examples (see `Rows.inner`) or
    less. Where as many solutions as `vectors` (`most` unless said) in `memory` bytes are those of
    some blocks at a time, all M are solved for, and their whole Gram matrix [M, M] is held.
    Source: Chen, Epperly, Tropp & Webber 2024, Algorithm 2.1; Epperly, Tropp & Webber 2024,
    "Embrace rejection", Algorithm 2.
    """
    room = room_of(problem, memory)
    together = most if vectors is None else vectors
    parts = parts_of(curvature, together, room)
    sample = Gradients.of(problem, layout, problem.train.take(numbers.to(problem.device)), room)
    rows = sample.held
    if rows is None or len(parts) > 1:
        starts = range(0, len(sample), together)
        some = (sample[start : start + together] for start in starts)
        halves = [inner_products(parts, damping, (each,), sample) for each in some]
        gram = torch.cat(halves).double()
        gram = (gram + gram.T) / 2
        norms = gram.diagonal().clamp_min(0)
    else:
        gram = None
        norms = curvature.quadratic(rows, damping).double().cpu().clamp_(min=0)
    if not float(norms.sum()) > 0:
        raise InputError(
            f"the gradients of {len(numbers)} training examples drawn at random are all 0: there "
            "is nothing to project on"
        )

    def products(at: Tensor) -> Tensor:
        if gram is not None:
            return gram[:, at]
        assert rows is not None
        few = rows[at.to(problem.device)]
        solved = curvature.solve_rows(few, damping, against=Against(len(numbers)))
        return solved.inner(rows)[..., 0].double().cpu().T

    picked, phi = randomly_pivoted(norms, products, most, generator)
    return Chosen(Landmarks(numbers[picked], phi[picked].tril()), sample, phi, picked)


def randomly_pivoted(
    norms: Tensor, products: Callable[[Tensor], Tensor], most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(k pivots in the order of their choice, F [m, k] with F Fᵀ ≈ K) of a positive semi-definite
    K [m, m] with diagonal `norms` and columns `products(pivots)` [m, b]; k is `most`, or less where
    nothing above rounding is left.

    Each pivot is drawn with a chance in proportion to the diagonal of what those before leave of K.
    """
    left = norms.clone()
    phi = torch.zeros(len(norms), 0, dtype=torch.float64)
    picked: list[int] = []
    while len(picked) < most and bool((left := _unspent(left, norms)).any()):
        proposed = torch.multinomial(left, BLOCK, replacement=True, generator=generator)
        draws = torch.rand(BLOCK, generator=generator, dtype=torch.float64)
        gap_mb = products(proposed) - phi @ phi[proposed].T
        spent = gap_mb[proposed].diagonal() <= SPENT * norms[proposed]
        accepted = _accepted(gap_mb[proposed], left[proposed], spent, draws)
        accepted = accepted[: most - len(picked)]
        left[proposed[spent]] = 0
        if not accepted:
            continue
        chosen = proposed[accepted]
        own = gap_mb[chosen][:, accepted]
        factor = _factor((own + own.T) / 2)
        if len(factor) < len(accepted):  # of the next one rounding alone is left
            left[chosen[len(factor)]] = 0
            accepted, chosen = accepted[: len(factor)], chosen[: len(factor)]
        if not accepted:
            continue
        new = torch.linalg.solve_triangular(factor, gap_mb[:, accepted].T, upper=False).T
        phi = torch.cat([phi, new], 1)
        left = (left - new.square().sum(1)).clamp_(min=0)
        left[chosen] = 0
        picked += chosen.tolist()
    return torch.tensor(picked, dtype=torch.long), phi


def _factor(own: Tensor) -> Tensor:
    """L of the largest leading part of a matrix that is positive definite."""
    factor, info = torch.linalg.cholesky_ex(own)
    if not int(info):
        return factor
    count = int(info) - 1
    return torch.linalg.cholesky_ex(own[:count, :count])[0]


def _unspent(left: Tensor, norms: Tensor) -> Tensor:
    """What is left of each, 0 where that is rounding; however small it is beside others."""
    return torch.where(left > SPENT * norms, left, 0)


def _drawn(problem: Problem, layout: Layout, size: int, generator: torch.Generator) -> Tensor:
    """Numbers of so many training examples, in order, each drawn the more likely the larger its
    gradient is: what scores are made of is among few of many. Those of size 0 are not drawn."""
    if size >= len(problem.train):
        return torch.arange(len(problem.train))
    keys = keys_by(gradient_sizes(problem, layout), generator)
    best = keys.topk(size).indices
    return best[keys[best].isfinite()].sort().values


def sample_size(problem: Problem, layout: Layout, most: int) -> int:
    """How many examples landmarks are chosen among: what may be held of their a and s, at least
    twice as many as there are to be landmarks."""
    elements = max(1, of_gradient("training set").elements(layout))
    held = max(2 * most, min(SAMPLE, budget.SOLVED // elements))
    return min(len(problem.train), held)


def _accepted(gap_bb: Tensor, left_b: Tensor, spent_b: Tensor, draws: Tensor) -> list[int]:
    """Which of the proposals stay, in order: each with the chance that what those before it leave
    of it has in what was there when it was proposed."""
    gap, accepted = ((gap_bb + gap_bb.T) / 2).clone(), list[int]()
    for k, draw in enumerate(draws.tolist()):
        own = float(gap[k, k])
        if bool(spent_b[k]) or own <= SPENT * float(left_b[k]) or draw * float(left_b[k]) >= own:
            continue
        column = gap[:, k] / own**0.5
        gap = gap - torch.outer(column, column)
        accepted.append(k)
    return accepted
