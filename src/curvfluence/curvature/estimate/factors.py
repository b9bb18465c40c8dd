"""The two factors of a layer's block, as sums over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, float64, tensor

from curvfluence.curvature.estimate.accumulate import Sums
from curvfluence.curvature.places import LayerPart
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Factored, Memo, sum_of
from curvfluence.jacobian.terms.gram import operations as gram_operations
from curvfluence.problem.problem import Problem


class Factors(ABC):
    """Which factors A (of the inputs) and B (of the outputs) a layer's rows are summed to."""

    @abstractmethod
    def add(self, part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
        """Add what a chunk of rows gives to the sums of a part."""

    @abstractmethod
    def of(self, part: LayerPart, sums: Sums, problem: Problem) -> tuple[Tensor, Tensor]:
        """(A [i, i], B [o, o]) from the sums; the A of a lookup is its diagonal, [i]."""

    def rule(self, part: LayerPart) -> str:
        """How shared positions were treated, as coverage says it; "" where there is no choice."""
        return ""

    def ranks(self, part: LayerPart, examples: int, columns: int) -> tuple[int, int]:
        """At most these, of A and B, where examples have as many positions as those that were
        probed: sums of so many outer products."""
        positions = examples * max(1, part.layer.positions) * _uses(part)
        return positions, positions * columns

    @abstractmethod
    def operations(self, part: LayerPart, columns: int) -> float:
        """Of one example's contribution."""


class Sharing(Factors):
    """K-FAC's factors: which a and s A and B are sums of where positions share weights
    (Eschenhagen et al. 2023, §3).

    With weights v, A is the mean by v, and B Σ_n v_n s sᵀ over N and the mean count of positions
    by v: what examples that are there v times would give.
    """

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def merged(self, term: Factored) -> Factored:
        """The rows as their positions are taken."""

    def add(self, part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
        term = self.merged(part.factored(rows))
        for k, pair in enumerate(term.pairs(rows.weights, memo)):
            sums.add((part.name, "A", k), pair.a)
            sums.add_((part.name, "B", k), pair.b)
            sums.add_((part.name, "positions", k), tensor(pair.positions, dtype=float64))

    def of(self, part: LayerPart, sums: Sums, problem: Problem) -> tuple[Tensor, Tensor]:
        n, v = len(problem.train), problem.train.weights
        total = n if v is None else float(v.sum())
        pairs: list[tuple[Tensor, Tensor]] = []
        for k in range(_uses(part)):
            count = float(sums.pop((part.name, "positions", k)))
            a_ii = sums.pop((part.name, "A", k)) / total
            b_oo = sums.pop((part.name, "B", k)) / (count * (n / total) if count else 1)
            pairs.append((a_ii, b_oo))
        return pairs[0] if len(pairs) == 1 else _balanced(pairs)

    def rule(self, part: LayerPart) -> str:
        return self.name if part.layer.shared else ""

    def operations(self, part: LayerPart, columns: int) -> float:
        o, i = part.shape
        inputs = 0.0 if part.lookup else gram_operations(i)
        return part.layer.positions * (inputs + columns * gram_operations(o))


@dataclass(frozen=True)
class Expand(Sharing):
    """Each position is a datum of its own: A = (1/N) Σ_n Σ_t a aᵀ, B = (1/(N T)) Σ_n Σ_t s sᵀ with
    T the mean count of positions. For T = 1 plain K-FAC."""

    def merged(self, term: Factored) -> Factored:
        return term


@dataclass(frozen=True)
class Reduce(Sharing):
    """Positions are merged first: ā is their mean, s their sum; A = (1/N) Σ_n ā āᵀ,
    B = (1/N) Σ_n (Σ_t s)(Σ_t s)ᵀ. A lookup stays with `Expand`, whose A is diagonal."""

    def merged(self, term: Factored) -> Factored:
        return term.reduced()

    def ranks(self, part: LayerPart, examples: int, columns: int) -> tuple[int, int]:
        merged = examples * _uses(part)
        return merged, merged * columns

    def rule(self, part: LayerPart) -> str:
        return "expand, as for every lookup" if part.layer.lookup else super().rule(part)


def _uses(part: LayerPart) -> int:
    """Kinds of uses of the weight: as a lookup and as a head, say."""
    return 1 if part.layer.head is None else 2


def _balanced(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(A, B) of a weight with several kinds of use: each use's A and B in the scale in which both
    have the same trace, added; then A so that tr A tr B is the sum of the uses' own.

    A use's B ⊗ A says nothing of how its size is shared between the two, which a sum of factors
    hangs on; and a sum's product has cross terms, which the last step takes out of the trace.
    """
    traces = [(_trace(a), _trace(b)) for a, b in pairs]
    used = [
        (a * (of_b / of_a) ** 0.5, b * (of_a / of_b) ** 0.5, (of_a * of_b) ** 0.5)
        for (a, b), (of_a, of_b) in zip(pairs, traces, strict=True)
        if of_a > 0 and of_b > 0
    ]
    if not used:
        return pairs[0]
    whole, roots = sum(root**2 for *_, root in used), sum(root for *_, root in used)
    return (
        sum_of(a for a, _, _ in used) * (whole / roots**2),
        sum_of(b for _, b, _ in used),
    )


def _trace(factor: Tensor) -> float:
    """Of a matrix, or of the diagonal of one."""
    diagonal = factor if factor.ndim == 1 else factor.diagonal()
    return float(diagonal.double().sum())


@dataclass(frozen=True)
class Grams(Factors):
    """R = (1/N) Σ_n Σ_c Gᵀ G (of the inputs) and L = (1/N) Σ_n Σ_c G Gᵀ, with G the o × i matrix
    of a row, summed over shared positions: what the optimiser Shampoo accumulates. The R of a
    lookup is kept diagonal. tr L = tr R is the trace of the layer's GGN block."""

    def add(self, part: LayerPart, rows: Rows, sums: Sums, memo: Memo) -> None:
        term = part.factored(rows)
        sums.add_((part.name, "R"), term.right_gram())
        sums.add_((part.name, "L"), term.left_gram())

    def of(self, part: LayerPart, sums: Sums, problem: Problem) -> tuple[Tensor, Tensor]:
        n = len(problem.train)
        return sums.pop((part.name, "R")) / n, sums.pop((part.name, "L")) / n

    def ranks(self, part: LayerPart, examples: int, columns: int) -> tuple[int, int]:
        each = examples * columns * max(1, part.layer.positions) * _uses(part)
        return each, each

    def operations(self, part: LayerPart, columns: int) -> float:
        o, i = part.shape
        if not part.shared:
            inputs = 0.0 if part.lookup else gram_operations(i)
            return inputs + columns * part.layer.positions * gram_operations(o)
        formed = 2.0 * part.layer.positions * o * i
        return columns * (2 * formed + i * gram_operations(o) + o * gram_operations(i))
