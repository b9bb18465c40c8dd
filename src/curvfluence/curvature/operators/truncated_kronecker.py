"""U diag(Λ) Uᵀ with U = U_B ⊗ U_A, of which some columns of U_B and of U_A are held, and not all.

On what is orthogonal to the columns that are held, Λ is one number for each that is held on the
other side, its mean there: so no other column is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from curvfluence.curvature.operators.decomposed import leading_eigh, narrowed
from curvfluence.curvature.operators.definite import require_definite_eigenvalues
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.kronecker import KroneckerEigen, rowwise_eigh, two_decays
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_spectrum
from curvfluence.curvature.operators.operator import Against, Operator, squared
from curvfluence.curvature.operators.solution import InLayer, Solution
from curvfluence.curvature.places import LayerPart, Places
from curvfluence.errors import InputError
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime import budget

SPANNED = 1e3  # ε of the bias input's square, that may lie outside of the columns that are held
WITHIN = 1e-12  # of a unit vector: what is less is rounding


class Corners(NamedTuple):
    """[V in U_B V U_Aᵀ held on both sides; on that of U_B alone; of U_A alone; on none]: the
    coordinates of a matrix, those that are not held as matrices [o, i] less what is."""

    inside: Tensor  # [..., k_o, k_i]
    by_out: Tensor  # [..., k_o, i]
    by_in: Tensor  # [..., o, k_i]
    rest: Tensor  # [..., o, i]


@dataclass(frozen=True, eq=False)
class TruncatedKronecker(Operator):
    """Inverted exactly. Cost of a product or a solve: 4 o i (k_o + k_i) operations a vector; memory
    o k_o + i k_i + k_o k_i."""

    out_basis: Tensor  # the columns of U_B that are held, (o, k_o)
    in_basis: Tensor | None  # of U_A, (i, k_i), a bias the last input; None is the identity
    values: Tensor  # Λ, (k_o + 1, k_i + 1): the last row and column of what is not held, if any
    # Of what the data make, at most, where known: a mean of what is not held is of zeros too.
    rank: int | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shape[0] * self.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        inputs = self.values.shape[1] if self.in_basis is None else len(self.in_basis)
        return len(self.out_basis), inputs

    @property
    def held(self) -> tuple[int, int]:
        """(k_o, k_i)."""
        inputs = self.values.shape[1] if self.in_basis is None else self.in_basis.shape[1]
        return self.out_basis.shape[1], inputs

    @property
    def outside(self) -> float:
        """The share of the trace that lies outside of U_B ⊗ U_A as held, where Λ is a mean."""
        spectrum, (out, inp) = self._spectrum().double(), self.held
        whole = float(spectrum.sum())
        return 1 - float(spectrum[:out, :inp].sum()) / whole if whole > 0 else 0.0

    @property
    def nbytes(self) -> int:
        held = 0 if self.in_basis is None else self.in_basis.nbytes
        return self.out_basis.nbytes + held + self.values.nbytes

    def corners(self, v: Tensor) -> Corners:
        """The coordinates of v [..., n]."""
        v_koi = v.reshape(*v.shape[:-1], *self.shape)
        by_out = self.out_basis.T @ v_koi
        by_in = v_koi if self.in_basis is None else v_koi @ self.in_basis
        inside = by_out if self.in_basis is None else by_out @ self.in_basis
        lifted = self.out_basis @ inside
        return Corners(
            inside,
            by_out - self._across(inside),
            by_in - lifted,
            v_koi - self.out_basis @ by_out - self._across(by_in - lifted),
        )

    def composed(self, corners: Corners) -> Tensor:
        """v [..., n] of its coordinates."""
        top = self._across(corners.inside) + corners.by_out
        return (self.out_basis @ top + self._across(corners.by_in) + corners.rest).flatten(-2)

    def _across(self, x: Tensor) -> Tensor:
        return x if self.in_basis is None else x @ self.in_basis.T

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.composed(self._times(self.corners(v), self.values))

    def _times(self, at: Corners, table: Tensor) -> Corners:
        """Coordinates times numbers that are laid out as `values`; where all columns of a side are
        held what is left of it is rounding, and goes."""
        out, inp = self.held
        right, down = table.shape[1] > inp, table.shape[0] > out
        return Corners(
            at.inside * table[:out, :inp],
            at.by_out * (table[:out, inp:] if right else 0.0),
            at.by_in * (table[out, :inp] if down else 0.0),
            at.rest * (table[out, inp] if right and down else 0.0),
        )

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        """Exact, also where the bias (the last input) has another decay than the weight, as long as
        its unit vector lies in the columns that are held: one Sherman-Morrison step for each output
        direction, as with complete bases.

        Errors: `SingularError` as there; `InputError` where it does not lie in them.
        """
        weight_decay, delta = two_decays(decay, self.shape)
        denominator = Denominator.of(
            self.values + (weight_decay + damping), by_input=self.in_basis is None
        )
        x = self._times(self.corners(v), denominator.values.reciprocal())
        if delta:
            x = self._with_bias(x, denominator.values, delta)
        if denominator.error is not None:
            denominator.require_trusted(self._sizes(x))
        return self.composed(x)

    def _with_bias(self, x: Corners, damped: Tensor, delta: float) -> Corners:
        """What δ on the bias input adds: u is its unit vector in the columns that are held."""
        assert self.in_basis is not None, "a lookup has no bias"
        u_i = self.in_basis[-1]
        outside = abs(1 - float(u_i.double().square().sum()))
        if outside > SPANNED * torch.finfo(u_i.dtype).eps:
            raise InputError(
                "the bias has another weight decay than its weight, and the eigenvectors that are "
                "held do not span it: keep it in a block of its own (joint_bias=False), or hold all"
            )
        scaled = u_i / damped[:, : len(u_i)]
        gain = 1 + delta * (u_i * scaled).sum(-1)
        require_definite_eigenvalues(gain)
        share, out = delta / gain, self.held[0]
        inside = x.inside - (share[:out] * (x.inside @ u_i))[..., None] * scaled[:out]
        by_in = x.by_in
        if len(scaled) > out:
            by_in = by_in - (share[out] * (by_in @ u_i))[..., None] * scaled[out]
        return x._replace(inside=inside, by_in=by_in)

    def _sizes(self, x: Corners) -> Tensor:
        """|x| in the places of `values`: norms of what is not held."""
        out, inp = self.held
        top, below = x.inside.abs(), x.by_in.norm(dim=-2, keepdim=True)
        if self.values.shape[1] > inp:
            top = torch.cat([top, x.by_out.norm(dim=-1, keepdim=True)], dim=-1)
            corner = x.rest.flatten(-2).norm(dim=-1)[..., None, None]
            below = torch.cat([below, corner], dim=-1)
        return torch.cat([top, below], dim=-2) if self.values.shape[0] > out else top

    def solve_rows(
        self, places: Places, rows: Rows, decay: Tensor, damping: float, against: Against
    ) -> Solution:
        """In the layer's own coordinates: what is solved has parts that no held column spans."""
        assert isinstance(places, LayerPart)
        x_qn = self.solve(places.dense(rows)[:, 0], decay, damping)
        return InLayer.laid_out(places, x_qn.unflatten(-1, self.shape))

    def quadratic(self, places: Places, rows: Rows, decay: Tensor, damping: float) -> Tensor:
        step = max(1, budget.FORMED // self.size)
        found: list[Tensor] = []
        for start in range(0, len(rows), step):
            r_nn = places.dense(rows[start : start + step])[:, 0]
            found.append((r_nn * self.solve(r_nn, decay, damping)).sum(1))
        return torch.cat(found)

    def to_dense(self) -> Tensor:
        return self @ torch.eye(self.size).to(self.values)

    def _spectrum(self) -> Tensor:
        """Λ in complete bases, [o, i]."""
        return expanded(expanded(self.values, self.shape[0]).T, self.shape[1]).T

    def eigenvalues(self) -> Tensor:
        return self._spectrum().flatten()

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_spectrum(self._spectrum(), self.rank)

    def squared_norm(self) -> float:
        return squared(self._spectrum())

    def diagonal_entries(self) -> Tensor:
        return self.eigenbasis().diagonal_entries()

    def eigenbasis(self) -> KroneckerEigen:
        """The same matrix with complete bases: what is held, and any orthonormal completion."""
        inner = None if self.in_basis is None else _completed(self.in_basis)
        whole = _completed(self.out_basis)
        return KroneckerEigen(whole, inner, self._spectrum(), rank=self.rank)

    def diagonalised(self) -> Operator:
        return self


def expanded(values: Tensor, n: int) -> Tensor:
    """[k + 1, ...] to [n, ...]: the last is that of all which are not held."""
    missing = n - len(values)
    if missing <= 0:
        return values
    return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])


