"""How K-FAC's factors treat positions that share weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from curvfluence.jacobian.terms import Factored, LookupOuter, Memo


class Sharing(ABC):
    """Which a and s the factors A and B are sums of (Eschenhagen et al. 2023, §3)."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def sums(
        self, term: Factored, weights: Tensor | None = None, memo: Memo | None = None
    ) -> tuple[Tensor, Tensor, float]:
        """(Σ a aᵀ, Σ s sᵀ, count of positions) of some examples; A is the first over N, B the
        second over the count. A lookup's Σ a aᵀ is diagonal and kept so. With weights v [N], which
        s holds already, Σ v a aᵀ and Σ v over the positions; `memo` as in `Factored`."""

    def rule(self, lookup: bool) -> str:
        """What a block's coverage says."""
        return self.name


class Expand(Sharing):
    """Each position is a datum of its own: A = (1/N) Σ_n Σ_t a aᵀ, B = (1/(N T)) Σ_n Σ_t s sᵀ with
    T the mean count of positions. For T = 1 plain K-FAC."""

    def sums(
        self, term: Factored, weights: Tensor | None = None, memo: Memo | None = None
    ) -> tuple[Tensor, Tensor, float]:
        return term.input_gram(weights, memo), term.output_gram(), term.positions(weights)


class Reduce(Sharing):
    """Positions are merged first: ā is their mean, s their sum; A = (1/N) Σ_n ā āᵀ,
    B = (1/N) Σ_n (Σ_t s)(Σ_t s)ᵀ. A lookup stays with `Expand`, whose A is diagonal."""

    def sums(
        self, term: Factored, weights: Tensor | None = None, memo: Memo | None = None
    ) -> tuple[Tensor, Tensor, float]:
        if isinstance(term, LookupOuter):
            return Expand().sums(term, weights)
        return Expand().sums(term.reduced(), weights)

    def rule(self, lookup: bool) -> str:
        return "expand, as for every lookup" if lookup else self.name

    def __repr__(self) -> str:
        return "Reduce()"
