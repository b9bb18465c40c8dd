"""The exact Hessian of the data term, and what to do with its negative eigenvalues."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.curvature.base import Block, Curvature, Operator
from curvfluence.curvature.block_ggn import require_dense
from curvfluence.curvature.chain import chain_hessian, find_chain
from curvfluence.curvature.ggn import ggn_matrix
from curvfluence.curvature.layerwise import fisher_notes
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError, SingularError
from curvfluence.fisher import Type2
from curvfluence.layers import coverage
from curvfluence.problem import Problem


class Spectrum(ABC):
    """How an eigenvalue μ of H + diag(w) is inverted at damping λ."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abstractmethod
    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        """The eigenvalues of the inverse."""


def _reciprocal(values: Tensor, what: str) -> Tensor:
    # eigenvalues of a symmetric matrix come with an error of a few eps ‖H + diag(w)‖
    floor = 10 * torch.finfo(values.dtype).eps * float(values.abs().max())
    close = int((values.abs() <= floor).sum())
    if close:
        raise SingularError(
            f"{what} has {close} values that cannot be told from 0 (below {floor:.3g}). Use a "
            "larger damping, Relative(0.1) for a start"
        )
    return 1 / values


@dataclass(frozen=True)
class Abs(Spectrum):
    """1/(|μ| + λ): negative curvature counts as curvature. The default."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu.abs() + damping, "|μ| + λ")


@dataclass(frozen=True)
class Plain(Spectrum):
    """1/(μ + λ): the formula as it stands; has poles where a negative μ meets −λ."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu + damping, "μ + λ")


@dataclass(frozen=True)
class Clip(Spectrum):
    """1/(max(μ, 0) + λ)."""

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        return _reciprocal(mu.clamp_min(0) + damping, "max(μ, 0) + λ")


@dataclass(frozen=True)
class Truncate(Spectrum):
    """1/(μ + λ), and 0 where μ + λ <= τ."""

    threshold: float

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise InputError(f"truncate needs a threshold > 0; seen {self.threshold}")

    @property
    def name(self) -> str:
        return f"truncate({self.threshold:g})"

    def inverse(self, mu: Tensor, damping: float) -> Tensor:
        total = mu + damping
        return torch.where(total > self.threshold, 1 / total, 0.0)


@dataclass(frozen=True, eq=False)
class Symmetric(Operator):
    """An indefinite M with the eigendecomposition of M + diag(w); solves share it at every λ."""

    matrix: Tensor
    decay: Tensor
    values: Tensor  # μ, ascending
    vectors: Tensor
    spectrum: Spectrum

    @staticmethod
    def of(matrix: Tensor, decay: Tensor, spectrum: Spectrum) -> Symmetric:
        shifted = matrix.clone()
        shifted.diagonal().add_(decay)
        values, vectors = torch.linalg.eigh(shifted)
        return Symmetric(matrix, decay, values, vectors, spectrum)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.matrix)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes + self.vectors.nbytes + self.values.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return v @ self.matrix

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        return next(iter(self.solve_many(v, decay, (damping,))))

    def solve_many(self, v: Tensor, decay: Tensor, dampings: Iterable[float]) -> Iterable[Tensor]:
        if not torch.equal(decay, self.decay):
            raise InputError("the Hessian was decomposed with another weight decay: fit it again")
        rotated = v @ self.vectors
        for damping in dampings:
            yield (rotated * self.spectrum.inverse(self.values, damping)) @ self.vectors.T

    def to_dense(self) -> Tensor:
        return self.matrix

    def eigenvalues(self) -> Tensor:
        """Of M itself; free where the decay is uniform, else a decomposition of its own."""
        if bool((self.decay == self.decay[0]).all()):
            return self.values - self.decay[0]
        return torch.linalg.eigvalsh(self.matrix)

    def mean_eigenvalue(self) -> float:
        return float(self.eigenvalues().abs().mean())


@dataclass(frozen=True)
class Hessian(Rung):
    """(1/N) Σ_n ∇²ℓ_n, inverted through the eigenvalues of H + diag(w) as `spectrum` says.

    H = GGN + (1/N) Σ_n Σ_k (∂ℓ_n/∂f_k) ∇²f_k: the second part is the Hessian of δᵀf with δ = ∂ℓ/∂f
    held fixed, so a saturated loss loses nothing to cancellation. Chains of Linear layers take
    GEMMs; any other model takes vmapped Hessian-vector products of δᵀf, P of them.
    Cost: 2 N P² and an eigendecomposition, about 10 P³; memory 4 P² numbers.
    """

    spectrum: Spectrum = Abs()

    @property
    def name(self) -> str:
        return f"Hessian({self.spectrum.name})"

    def build(self, problem: Problem) -> Curvature:
        count = problem.parameters.count
        require_dense(self.name, count, "the model")
        matrix, rule = hessian_matrix(problem)
        operator = Symmetric.of(matrix, problem.decay, self.spectrum)
        every = Block("all", problem.parameters.names, torch.arange(count), operator, rule)
        negative = operator.values < 0
        notes = fisher_notes(problem, Type2())[0]
        if bool(negative.any()):
            text = (
                f"{int(negative.sum())} of {count} eigenvalues of H + diag(w) are negative, the "
                f"lowest {float(operator.values[0]):.3g}: {self.spectrum.name}"
            )
            notes = (*notes, text)
        return Curvature(
            rung=self.name,
            parameters=problem.parameters,
            blocks=(every,),
            decay=problem.decay,
            notes=notes,
        )


def hessian_matrix(problem: Problem) -> tuple[Tensor, str]:
    """(H [P, P], by which path)."""
    covered = coverage(problem)
    chain = find_chain(problem, covered)
    if chain is not None:
        return chain_hessian(
            problem, covered, chain
        ), "exact, analytic for a chain of Linear layers"
    ggn, _ = ggn_matrix(problem)
    return ggn.add_(residual_hessian(problem)), "exact, from Hessian-vector products"


def residual_hessian(problem: Problem, *, examples: int = 512, vectors: int = 64) -> Tensor:
    """(1/N) Σ_n ∇²(δ_nᵀ f_n) with δ held fixed, [P, P], by vmapped Hessian-vector products."""
    parameters, n = problem.parameters, len(problem.train)
    flat = parameters.flatten(problem.theta)
    total = torch.zeros(len(flat), len(flat), dtype=problem.dtype, device=problem.device)
    for _, x, y in problem.train.chunks(examples):
        with torch.no_grad():
            delta = problem.loss.gradient(problem.forward(x), y) / n

        def weighted(theta: Tensor, x: Tensor = x, delta: Tensor = delta) -> Tensor:
            return (problem.forward(x, parameters.unflatten(theta)) * delta).sum()

        def product(v: Tensor, weighted: Callable[[Tensor], Tensor] = weighted) -> Tensor:
            return jvp(grad(weighted), (flat,), (v,))[1]

        for start in range(0, len(flat), vectors):
            basis = torch.zeros(
                min(vectors, len(flat) - start), len(flat), dtype=flat.dtype, device=flat.device
            )
            basis[:, start : start + len(basis)].fill_diagonal_(1.0)
            total[start : start + len(basis)] += vmap(product)(basis).detach()
    return (total + total.T) / 2
