"""K-FAC: B ⊗ A per layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, float64, outer, tensor

from curvfluence.curvature.curvature import Block
from curvfluence.curvature.estimate.sharing import Expand, Sharing
from curvfluence.curvature.layerwise import (
    LayerPart,
    Remainder,
    accumulate,
    layer_blocks,
)
from curvfluence.curvature.operators.kronecker import (
    FactoredKronecker,
    InputBases,
    KroneckerEigen,
    basis_of,
)
from curvfluence.curvature.rung import FisherRung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Memo
from curvfluence.problem.problem import Problem


@dataclass(frozen=True)
class KroneckerRung(FisherRung):
    """A rung on K-FAC's factors; `sharing` says how they treat positions that share weights:
    `Expand()` or `Reduce()`."""

    sharing: Sharing = Expand()  # noqa: RUF009 - a value without state

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sharing, Sharing):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"sharing must be Expand() or Reduce(); seen {self.sharing!r}")

    def elements(self, problem: Problem) -> float:
        total = 0.0
        for layer in discover(problem).layers:
            o, i = layer.out_features, layer.in_features + (layer.bias is not None)
            total += 3.0 * (o**2 + (i if layer.lookup else i**2)) + o * i
        return total

    def _rule(self, kind: str, block: LayerPart) -> str:
        """`kind`, and how shared positions were treated where there are any."""
        layer = block.layer
        return f"{kind}, {self.sharing.rule(layer.lookup)}" if layer.shared else kind


@dataclass(frozen=True)
class KFAC(KroneckerRung):
    """Per layer B ⊗ A with A = (1/N) Σ_n a aᵀ and B = (1/N) Σ_n Σ_c s sᵀ (Martens & Grosse 2015);
    over shared positions as `sharing` says.

    Inverted exactly in the Kronecker eigenbasis, or with `factored_damping=True` by their π rule.
    Exact for one unshared datum, and for deep linear nets under MSE (Bernacchia et al. 2018).
    Cost: N T (i² + C o²) and two eigendecompositions a layer.
    """

    factored_damping: bool = False

    def build_blocks(self, problem: Problem, rows: FisherPass) -> tuple[Block, ...]:
        layout = rows.layout
        blocks = layer_blocks(problem.parameters, layout, joint_bias=self.joint_bias)
        remainder = Remainder(problem, layout, joint=self.joint_bias)
        factors = kronecker_factors(problem, rows, self.sharing, blocks, remainder)
        inputs = InputBases()
        made = [self._block(block, *factors[block.name], inputs) for block in blocks]
        return (*made, *remainder.blocks())

    def _block(self, block: LayerPart, a_ii: Tensor, b_oo: Tensor, inputs: InputBases) -> Block:
        in_values, in_basis = inputs.of(a_ii)
        out_values, out_basis = basis_of(b_oo)
        assert out_basis is not None
        values = outer(out_values, in_values)
        operator = (
            FactoredKronecker(out_basis, in_basis, values, out_values, in_values)
            if self.factored_damping
            else KroneckerEigen(out_basis, in_basis, values)
        )
        kind = "Kronecker, factored damping" if self.factored_damping else "Kronecker"
        return block.holding(operator, self._rule(kind, block))


def kronecker_factors(
    problem: Problem,
    rows: Iterable[Rows],
    sharing: Sharing,
    blocks: tuple[LayerPart, ...],
    remainder: Remainder | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of every block; the A of a lookup is its diagonal.

    With weights v, A is the mean by v, and B Σ_n v_n s sᵀ over N and the mean count of positions
    by v: what examples that are there v times would give.
    """

    def update(block: LayerPart, rows: Rows, memo: Memo) -> tuple[Tensor, ...]:
        a_ii, b_oo, count = sharing.sums(block.factored(rows), rows.weights, memo)
        return a_ii, b_oo, tensor(count, dtype=float64)

    sums = accumulate(rows, blocks, update, remainder)
    n, v = len(problem.train), problem.train.weights
    total = n if v is None else float(v.sum())
    return {
        name: (a / total, b / (float(count) * (n / total) if float(count) else 1))
        for name, (a, b, count) in sums.items()
    }
