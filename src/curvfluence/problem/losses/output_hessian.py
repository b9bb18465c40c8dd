"""∂²ℓ/∂f² of many outputs without their columns: sums and quadratic forms in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

SCALED = 2**22  # numbers of scaled copies of W that are held at a time


class OutputHessian(ABC):
    """H_n = S_n S_nᵀ of each example, [N, K, K], held in O(K) numbers each."""

    @abstractmethod
    def __getitem__(self, index: slice | Tensor) -> OutputHessian:
        """Of some of the examples."""

    @staticmethod
    @abstractmethod
    def joined(parts: Sequence[Any]) -> OutputHessian:
        """Of successive examples."""

    @abstractmethod
    def scaled(self, weights_n: Tensor) -> OutputHessian:
        """v_n H_n."""

    @abstractmethod
    def summed(self) -> Tensor:
        """Σ_n H_n, [K, K]. Cost: N K²."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """[N, K]."""

    def traces(self) -> Tensor:
        """tr H_n, [N]."""
        return self.diagonal().sum(1)

    @abstractmethod
    def quadratic(self, u_km: Tensor) -> Tensor:
        """u_mᵀ H_n u_m of each column of u, [N, M]. Cost: two GEMMs of N K M."""

    @abstractmethod
    def quadratic_each(self, u_nk: Tensor) -> Tensor:
        """u_nᵀ H_n u_n with a vector for each example, [N]."""

    @abstractmethod
    def pulled(self, w_kh: Tensor) -> Tensor:
        """Wᵀ H_n W, [N, h, h]. Cost: N K h²; memory for some scaled copies of W."""

    @abstractmethod
    def whole(self) -> Tensor:
        """[N, K, K], as a matrix each."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds."""

    @abstractmethod
    def mapped(self, change: Callable[[Tensor], Tensor]) -> OutputHessian:
        """The same with each of `tensors` changed."""

    def to(self, dtype: torch.dtype) -> OutputHessian:
        return self.mapped(lambda held: held.to(dtype) if held.is_floating_point() else held)


@dataclass(frozen=True, eq=False)
class DiagonalHessian(OutputHessian):
    """H_n = diag(d_n): of losses that are sums over outputs."""

    d: Tensor  # [N, K]

    def __getitem__(self, index: slice | Tensor) -> DiagonalHessian:
        return DiagonalHessian(self.d[index])

    @staticmethod
    def joined(parts: Sequence[DiagonalHessian]) -> DiagonalHessian:
        return DiagonalHessian(torch.cat([part.d for part in parts]))

    def scaled(self, weights_n: Tensor) -> DiagonalHessian:
        return DiagonalHessian(self.d * weights_n.to(self.d)[:, None])

    def summed(self) -> Tensor:
        return self.d.sum(0).diag()

    def diagonal(self) -> Tensor:
        return self.d

    def quadratic(self, u_km: Tensor) -> Tensor:
        return self.d @ u_km.square()

    def quadratic_each(self, u_nk: Tensor) -> Tensor:
        return (self.d * u_nk.square()).sum(1)

    def pulled(self, w_kh: Tensor) -> Tensor:
        return _weighted_grams(self.d, w_kh)

    def whole(self) -> Tensor:
        return self.d.diag_embed()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.d,)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> DiagonalHessian:
        return DiagonalHessian(change(self.d))


