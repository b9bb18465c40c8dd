"""A sample-space kernel that is solved by iteration, preconditioned on its largest rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.block_conjugate_gradients import block_conjugate_gradients
from curvfluence.curvature.operators.cholesky import BLOCK
from curvfluence.errors import SingularError

LARGEST = 2000  # rows that the preconditioner is exact on
FIRST = 1e-4  # of a residual of the kernel by the first iteration; then its size is looked at
REDUCE = 1e-5  # of it by one iteration, at the most: float32 allows little more
DRIFT = 1e-5  # of a residual, below which that of the recurrence is not taken for the true one
RESTARTS = 4  # iterations on what the last one left
MOST = 60  # products of one iteration
JITTER = 1e-7  # of the largest pivot: rows of one example may be all but dependent


@dataclass(frozen=True, eq=False)
class KernelIteration:
    """N I + K with K = Z D⁻¹ Zᵀ [R, R] held, and N I + K_M with K_M = K_:M (K_MM)⁻¹ K_M: on the M
    rows of the largest diagonal (Nyström; Williams & Seeger 2000), which an exact inverse by
    Woodbury makes a preconditioner: what is left of K is a Schur complement, small where few rows
    hold most of it.

    Cost: 2 M² R once; 2 R² a vector and product. Memory: R² + M R numbers.
    """

    kernel: Tensor  # K, both triangles
    n: int
    low: Tensor  # [M, R] with K_M = lowᵀ low
    inner: Tensor  # Cholesky factor of N I + low lowᵀ, [M, M], float64

    @staticmethod
    def of(kernel: Tensor, n: int, largest: int = LARGEST) -> KernelIteration:
        """Of K, of which the lower triangle was given, in its own memory."""
        _mirror(kernel)
        m = min(largest, len(kernel))
        chosen = kernel.diagonal().topk(m).indices
        rows = kernel[chosen]
        root = _root(rows[:, chosen].double(), JITTER).to(kernel.dtype)
        low = torch.linalg.solve_triangular(root, rows, upper=False)
        inner = (low @ low.mT).double()
        inner.diagonal().add_(n)
        return KernelIteration(kernel, n, low, _root(inner, 0.0))

    def product(self, y_qr: Tensor) -> Tensor:
        """(N I + K) y of each row."""
        return torch.addmm(y_qr, y_qr, self.kernel, beta=self.n)

    def precondition(self, r_qr: Tensor) -> Tensor:
        """(N I + K_M)⁻¹ r of each row."""
        along = (r_qr @ self.low.mT).double().mT
        inner = torch.cholesky_solve(along, self.inner).mT.to(r_qr.dtype)
        return (r_qr - inner @ self.low) / self.n

    def improve(
        self, y_qr: Tensor, rho_qr: Tensor, size_q: Tensor, wanted: float, shift: Tensor
    ) -> int:
        """Bring ρ = b − (N I + K) y nearer to 0 by a better y, both [Q, R] in float64 and changed
        in place, until ‖Zᵀ ρ‖/N is to be `wanted` times `size_q` or no longer falls; the products
        made. The last ρ is not told."""
        largest, last, products = float(shift.max()), torch.inf, 0
        reduce, reduced, foreseen = FIRST, 1.0, False
        for _ in range(RESTARTS):
            scale = rho_qr.abs().amax(1, keepdim=True)  # squares of small numbers would be 0
            scale = torch.where(scale > 0, scale, 1)
            b_qr = (rho_qr / scale).to(self.kernel.dtype)
            found = block_conjugate_gradients(
                self.product,
                b_qr,
                precondition=self.precondition,
                enough_q=reduce * torch.linalg.vector_norm(b_qr, dim=1, dtype=torch.float64),
                max_products=MOST,
                held=0,  # few products, of vectors as long as there are rows
            )
            y_qr.addcmul_(found.x.double(), scale)
            products, reduced = products + found.products, reduced * reduce
            if foreseen:
                break  # what is left is looked at by who asks, with products of the rows
            if reduced < DRIFT:
                rho_qr.addcmul_(self.product(found.x).double(), scale, value=-1)
                products += 1
            else:
                rho_qr.copy_(found.residual.double() * scale)
            worst, products = float((self.size(rho_qr, largest) / size_q).max()), products + 1
            if worst <= wanted or not worst < 0.5 * last:
                break
            needed = 0.5 * wanted / worst
            last, reduce, foreseen = worst, max(REDUCE, needed), needed >= REDUCE
        return products

    def size(self, rho_qr: Tensor, shift: float) -> Tensor:
        """√(d ρᵀ K ρ)/N, [Q]: ‖Zᵀ ρ‖/N where D = d I, and at least that where d is the largest
        of D."""
        scale = rho_qr.abs().amax(1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1)
        unit_qr = (rho_qr / scale).to(self.kernel.dtype)
        inner_q = ((unit_qr @ self.kernel).double() * unit_qr).sum(1).clamp_min(0)
        return (shift * inner_q).sqrt() * scale[:, 0] / self.n


def _root(matrix: Tensor, jitter: float) -> Tensor:
    """A Cholesky factor of a matrix with `jitter` times its largest entry on the diagonal, and as
    little more as that takes: rows of few parameters, or of examples that are there twice, are
    dependent, and sums in float32 then as far from positive as their rounding. What is added makes
    the preconditioner rougher, and nothing else. Errors: `SingularError` where nothing does."""
    largest = float(matrix.diagonal().amax()) or 1.0
    added = 0.0
    while added < 1.0:
        matrix.diagonal().add_((jitter - added) * largest)
        root, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return root
        added, jitter = jitter, max(JITTER, 10 * jitter)
    raise SingularError(
        "the kernel of the damped GGN has entries that no rounding explains, not finite perhaps: "
        "use a larger damping, or problem.to(torch.float64)"
    )


def _mirror(matrix: Tensor) -> None:
    """Fill the upper triangle from the lower one, in place."""
    for start in range(0, len(matrix), BLOCK):
        end = min(start + BLOCK, len(matrix))
        corner = matrix[start:end, start:end]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
        for first in range(end, len(matrix), BLOCK):
            last = min(first + BLOCK, len(matrix))
            matrix[start:end, first:last] = matrix[first:last, start:end].mT
