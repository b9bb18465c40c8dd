"""U diag(Λ) Uᵀ with U = U_B ⊗ U_A, on a layer's weights as (out, in).

K-FAC has Λ = λ_B λ_Aᵀ, EK-FAC the diagonal of the layer's block in the same basis. With vec
row-major, (U_B ⊗ U_A) vec(V) = vec(U_B V U_Aᵀ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from curvfluence.curvature.operators.correction import Correction
from curvfluence.curvature.operators.decomposed import eigh_of_rank, narrowed, settled
from curvfluence.curvature.operators.definite import require_definite_eigenvalues, require_positive
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.low_rank_inverse import Grades, LowRankInverse
from curvfluence.curvature.operators.low_rank_search import Sample, Search, worth_a_search
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_spectrum
from curvfluence.curvature.operators.operator import Against, Diagonalised, Operator, squared
from curvfluence.curvature.operators.paired import FEW_ROWS, Paired
from curvfluence.curvature.operators.solution import InLayer, Solution, compressed, joined
from curvfluence.curvature.places import LayerPart, Places
from curvfluence.errors import InputError
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Formed, Outer, SharedOuter, Term
from curvfluence.runtime import budget

ROUNDING = 16.0  # ε of a factor's trace, that sums leave of eigenvalues that are 0
Decompose: TypeAlias = Callable[[Tensor, int], tuple[Tensor, "Tensor | None"]]


@dataclass(frozen=True, eq=False)
class Kronecker(Diagonalised):
    """What all forms of U diag(Λ) Uᵀ share: the basis, and products by it."""

    out_basis: Tensor  # U_B, (o, o)
    in_basis: Tensor | None  # U_A, (i, i), a bias the last input; None is the identity (a lookup)
    values: Tensor  # Λ, (o, i)
    rank: int | None = field(default=None, kw_only=True)  # at most, where known

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        held = 0 if self.in_basis is None else self.in_basis.nbytes
        return self.out_basis.nbytes + held + self.values.nbytes

    def rotate(self, v: Tensor) -> Tensor:
        """Uᵀ v as [..., o, i]."""
        v_koi = v.reshape(*v.shape[:-1], *self.values.shape)
        rotated = self.out_basis.T @ v_koi
        return rotated if self.in_basis is None else rotated @ self.in_basis

    def rotate_back(self, v_koi: Tensor) -> Tensor:
        """U v as [..., n]."""
        back = self.out_basis @ v_koi
        return (back if self.in_basis is None else back @ self.in_basis.T).flatten(-2)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.rotate_back(self.values * self.rotate(v))

    def to_dense(self) -> Tensor:
        """Column by column, each rotated there and back as a matrix: 4 n² (o + i) operations for
        the 2 n³ of a product with U ⊗ U itself."""
        return self @ torch.eye(self.values.numel()).to(self.values)

    def eigenvalues(self) -> Tensor:
        return self.values.flatten()

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_spectrum(self.values, self.rank)

    def eigenbasis(self) -> KroneckerEigen:
        return KroneckerEigen(self.out_basis, self.in_basis, self.values, rank=self.rank)

    def with_eigenvalues(self, values: Tensor) -> Kronecker:
        return replace(self, values=values.reshape(self.values.shape), rank=None)

    def diagonal_of(self, matrix: Tensor) -> Tensor:
        half = self.rotate(matrix).flatten(1)  # M U
        return self.rotate(half.T).flatten(1).diagonal().clone()

    def coordinates(self, v: Tensor) -> Tensor:
        return self.rotate(v).flatten(-2)

    def eigenvectors(self, which: Tensor) -> Tensor:
        units = self.values.new_zeros(len(which), self.size)
        units[torch.arange(len(which)), which] = 1.0
        return self.rotate_back(units.reshape(len(which), *self.values.shape)).T

    def squared_norm(self) -> float:
        return squared(self.values)

    def diagonal_entries(self) -> Tensor:
        """Σ_kl U_B[o, k]² Λ_kl U_A[i, l]², summed in float64."""
        half = self.out_basis.double().square() @ self.values.double()
        both = half if self.in_basis is None else half @ self.in_basis.double().square().T
        return both.flatten()

    def squared_distance(self, other: Operator) -> float:
        """Σ (Λ − Λ')² where both have the same U: no dense matrix."""
        if isinstance(other, Kronecker) and self.shares_basis(other):
            return squared(self.values, other.values)
        return super().squared_distance(other)

    def shares_basis(self, other: Kronecker) -> bool:
        """Whether U is the same matrix in both."""
        a, b = self.in_basis, other.in_basis
        same = a is b if a is None or b is None else torch.equal(a, b)
        return same and torch.equal(self.out_basis, other.out_basis)

    def _solving(self, part: LayerPart, decay: Tensor, damping: float) -> Callable[[Rows], Tensor]:
        return lambda rows: self.solve(part.dense(rows)[:, 0], decay, damping)


@dataclass(frozen=True, eq=False)
class KroneckerEigen(Kronecker):
    """Inverted exactly. Cost of a product or a solve: O(o² i + o i²) time a vector; memory
    o² + i² + o i."""

    def eigenbasis(self) -> KroneckerEigen:
        return self

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """Exact, also where the bias (the last input) has another decay than the weight.

        diag(w) is then w₀ I + δ I ⊗ e eᵀ with e the bias input: diagonal in U_B and of rank one in
        U_A, so one Sherman-Morrison step for each of the o output directions.
        """
        return self.rotate_back(self.solve_rotated(self.rotate(v), decay, damping))

    def solve_rotated(self, r_koi: Tensor, decay: Tensor, damping: float) -> Tensor:
        """The same in the eigenbasis, [..., o, i]: Uᵀ (M + diag(w) + λI)⁻¹ U r."""
        return _divided(r_koi, *self._damped(decay, damping))

    def solve_rows(
        self, places: Places, rows: Rows, decay: Tensor, damping: float, against: Against
    ) -> Solution:
        """A row is rotated as its a and s, never as a matrix. What is solved in the eigenbasis and
        the rows that it meets come together in one of two places, whichever is fewer operations:
        in the layer's coordinates, to which the Q solutions and the M rows that a fit left in the
        eigenbasis are rotated back, (Q + M) o i (o + i), or there, (N − M) T (o² + i²). Some rows
        at a time: what is held of all of them is the solution. Where it would be large and few rows
        are met, none is formed (`Paired`).
        """
        assert isinstance(places, LayerPart)
        term, damped = places.term(rows), self._damped(decay, damping)
        if isinstance(term, Outer) and self._is_paired(term, *damped, against):
            return self._paired(places, term, *damped)
        there = self._count_within(places, against)
        (o, i), inner = places.shape, self.in_basis is not None
        back = (term.n + there) * o * i * (o + i * inner)
        left = against.examples - there
        forth = left * places.layer.positions * (o * o + i * i * inner)
        parts = (_divided(self._formed(part), *damped) for part in term.slices(o * i))
        if back <= forth:
            parts = (self.rotate_back(x_qoi).unflatten(-1, (o, i)) for x_qoi in parts)
            return InLayer(places, joined(places, parts, term.n))
        return Rotated(places, self, joined(places, parts, term.n))

    def _is_paired(
        self, term: Outer, denominator: Denominator, correction: Correction | None, against: Against
    ) -> bool:
        """Whether solutions are large and the rows that they meet few; and where rounding may
        matter, that all of a solution is 1/(Λ + w₀ + λ), whose trust needs none to be formed."""
        plain = denominator.error is None or correction is None
        large = term.n * self.size > budget.FORMED
        return self.in_basis is not None and plain and large and against.examples <= FEW_ROWS

    def _paired(
        self, part: LayerPart, term: Outer, denominator: Denominator, correction: Correction | None
    ) -> Paired:
        assert self.in_basis is not None
        queries = term.rotated(self.out_basis, self.in_basis)
        denominator.require_trusted_rows(queries)

        def flat() -> Tensor:
            slices = (some.dense()[:, 0] for some in queries.slices(self.size))
            solved = (self.rotate_back(_divided(x, denominator, correction)) for x in slices)
            return torch.cat(list(solved))

        return Paired(
            part,
            self.out_basis,
            self.in_basis,
            1 / denominator.values,
            correction,
            queries,
            flat,
        )

    def _formed(self, term: Term) -> Tensor:
        """Uᵀ r of single-column rows, [n, o, i]."""
        if isinstance(term, SharedOuter):
            return term.formed(self.out_basis, self.in_basis).held_nio.mT
        rotated = self.rotated(term)
        return rotated.held_nio.mT if isinstance(rotated, Formed) else rotated.dense()[:, 0]

    def low_rank_inverse(
        self, places: Places, queries: Rows, decay: Tensor, damping: float, sample: Sample
    ) -> Search | None:
        """Of the least rank whose error is allowed, where that is cheaper than the product with
        solved queries."""
        assert isinstance(places, LayerPart)
        if self.in_basis is None:
            return None
        term = places.term(queries)
        if not isinstance(term, Outer) or not worth_a_search(places, queries, sample):
            return None
        denominator, correction = self._damped(decay, damping)
        if denominator.error is not None and correction is not None:
            return None  # what rounding moves shows in whole solutions alone
        held = sample.rows()
        if held is None or sample.allowed is None:
            return None
        allowed_q = sample.allowed()
        if not bool((allowed_q > 0).any()):
            return None  # nothing but zeros: no rank would show its error
        asked, rows = places.term(sample.queries()), places.term(held.rows)
        if not isinstance(asked, Outer) or not isinstance(rows, Outer):
            return None
        return Search(
            places,
            self.out_basis,
            self.in_basis,
            self.values,
            lambda: self._damped(decay, damping),
            *(term, asked, rows, held, allowed_q, sample.slacks),
            self._solving(places, decay, damping),
        )

    def _count_within(self, part: LayerPart, against: Against) -> int:
        """How many examples have a row that is formed in this basis."""
        terms = (part.term(rows) for rows in against.cached if not rows.factored)
        basis = self.out_basis, self.in_basis
        return sum(term.n for term in terms if isinstance(term, Formed) and term.within(*basis))

    def quadratic(self, places: Places, rows: Rows, decay: Tensor, damping: float) -> Tensor:
        """In the eigenbasis: N o i operations where no position is shared."""
        assert isinstance(places, LayerPart)
        denominator, correction = self._damped(decay, damping)
        rotated = self.rotated(places.term(rows))
        total = rotated.weighted_squares(1 / denominator.values)
        if correction is not None:
            total = total - correction.quadratic(rotated)
        if denominator.error is not None:
            moved = rotated.weighted_squares(denominator.error / denominator.values)
            denominator.require_small(torch.where(moved > 0, moved / total, 0.0))
        return total

    def rotated(self, term: Term) -> Term:
        """The rows of a term in the eigenbasis."""
        return term.rotated(self.out_basis, self.in_basis)

    def _damped(self, decay: Tensor, damping: float) -> tuple[Denominator, Correction | None]:
        """(Λ + w₀ + λ [o, i], and what a bias adds that has a decay of its own)."""
        weight_decay, delta = two_decays(decay, self.values.shape)
        denominator = Denominator.of(
            self.values + (weight_decay + damping), by_input=self.in_basis is None
        )
        if delta == 0:
            return denominator, None
        assert self.in_basis is not None, "a lookup has no bias"
        u_i = self.in_basis[-1]
        scaled_oi = u_i / denominator.values
        gain_o = 1 + delta * (u_i * scaled_oi).sum(-1)
        require_definite_eigenvalues(gain_o)
        return denominator, Correction(u_i, scaled_oi, delta / gain_o)


def _divided(r_koi: Tensor, denominator: Denominator, correction: Correction | None) -> Tensor:
    """(Λ + diag(w) + λ)⁻¹ r in the eigenbasis, [..., o, i]."""
    x_koi = r_koi / denominator.values
    if correction is not None:
        x_koi = correction.solved(x_koi)
    denominator.require_trusted(x_koi)
    return x_koi


@dataclass(frozen=True, eq=False)
class Rotated(Solution):
    """In a block's Kronecker eigenbasis: x̂ [Q, o, i], and rows are rotated as a and s."""

    part: LayerPart
    operator: KroneckerEigen
    x_qoi: Tensor

    def inner(self, rows: Rows) -> Tensor:
        return self.operator.rotated(self.part.term(rows)).inner(self.x_qoi)

    def flat(self) -> Tensor:
        return self.operator.rotate_back(self.x_qoi)

    def compressed(self, tolerance: float) -> Solution:
        return compressed(self, self.part, self.flat().unflatten(-1, self.part.shape), tolerance)


@dataclass(frozen=True, eq=False)
class FactoredKronecker(Kronecker):
    """K-FAC inverted with factored damping: (A + π√λ I) ⊗ (B + √λ/π I), Martens & Grosse 2015 §6.3.

    π² = (tr A / i) / (tr B / o), 1 where a factor is 0; λ here is damping + w, which must be
    uniform in the block.
    It is not the inverse of C + diag(w) + λI, but cheaper for rank-one vectors.
    """

    out_values: Tensor  # λ_B, (o,)
    in_values: Tensor  # λ_A, (i,)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.out_values.nbytes + self.in_values.nbytes

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        out, inp = self._factors(decay, damping)
        return self.rotate_back(self.rotate(v) / torch.outer(out, inp))

    def low_rank_inverse(
        self, places: Places, queries: Rows, decay: Tensor, damping: float, sample: Sample
    ) -> LowRankInverse | None:
        """Of rank one, and exact: a solved query is as much of an outer product as the query."""
        assert isinstance(places, LayerPart)
        if self.in_basis is None:
            return None
        if not isinstance(places.term(queries), Outer):
            return None
        out, inp = self._factors(decay, damping)
        return LowRankInverse(
            places,
            self.out_basis,
            self.in_basis,
            1 / out[:, None],
            1 / inp[:, None],
            Grades((), (1,)),
            None,
            True,
            self._solving(places, decay, damping),
        )

    def _factors(self, decay: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """λ_B + √λ/π [o] and λ_A + π√λ [i]."""
        weight_decay, delta = two_decays(decay, self.values.shape)
        if delta != 0:
            raise InputError(
                "factored damping needs the same weight decay for a layer's weight and bias: keep "
                "the bias in a block of its own (joint_bias=False), or use exact damping"
            )
        root = (weight_decay + damping) ** 0.5
        in_mean, out_mean = float(self.in_values.mean()), float(self.out_values.mean())
        pi = (in_mean / out_mean) ** 0.5 if in_mean > 0 and out_mean > 0 else 1.0
        out = self.out_values + root / pi
        inp = self.in_values + root * pi
        require_definite_eigenvalues(out)
        if self.in_basis is not None:
            require_definite_eigenvalues(inp)
        else:  # a diagonal, of which each entry is divided by as it is
            lowest, top = float(inp.min()), float(inp.max())
            require_positive(lowest, top, n=0, eps=0.0, what="the damped counts of a lookup")
        return out, inp


def two_decays(decay: Tensor, shape: Sequence[int]) -> tuple[float, float]:
    """w₀ and δ with a block's decay [o i] = w₀ everywhere and w₀ + δ on the last input."""
    w_oi = decay.reshape(*shape)
    first, last = w_oi[0, 0], w_oi[0, -1]
    if bool((w_oi[:, :-1] != first).any()) or bool((w_oi[:, -1] != last).any()):
        raise InputError(
            "a Kronecker block needs one weight decay for its weight and one for its bias; "
            f"seen values from {float(w_oi.min()):.3g} to {float(w_oi.max()):.3g}"
        )
    return float(first), float(last - first)


def basis_of(factor: Tensor, most: int) -> tuple[Tensor, Tensor | None]:
    """(eigenvalues, eigenvectors) of a factor of at most that rank; of a lookup's, its diagonal and
    None."""
    return (factor, None) if factor.ndim == 1 else rowwise_eigh(factor, most)


class InputBases:
    """Decompositions layer after layer: one on the inputs of the layer before it has the same A, so
    the same eigenvectors. `alike` says of which layers as many would be held."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, object, tuple[Tensor, Tensor | None]] | None = None

    def of(
        self, a_ii: Tensor, most: int, decompose: Decompose = basis_of, alike: object = None
    ) -> tuple[Tensor, Tensor | None]:
        last = self._last
        if last is None or last[1] != alike or not torch.equal(last[0], a_ii):
            last = self._last = a_ii, alike, decompose(a_ii, most)
        return last[2]


def rowwise_eigh(matrix: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Eigendecomposition of a positive semi-definite matrix of at most the rank `most`, in float64
    whatever its dtype; the vectors are laid out row by row, with which products are faster. Of a
    matrix in float64 they are `settled`: eigenvalues along them (EK-FAC's) are the same on every
    machine. In float32 what was rounded in its sums tells equal eigenvalues apart."""
    rounding = ROUNDING * torch.finfo(matrix.dtype).eps
    values, vectors = eigh_of_rank(matrix.double(), most, rounding)
    if matrix.dtype == torch.float64:
        vectors = settled(values, vectors, rounding * float(matrix.diagonal().sum()))
    return values.to(matrix.dtype), narrowed(vectors, matrix.dtype)