@dataclass(frozen=True, eq=False)
class SoftmaxHessian(OutputHessian):
    """H_n = R_n (diag(p) − p pᵀ).

    Of p the entry of the likeliest class t is held as what the others leave: p' is p without it and
    q = Σ p'. As H 1 = 0, uᵀ H u is that of u − u_t, of which entry t is 0, so that

        uᵀ H u = R (Σ_k p'_k (u_k − u_t)² − (Σ_k p'_k (u_k − u_t))²)

    has no difference of numbers near 1 as p → e_t: what is left of it is of the size of q.
    """

    others: Tensor  # p', [N, K]
    top: Tensor  # t, [N]
    scale: Tensor  # R, [N]

    @staticmethod
    def of(p_nk: Tensor, scale_n: Tensor) -> SoftmaxHessian:
        top_n = p_nk.argmax(1)
        return SoftmaxHessian(p_nk.scatter(1, top_n[:, None], 0.0), top_n, scale_n)

    def __getitem__(self, index: slice | Tensor) -> SoftmaxHessian:
        return SoftmaxHessian(self.others[index], self.top[index], self.scale[index])

    @staticmethod
    def joined(parts: Sequence[SoftmaxHessian]) -> SoftmaxHessian:
        others, top, scale = (torch.cat([p.tensors[k] for p in parts]) for k in range(3))
        return SoftmaxHessian(others, top, scale)

    def scaled(self, weights_n: Tensor) -> SoftmaxHessian:
        return replace(self, scale=self.scale * weights_n.to(self.scale))

    @property
    def _q(self) -> Tensor:
        return self.others.sum(1)

    def summed(self) -> Tensor:
        p, q_n = self.others, self._q
        scaled = p * self.scale[:, None]
        total = -(scaled.T @ p)
        crossed = torch.zeros_like(total).index_add_(0, self.top, scaled * (1 - q_n)[:, None])
        total -= crossed + crossed.T
        diagonal = scaled.sum(0)
        diagonal.index_add_(0, self.top, self.scale * (1 - q_n) * q_n)
        total.diagonal().add_(diagonal)
        return total

    def diagonal(self) -> Tensor:
        p, q_n = self.others, self._q
        found = p * (1 - p)
        found.scatter_(1, self.top[:, None], (q_n * (1 - q_n))[:, None])
        return found * self.scale[:, None]

    def quadratic(self, u_km: Tensor) -> Tensor:
        top_nm, q_n1 = u_km[self.top], self._q[:, None]
        mean = self.others @ u_km
        square = self.others @ u_km.square() + top_nm * (q_n1 * top_nm - 2 * mean)
        return ((square - (mean - q_n1 * top_nm).square()) * self.scale[:, None]).clamp_min_(0)

    def quadratic_each(self, u_nk: Tensor) -> Tensor:
        apart = u_nk - u_nk.gather(1, self.top[:, None])
        mean = (self.others * apart).sum(1)
        return ((self.others * apart.square()).sum(1) - mean.square()) * self.scale

    def pulled(self, w_kh: Tensor) -> Tensor:
        top_nh, q_n = w_kh[self.top], self._q
        mean_nh = self.others @ w_kh
        total = _weighted_grams(self.others, w_kh)
        crossed = mean_nh[:, :, None] * top_nh[:, None, :]
        total -= crossed + crossed.mT
        total += (q_n[:, None] * top_nh)[:, :, None] * top_nh[:, None, :]
        mean_nh = mean_nh - q_n[:, None] * top_nh
        total -= mean_nh[:, :, None] * mean_nh[:, None, :]
        return total.mul_(self.scale[:, None, None])

    def whole(self) -> Tensor:
        q_n1 = self._q[:, None]
        p = self.others.scatter(1, self.top[:, None], 1 - q_n1)
        found = -p[:, :, None] * p[:, None, :]
        found.diagonal(dim1=1, dim2=2).copy_(
            replace(self, scale=torch.ones_like(self.scale)).diagonal()
        )
        return found * self.scale[:, None, None]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.others, self.top, self.scale

    def mapped(self, change: Callable[[Tensor], Tensor]) -> SoftmaxHessian:
        return SoftmaxHessian(*map(change, self.tensors))


def _weighted_grams(d_nk: Tensor, w_kh: Tensor) -> Tensor:
    """Wᵀ diag(d_n) W of each n, [N, h, h]: one GEMM of some examples' scaled rows."""
    k, h = w_kh.shape
    w_hk = w_kh.T.contiguous()
    step = max(1, SCALED // max(1, k * h))
    parts = [((w_hk * part[:, None]).flatten(0, 1) @ w_kh) for part in d_nk.split(step)]
    return torch.cat(parts).unflatten(0, (-1, h))