def leading_basis(factor: Tensor, most: int, held: int, *, bias: bool) -> tuple[Tensor, Tensor]:
    """(eigenvalues [k + 1], the last the mean of those that are not held, and eigenvectors [n, k])
    of a positive semi-definite factor [n, n] of at most the rank `most`: the `held` largest, and
    with `bias` one more column, what they lack of the last unit vector, with what it has of the
    factor, or where they lack nothing the next eigenvector. All of them, [n] and [n, n], where no
    fewer would be held.

    Cost: as `leading_eigh`. In float64 whatever the dtype of the factor.
    """
    if held + bias >= len(factor):
        return rowwise_eigh(factor, most)
    exact = factor.double()
    values, vectors = leading_eigh(exact, held + bias)
    if bias and (unit := _lacking(vectors[:, 1:])) is not None:
        vectors = torch.cat([vectors[:, 1:], unit[:, None]], dim=1)
        values = torch.cat([values[1:], (unit @ exact @ unit)[None]])
    left = (exact.diagonal().sum() - values.sum()) / (len(exact) - len(values))
    table = torch.cat([values, left.clamp_min(0)[None]])  # below 0 by rounding of the trace alone
    return table.to(factor.dtype), narrowed(vectors, factor.dtype)


def _lacking(vectors: Tensor) -> Tensor | None:
    """The unit vector that with these columns spans the last unit vector; None where they do."""
    unit = torch.zeros_like(vectors[:, 0])
    unit[-1] = 1
    for _ in range(3):  # once leaves what rounding did, of a small remainder much
        unit = unit - vectors @ (vectors.T @ unit)
        size = float(unit.norm())
        if not size > WITHIN:
            return None
        unit = unit / size
    return unit


def _completed(basis: Tensor) -> Tensor:
    whole = torch.linalg.qr(basis.double(), mode="complete").Q
    return torch.cat([basis, whole[:, basis.shape[1] :].to(basis)], dim=1)
